"""How far learning has collapsed onto few dimensions: a measure for each checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops import work
from kpops.arrays import to_numpy
from kpops.labels import Space
from kpops.learning.required import labelled, require_linearization
from kpops.learning.trajectories import principal, read_states
from kpops.linalg.eigenpairs import Options, eigenpairs
from kpops.linalg.exact import is_cheap
from kpops.linalg.ranks.base import RankSpec, of_spectrum
from kpops.linalg.ranks.registry import KINDS, rank_spec
from kpops.linalg.rounding import noise_floor
from kpops.linearization import Linearization
from kpops.operators import TrajectoryOperator
from kpops.operators.dense import DenseOperator
from kpops.operators.reduce import Average
from kpops.precision import in_full_precision
from kpops.scalars import generator as seeded
from kpops.spectral._result import undone
from kpops.spectral.rank import found_rank
from kpops.spectral.start_vectors import start_vectors

Specs = list[tuple[RankSpec, bool]]  # kinds of effective rank, and whether of the reduction

_NUMERICAL = 1e-6


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
    options = {"num_matvecs": num_matvecs, "rng": seeded(rng)}
    specs = [(rank_spec(kind, threshold, _NUMERICAL), reduced) for kind, reduced in kinds]
    operators = (lin.K, lin.P @ lin.P.H, lin.flow)
    num_modes = min(num_modes, kept.size)
    reduced = _reductions(lin, operators, kept.dims) if num_modes or of_reduction else operators
    parts = [
        _of_operator(op, small, specs, num_modes, options, previous)
        for op, small in zip(operators, reduced, strict=True)
    ]
    parts.append(_of_trajectories(lin, kept, specs, num_modes))
    settings = {"keep": kept.dims, "threshold": threshold, "num_matvecs": num_matvecs}
    over = f" over {', '.join(kept.dims)}"
    names = {
        "operator": [*(op.symbol for op in operators), "trajectories"],
        "kind": [kind + over * of_reduced for kind, of_reduced in kinds],
    }
    attrs = {**lin.attrs, "reduction": "expand_average", "configuration": json.dumps(settings)}
    return _labelled(parts, kept, names, attrs)


class _Part(NamedTuple):
    """Ranks and standard errors of each kind, and modes of the reduction."""

    ranks: np.ndarray
    errors: np.ndarray
    values: np.ndarray
    functions: Tensor


def _of_operator(
    op: TrajectoryOperator,
    reduced: TrajectoryOperator,
    specs: Specs,
    num_modes: int,
    options: dict[str, Any],
    previous: xr.Dataset | None,
) -> _Part:
    """Ranks of an operator and modes of its reduction."""
    found = [found_rank(reduced if r else op, spec, **options).answer for spec, r in specs]
    ranks, errors = np.array([(r.estimate, r.stderr) for r in found], op.dtype).T
    functions = torch.empty(0, *reduced.domain.shape, dtype=op.torch_dtype)
    values = np.empty(0, op.dtype)
    if num_modes:
        v0 = None
        if previous is not None and not isinstance(reduced, DenseOperator):
            v0 = previous.eigenfunction.sel(operator=op.symbol, drop=True)
        near = start_vectors(reduced, v0)
        modes = eigenpairs(reduced, num_modes, Options(near=near, rng=options["rng"]))
        values, functions = undone(modes.values, modes.unit, reduced, "spectrum"), modes.vectors[0]
    return _Part(ranks, errors, values, functions)


def _of_trajectories(lin: Linearization, kept: Space, specs: Specs, num_modes: int) -> _Part:
    """The same for the matrix of all states, whose squared singular values are variances."""
    states, valid, *_ = read_states(lin, None)
    singular, _, n_free = principal(states, valid, ("trial", "time"))
    variance = (singular.square() / n_free).to(lin.dtype)
    singular, floor = variance.sqrt(), noise_floor(lin.dtype)
    ranks = [of_spectrum(singular, spec, False, floor) for spec, _ in specs]
    values = torch.full((num_modes,), torch.nan, dtype=lin.dtype)
    values[: len(variance)] = variance[:num_modes]
    none = torch.full((num_modes, *kept.shape), torch.nan, dtype=lin.dtype)
    found = np.array(ranks, lin.K.dtype)
    return _Part(found, np.zeros_like(found), values.numpy(), none)


def _reductions(
    lin: Linearization, operators: Sequence[TrajectoryOperator], keep: tuple[str, ...]
) -> list[TrajectoryOperator]:
    """The reductions of K, P P* and P K P*; matrices if they are small, from one P*."""
    reduced = [op.expand_average(keep) for op in operators]
    (size, _), root = reduced[0].shape, lin.K.root
    if not is_cheap(size) or root is None:
        return reduced
    average = Average(lin.space, keep, lin.K.torch_dtype, lin.K.device)
    unit = math.sqrt(lin.space.size / size) * torch.eye(size, dtype=lin.dtype, device=lin.K.device)
    start = average.apply_adjoint(unit.unflatten(1, average.codomain.shape))
    through = lin.P.apply_adjoint(start)
    images = root.apply_adjoint(start), through, root.apply_adjoint(through)
    return [
        DenseOperator(
            rows.flatten(1) @ rows.flatten(1).mT,
            op.domain,
            op.domain,
            symbol=op.symbol,
            positive=True,
        )
        for op, rows in zip(reduced, images, strict=True)
    ]


def _labelled(
    parts: Sequence[_Part], kept: Space, names: dict[str, list[str]], attrs: dict[str, Any]
) -> xr.Dataset:
    ranks, errors, values, functions = zip(*parts, strict=True)
    data: dict[str, Any] = {
        "effective_rank": labelled(("operator", "kind"), np.stack(ranks), "effective rank"),
        "stderr": labelled(("operator", "kind"), np.stack(errors), "standard error"),
    }
    # Strings as objects, since Zarr has no specified type for NumPy's fixed-length ones.
    coords = {d: labelled(d, np.array(v, dtype=object), d) for d, v in names.items()}
    if values[0].size:
        block = np.stack([to_numpy(f) for f in functions])
        dims = ("operator", "mode", *kept.dims)
        data["eigenvalue"] = labelled(("operator", "mode"), np.stack(values), "eigenvalue")
        data["eigenfunction"] = labelled(dims, block, "eigenfunction")
        coords["mode"] = labelled("mode", np.arange(1, len(values[0]) + 1), "mode")
        coords |= {name: c.described(name) for name, c in kept.coords.items()}
    return xr.Dataset(data, coords, attrs)
