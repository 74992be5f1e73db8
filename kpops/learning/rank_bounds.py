"""Theorem 1: K is the sum of the operators of its parameters, each of bounded rank."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
import xarray as xr

from kpops import work
from kpops.engines.exclusive import exclusive_compute
from kpops.engines.gated.engine import GatedEngine
from kpops.engines.gated.features import numerical_rank
from kpops.engines.gated.gram import Gram, learning
from kpops.engines.gated.layer import Layer
from kpops.engines.gated.roles import Role, parameter_roles
from kpops.engines.gated.unit_blocks import UnitBlocks
from kpops.learning.required import labelled, require_linearization
from kpops.linalg.ranks.base import of_spectrum
from kpops.linalg.ranks.registry import rank_spec
from kpops.linalg.rounding import noise_floor
from kpops.linearization import Linearization
from kpops.models.gated import GatedRecurrence
from kpops.operators import TrajectoryOperator
from kpops.precision import in_full_precision
from kpops.scalars import generator as seeded
from kpops.spectral._result import identity
from kpops.spectral.rank import effective_rank
from kpops.spectral.traces import trace

_VARIABLES = {
    "feature_rank": "rank of the features",
    "maps": "maps of the parameter that enter differently",
    "feature_participation": "participation ratio of the features",
    "bound": "bound on the rank of K_j",
    "bound_at_tol": "bound on the eigenvalues of K_j above the tolerance",
    "rank": "numerical rank of K_j",
    "rank_stderr": "standard error of the numerical rank",
    "participation": "participation ratio of K_j",
    "participation_stderr": "standard error of the participation ratio",
    "trace_share": "share of the trace of K",
}
_OF_SUM = ("bound", "rank", "rank_stderr", "participation", "participation_stderr")
_UNKNOWN = "unknown"


@in_full_precision
@work.shown
def rank_bounds(
    lin: Linearization,
    *,
    tol: float = 1e-6,
    num_matvecs: int = 64,
    rng: Any = None,
    progress: bool = False,
) -> xr.Dataset:
    """Rank of K_j for each parameter, and the bounds set by the features that it multiplies.

    Parameters
    ----------
    lin : Linearization
        The model.
    tol : float
        Eigenvalues above this fraction of the largest count for a numerical rank, from 0 to 1;
        raised to the noise floor of the dtype.
    num_matvecs : int
        Matvecs for an estimate, where the structure gives no exact number.
    rng : int, Generator or None
        Source of the random vectors of the estimates.
    progress : bool
        Show a bar of the matvecs.

    Returns
    -------
    Dataset
        For each ``parameter``, with the coordinate ``features``, what it multiplies:
        ``feature_rank`` and ``feature_participation`` of the features M_j (of M_j M_j^T);
        ``maps``, the number of maps (gates) that enter differently; ``bound`` on the rank of K_j;
        ``bound_at_tol`` on its eigenvalues above `tol` times the largest; ``rank``, the number of
        these; ``participation``, its participation ratio; ``rank_stderr`` and
        ``participation_stderr``, zero where exact; ``trace_share``, tr K_j / tr K. Of K itself
        ``bound_of_sum``, ``rank_of_sum``, ``participation_of_sum`` and their standard errors.
        If the structure of the model, or the place of a parameter in it, is unknown, ``features``
        is ``"unknown"``, their numbers are NaN, and ``bound`` is the number of columns of J_j, the
        parameter's entries; the attribute ``structure`` counts the known parameters.

    Raises
    ------
    TypeError
        If `lin` is no linearization.
    ValueError
        If `tol` is out of range.

    Notes
    -----
    Theorem 1 of the KPFlow paper (arXiv 2507.06381): K = J J* = sum_j K_j, since each column of J
    belongs to one parameter.

    *Gated cells.* A layer takes the step ``s'_v = gates_v(U x + c, W phi(s) + b, s)`` unit by unit:
    S units of V state variables, and G maps for each of S units stacked in W. The rows of M_j, one
    for each of the N valid (trial, time), are what parameter j multiplies: phi of the previous
    state for W, the layer's input for U, 1 for a bias. Its part of J is
    ``J_j dtheta = sum_g D_g (M_j dW_g^T)``, where D_g, the derivative of the new state with respect
    to map g, acts unit by unit. Hence

        K_j = sum_g D_g (M_j M_j^T kron I_S) D_g*,   rank K_j <= S min(G rank M_j, V N),

    where maps with the same D_g count once. For ``h' = f(W h + U x + b)`` there is one map, so
    ``rank K_j <= S rank M_j``, with equality for a linear f; a GRU has three, an LSTM four. Over
    all parameters of a layer, the features of maps with the same D stand side by side:
    ``rank K <= S min(sum_D rank [M_j]_D, V N)``.

    *Stacks.* Layers pass their part on to those above: ``K = L diag(K_l) L*`` with L unit
    triangular over layers. This congruence keeps the rank, so the bounds hold for each layer and
    add up. The numerical rank is that of K_l itself. Likewise ``rank P K_j P* = rank K_j``.

    *With a tolerance.* By Ostrowski's theorem the k-th eigenvalue of D_g M M^T D_g*, of one unit,
    is at most ``d_g^2 m_k``, with d_g the largest gain in that unit and m_k the k-th eigenvalue of
    M M^T; by Weyl's inequality eigenvalue ``G k + 1`` of the sum over g is at most
    ``sum_g d_g^2 m_{k+1}``. So at most ``G #{k: sum_g d_g^2 m_k > t}`` eigenvalues of a unit
    exceed t.

    *Participation ratios* have no such bound, as D may silence the samples with large features:
    only ``PR(D M M^T D) <= (max d / min d)^4 PR(M M^T)``. But they are at most the rank, and
    subadditive for positive operators: ``PR(K) <= sum_j PR(K_j)``. For a linear network
    ``PR(K_j) = S PR(M_j M_j^T)``.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.RNN(3, 8, batch_first=True), torch.randn(5, 10, 3))
    >>> result = kpops.rank_bounds(lin)
    >>> result.bound.sel(parameter="weight_ih_l0").item()  # 8 units, 3 inputs
    24.0
    >>> bool((result["rank"] <= result.bound).all())
    True
    """
    require_linearization(lin)
    if not 0 <= tol < 1:
        raise ValueError(f"tol={tol}: choose a fraction of the largest eigenvalue, from 0 to 1")
    tol = max(tol, noise_floor(lin.dtype))
    options = {"num_matvecs": num_matvecs, "rng": seeded(rng)}
    roles, layers = _structure(lin)
    n_entries = lin.trajectory.n_valid * lin.space.sizes["unit"]
    rows = []
    for name, operator in lin.K_by_parameter.items():
        row: dict[str, Any] = {"features": _UNKNOWN}
        if name in roles:
            row["features"] = _multiplied(*roles[name])
            (gram,) = _grams(layers, [roles[name]])
            row |= _of_features(gram, lin.trajectory.n_valid, tol)
        most = min(lin.parameters[name].numel(), n_entries)
        row["bound"] = min(row.get("bound", most), most)
        rows.append(row | _of_operator(operator, row, options, tol))

    of_sum: dict[str, float] = {}
    bounds = [n_entries, sum(row["bound"] for row in rows)]
    if all(name in roles for name in lin.parameters):
        grams = _grams(layers, [roles[name] for name in lin.parameters])
        of_sum["rank"] = _rank_of_blocks(grams, tol)[0]
        bounds.append(sum(_bound(gram, lin.trajectory.n_valid) for gram in grams))
    of_sum = {"bound": min(bounds), **of_sum, **_of_operator(lin.K, of_sum, options, tol)}

    traces = np.array([row["trace"] for row in rows])
    for row, share in zip(rows, traces / (traces.sum() or 1.0), strict=True):
        row["trace_share"] = share

    def number(values: Any, long_name: str, dtype: Any = lin.K.dtype) -> tuple[Any, ...]:
        array = np.array(values, dtype=dtype)
        return labelled(("parameter",)[: array.ndim], array, long_name)

    variables = {
        name: number([row.get(name, np.nan) for row in rows], text)
        for name, text in _VARIABLES.items()
    }
    for name in _OF_SUM:
        variables[f"{name}_of_sum"] = number(of_sum[name], _VARIABLES[name].replace("K_j", "K"))
    features = [row["features"] for row in rows]
    # Strings as objects, since Zarr has no specified type for NumPy's fixed-length ones.
    coords = {
        "parameter": number(list(lin.parameters), "parameter", object),
        "features": number(features, "what the parameter multiplies", object),
        **{k: v for k, v in identity(lin.flow).items() if k != "operator"},
    }
    n_known = len(rows) - features.count(_UNKNOWN)
    attrs = {
        "structure": f"known of {n_known} of {len(rows)} parameters",
        "tol": tol,
        "configuration": json.dumps({"num_matvecs": num_matvecs, "tol": tol}),
    }
    return xr.Dataset(variables, coords, {**lin.attrs, **attrs})


def _multiplied(layer: int, source: str, role: str) -> str:
    """What a weight or bias multiplies, in symbols."""
    if role == "bias":
        return "1"
    if source == "recurrent":
        return "h[t-1]"
    return "h[t] below" if layer else "x[t]"


def _structure(lin: Linearization) -> tuple[dict[str, Role], list[Layer]]:
    """Places of the parameters and layers of a gated stack; empty for another model."""
    if not isinstance(lin.recurrence, GatedRecurrence):
        return {}, []
    engine = lin.engine
    if not isinstance(engine, GatedEngine):
        engine = GatedEngine(lin.recurrence, lin.parameters, lin.trajectory, "recomputed")
    return parameter_roles(lin.recurrence), engine.layers


def _grams(layers: list[Layer], roles: list[Role]) -> list[Gram]:
    """K_l of each layer that has one of these weights and biases."""
    grams = []
    for layer in layers:
        learn = learning(layer, roles)
        if any(map(any, learn.values())):
            with exclusive_compute(layer.previous.device):
                grams.append(Gram(layer, learn))
    return grams


def _of_features(gram: Gram, n_valid: int, tol: float) -> dict[str, float]:
    """Numbers of the features behind one parameter."""
    row: dict[str, float] = {
        "feature_rank": sum(gram.ranks),
        "maps": len(_classes(gram)),
        "bound": _bound(gram, n_valid),
    }
    row["rank"], threshold = _rank_of_blocks([gram], tol)
    if not gram.factors:  # nothing that changes the state, or only zeros
        return {**row, "feature_participation": 0.0, "bound_at_tol": 0.0}
    moments = torch.linalg.svdvals(gram.factors[0].flatten(0, 1).double()).square()
    row["feature_participation"] = of_spectrum(moments, rank_spec("participation"), True, 0.0)
    held = _largest_gains(gram)[:, None] * moments > threshold
    each = (row["maps"] * held.sum(1)).clamp_max(gram.layer.variables * n_valid)
    return {**row, "bound_at_tol": float(each.sum())}


def _classes(gram: Gram) -> dict[tuple[tuple[int, int], ...], set[int]]:
    """Factors by the diagonals between which they stand."""
    classes: dict[tuple[tuple[int, int], ...], set[int]] = {}
    for part in gram.parts:
        classes.setdefault(part.gains, set()).update(part.factors)
    return classes


def _bound(gram: Gram, n_valid: int) -> int:
    """S min(sum_D rank [M_j]_D, V N)."""
    columns = 0
    for factors in _classes(gram).values():
        beside = [gram.factors[i].flatten(0, 1) for i in sorted(factors)]
        columns += beside[0].shape[1] if len(beside) == 1 else numerical_rank(beside)
    return gram.layer.hidden * min(columns, gram.layer.variables * n_valid)


def _rank_of_blocks(grams: list[Gram], tol: float) -> tuple[int, float]:
    """Number of eigenvalues above `tol` times the largest, and this threshold."""
    with exclusive_compute(grams[0].layer.previous.device):
        values = torch.cat([UnitBlocks(gram).eigenvalues().flatten() for gram in grams])
    threshold = tol * float(values.max()) if values.numel() else 0.0
    return int((values > threshold).sum()), threshold


def _largest_gains(gram: Gram) -> torch.Tensor:
    """sum_g d_g^2 of every unit: its largest squared gains, summed over the maps."""
    layer = gram.layer
    device = layer.previous.device
    largest = torch.zeros(len(gram.parts), layer.hidden, dtype=torch.float64, device=device)
    with exclusive_compute(device):
        for segment in layer.segments():
            d = layer.diagonals(segment).double()
            for part, so_far in zip(gram.parts, largest, strict=True):
                squares = torch.stack([d[p].square() for _, p in part.gains]).sum(0)
                torch.maximum(so_far, squares.amax((0, 1)), out=so_far)
    return largest.sum(0)


def _of_operator(
    operator: TrajectoryOperator, row: dict[str, Any], options: dict[str, Any], tol: float
) -> dict[str, float]:
    """Participation and trace, and the rank if the features do not give it."""
    participation = effective_rank(operator, "participation", **options)
    figures = {
        "participation": float(participation.estimate),
        "participation_stderr": float(participation.stderr),
        "trace": float(trace(operator, **options).estimate),
        "rank_stderr": 0.0,
    }
    if "rank" not in row:
        rank = effective_rank(operator, "numerical", tol=tol, **options)
        figures |= {"rank": float(rank.estimate), "rank_stderr": float(rank.stderr)}
    return figures
