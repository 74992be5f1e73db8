"""How far learning has collapsed onto few dimensions: a measure for each checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from kpops import work
from kpops.labels import Space
from kpops.learning.required import labelled, require_linearization
from kpops.learning.trajectories import trajectory_dimension
from kpops.linalg.exact import is_cheap
from kpops.linalg.ranks.base import of_spectrum
from kpops.linalg.ranks.registry import KINDS, rank_spec
from kpops.linalg.rounding import noise_floor
from kpops.linearization import Linearization
from kpops.operators import TrajectoryOperator
from kpops.operators.dense import DenseOperator
from kpops.precision import in_full_precision
from kpops.scalars import generator as seeded
from kpops.spectral._result import modes_of
from kpops.spectral.eig import eigsh
from kpops.spectral.rank import effective_rank

Kinds = list[tuple[str, bool]]  # kinds of effective rank, and whether they are of the reduction

_NUMERICAL = 1e-6
_MODES = "eigenvalue", "eigenfunction"


@in_full_precision
@work.shown
def collapse(
    lin: Linearization,
    *,
    keep: str | Sequence[str] = ("time",),
    of_reduction: str | Sequence[str] = ("variance",),
    of_whole: str | Sequence[str] = ("participation",),
    threshold: float = 0.95,
    num_modes: int = 6,
    num_matvecs: int = 32,
    rng: Any = None,
    previous: xr.Dataset | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Effective ranks and leading modes of K, P, the flow operator and the trajectories.

    A measure for :func:`kpops.over_training`.

    Parameters
    ----------
    lin : Linearization
        The model at a checkpoint.
    keep : sequence of str
        Dimensions to which :meth:`TrajectoryOperator.expand_average` reduces the operators, as in
        the figures of the KPFlow paper.
    of_reduction : sequence of str
        Kinds of :func:`kpops.effective_rank` for the reduced operators.
    of_whole : sequence of str
        Kinds for the operators on (trial, time, unit). They cost the most.
    threshold : float
        Fraction of the sum of squares for ``"variance"``.
    num_modes : int
        Leading modes of the reduced operators to return; at most as many as these have.
    num_matvecs : int
        Matvecs for an estimate of a rank.
    rng : int, Generator or None
        Source of the random vectors of these estimates.
    previous : Dataset, optional
        Result at the previous checkpoint, passed by :func:`kpops.over_training`. Its modes start
        the search for modes where that is not exact.
    progress : bool
        Show a bar of the matvecs.

    Returns
    -------
    Dataset
        ``effective_rank(operator, kind)`` and its standard error ``stderr``, zero where exact.
        ``operator`` is ``"K"``, ``"P P*"``, ``"P K P*"`` or ``"trajectories"``; ``kind`` is, for
        example, ``"variance over time"`` or ``"participation"``. ``eigenvalue(operator, mode)`` and
        ``eigenfunction(operator, mode, *keep)`` of the reduced operators.

    Raises
    ------
    TypeError
        If `lin` is no linearization.
    ValueError
        If `keep` or a kind is unknown, or a number is out of range.

    Notes
    -----
    P is represented by P P*, whose eigenvalues are the squared singular values of P.

    For the trajectories, each kind is the rank of the matrix of all states, one row for each trial
    and time, less their mean (see :func:`kpops.trajectory_dimension`). Their eigenvalues are the
    variances along the principal axes, their eigenfunctions NaN.

    Every operator is R R*, so its reduction is the Gram matrix of one vector R* e for each kept
    position: half the work of its matvecs. If this matrix is small, its ranks and modes are exact.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(3, 8, batch_first=True), torch.randn(5, 10, 3))
    >>> result = kpops.collapse(lin, rng=0)
    >>> result.effective_rank.sizes
    Frozen({'operator': 4, 'kind': 2})
    >>> result.kind.values.tolist()
    ['variance over time', 'participation']

    Over training: ``kpops.over_training(network, folder, task.inputs, kpops.collapse)``, with
    options by ``functools.partial(kpops.collapse, rng=0)``.
    """
    require_linearization(lin)
    keep, of_reduction, of_whole = (
        (given,) if isinstance(given, str) else tuple(given)
        for given in (keep, of_reduction, of_whole)
    )
    for what, given in (("of_reduction", of_reduction), ("of_whole", of_whole)):
        if not set(given) <= set(KINDS) or len(set(given)) < len(given):
            raise ValueError(f"{what}={given}: choose from {tuple(KINDS)}, each at most once")
    if not of_reduction and not of_whole:
        raise ValueError("of_reduction and of_whole are empty: name a kind of effective rank")
    if num_modes < 0:
        raise ValueError(f"num_modes={num_modes}: choose a number of modes, 0 for none")
    kept = lin.space.keep(keep)
    kinds = [(kind, True) for kind in of_reduction] + [(kind, False) for kind in of_whole]
    options = {"threshold": threshold, "num_matvecs": num_matvecs, "rng": seeded(rng)}
    operators = (lin.K, lin.P @ lin.P.H, lin.flow)
    num_modes = min(num_modes, kept.size)
    parts = [_of_operator(op, kept, kinds, num_modes, options, previous) for op in operators]
    parts.append(_of_trajectories(lin, kept, kinds, threshold, num_modes))
    settings = {"keep": kept.dims, "threshold": threshold, "num_matvecs": num_matvecs}
    over = f" over {', '.join(kept.dims)}"
    names = {
        "operator": [*(op.symbol for op in operators), "trajectories"],
        "kind": [kind + over * reduced for kind, reduced in kinds],
    }
    joined = xr.concat(
        parts,
        dim="operator",
        combine_attrs="override",
        join="exact",
        data_vars="all",
        coords="minimal",
        compat="override",
    )
    attrs = {**lin.attrs, "reduction": "expand_average", "configuration": json.dumps(settings)}
    # Strings as objects, since Zarr has no specified type for NumPy's fixed-length ones.
    labels = {d: labelled(d, np.array(v, dtype=object), d) for d, v in names.items()}
    return joined.assign_coords(labels).assign_attrs(attrs)


def _of_operator(
    op: TrajectoryOperator,
    kept: Space,
    kinds: Kinds,
    num_modes: int,
    options: dict[str, Any],
    previous: xr.Dataset | None,
) -> xr.Dataset:
    """Ranks of an operator and modes of its reduction."""
    any_reduced = num_modes or any(of_reduced for _, of_reduced in kinds)
    reduced = _reduced(op, kept.dims) if any_reduced else op
    ranks = [effective_rank(reduced if r else op, kind, **options) for kind, r in kinds]
    found = _ranks([float(r.estimate) for r in ranks], [float(r.stderr) for r in ranks], op.dtype)
    if num_modes:
        v0 = None
        if previous is not None and not isinstance(reduced, DenseOperator):
            v0 = previous.eigenfunction.sel(operator=op.symbol, drop=True)
        modes = eigsh(reduced, num_modes, v0=v0, rng=options["rng"])
        found |= {name: modes[name].drop_vars("operator") for name in _MODES}
    return xr.Dataset(found)


def _of_trajectories(
    lin: Linearization, kept: Space, kinds: Kinds, threshold: float, num_modes: int
) -> xr.Dataset:
    """The same for the matrix of all states, whose squared singular values are variances."""
    variance = trajectory_dimension(lin).variance
    singular, floor = torch.from_numpy(variance.values).sqrt(), noise_floor(lin.dtype)
    specs = [rank_spec(kind, threshold, _NUMERICAL) for kind, _ in kinds]
    ranks = [of_spectrum(singular, spec, False, floor) for spec in specs]
    found = _ranks(ranks, [0.0] * len(ranks), lin.K.dtype)
    if num_modes:
        modes = np.arange(1, num_modes + 1)
        none = torch.full((num_modes, *kept.shape), torch.nan, dtype=lin.dtype)
        found["eigenvalue"] = variance.reindex(mode=modes)
        found["eigenfunction"] = modes_of(none, kept, "eigenfunction")
    return xr.Dataset(found)


def _ranks(estimates: list[float], errors: list[float], dtype: np.dtype) -> dict[str, Any]:
    return {
        "effective_rank": labelled("kind", np.array(estimates, dtype), "effective rank"),
        "stderr": labelled("kind", np.array(errors, dtype), "standard error"),
    }


def _reduced(op: TrajectoryOperator, keep: tuple[str, ...]) -> TrajectoryOperator:
    """The reduction, as a matrix if that is small, so that it is computed only once."""
    reduced = op.expand_average(keep)
    if not is_cheap(reduced.shape[0]) or reduced.root is None:
        return reduced
    root = reduced.root
    unit = torch.eye(reduced.shape[0], dtype=op.torch_dtype, device=op.device)
    rows = root.apply_adjoint(unit.unflatten(1, reduced.domain.shape)).flatten(1)
    return DenseOperator(
        rows @ rows.mT, reduced.domain, reduced.domain, symbol=reduced.symbol, positive=True
    )
