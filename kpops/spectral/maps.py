"""Frobenius maps: the energy that an operator carries between positions of a dimension."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops import work
from kpops.engines.gated.unit_blocks import UnitBlocks
from kpops.engines.random_vectors import RandomVectors
from kpops.labels import Space
from kpops.linalg.exact import is_small
from kpops.linalg.probes import BLOCK
from kpops.linalg.scaling import normalized, normalized_blocks, raised
from kpops.maturity import experimental, warn_renamed
from kpops.operators.base import TrajectoryOperator
from kpops.operators.dense import batches, block_diagonal_dims
from kpops.operators.foreign import as_operator
from kpops.operators.partial_trace import signs
from kpops.precision import in_full_precision
from kpops.scalars import check_count
from kpops.scalars import generator as seeded
from kpops.spectral._result import configuration, identity, undone, unitless


@experimental
@in_full_precision
@work.shown
def frobenius_map(
    op: Any,
    dim: str,
    *,
    method: str = "auto",
    num_probes: int = 16,
    lag_cutoff: int | None = None,
    rng: Any = None,
    progress: bool = False,
    beyond: int | None = None,
) -> xr.Dataset:
    """Squared Frobenius norms of the blocks between all pairs of positions of a dimension.

    For the propagator P by time this is the energy of the Green's operator: how strongly the state
    at t feels what happens at t'. By trial or by unit it shows what the flow operator couples.

    Parameters
    ----------
    op : TrajectoryOperator, LinearOperator or array_like
        Domain and codomain have the dimension, which is ``"index"`` if they are unlabelled.
    dim : str
        ``"time"``, ``"trial"``, ``"unit"`` or any other dimension.
    method : {"auto", "exact", "probes"}
        ``"exact"`` uses K unit by unit where it is known so, else the matrix; ``"probes"``
        estimates. ``"auto"`` is exact where K is known unit by unit or the matrix is small.
    num_probes : int
        Random vectors for each position, at least 2. They take ``num_probes`` matvecs for each
        position of the dimension, or ``num_probes`` in all where `op` is block diagonal over it (P
        over trials).
    lag_cutoff : int, optional
        Energy beyond this lag counts as long-range. Default: a quarter of the steps.
    rng, progress
        As for :func:`kpops.trace`.
    beyond : int, optional
        The old name of `lag_cutoff`.

    Returns
    -------
    Dataset
        ``energy(dim, dim_in)``, from position dim_in of the domain to position dim of the
        codomain, and ``total``, its sum. For the dimension ``time``, if both sides have the same,
        also ``energy_by_lag(lag)``, the sum over pairs of positions so far apart in either
        direction; ``near_diagonal(lag)``, the fraction of the energy up to this lag; and
        ``long_range``, the fraction beyond `lag_cutoff`. Fractions of a zero operator are NaN. Each
        variable has its standard error, zero if exact: ``stderr`` for energy, and others as
        ``total_stderr``.

    Raises
    ------
    ValueError
        If domain or codomain lacks the dimension, or an option is unknown or out of range.
    MemoryError
        If the matrix of ``method="exact"`` would not fit.

    Notes
    -----
    With random signs z at position t' and zeros elsewhere, ``||(A z)[t]||^2`` has the mean
    ``||A[t, t']||_F^2``, for all t at once. Its relative standard deviation is at most
    ``sqrt(2 / PR)``, where PR is the participation ratio of ``A[t, t']* A[t, t']``. Standard errors
    are those of the mean over probes; for fractions, the jackknife's.

    For ``K = sum_i M_i M_i^T`` over the units i, with M_i[t] the rows of time t, the energy is
    ``sum_i ||M_i[t] M_i[t']^T||_F^2 = sum_i <M_i[t]^T M_i[t], M_i[t']^T M_i[t']>``.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(3, 4, batch_first=True), torch.randn(5, 8, 3))
    >>> green = kpops.frobenius_map(lin.P, "time")
    >>> bool((green.energy.values[0, 1:] == 0).all())  # P is causal
    True
    >>> green.energy.values.diagonal()  # 5 trials of 4 units
    array([20., 20., 20., 20., 20., 20., 20., 20.], dtype=float32)
    >>> dict(kpops.frobenius_map(lin.flow, "unit").energy.sizes)
    {'unit': 4, 'unit_in': 4}
    """
    op, rng = as_operator(op), seeded(rng)
    if beyond is not None:
        warn_renamed("beyond", "lag_cutoff")
        lag_cutoff = beyond
    shared = [d for d in op.domain.dims if d in op.codomain.dims]
    if dim not in shared:
        raise ValueError(f"dim={dim!r}: choose one of the dims {shared} of both sides of {op!r}")
    if method not in ("auto", "exact", "probes"):
        raise ValueError(f"method={method!r}: choose 'auto', 'exact' or 'probes'")
    check_count("num_probes", num_probes, 2)
    lag = _checked_lag(op, dim, lag_cutoff)
    blocks = op.unit_blocks()
    blocks = blocks if isinstance(blocks, UnitBlocks) else None
    if method == "auto":
        method = "exact" if blocks is not None or is_small(op) else "probes"
    before = op.num_matvecs
    if method == "probes":
        scaled, unit = normalized(op)
        samples = _probed(scaled, dim, num_probes, rng)
    elif blocks is not None:
        unit = blocks.trace() or 1.0
        samples = _of_unit_blocks(op, blocks.scaled(1 / unit), dim)[None]
    else:
        samples, unit = _of_dense_blocks(op, dim)
    attrs = {
        **configuration(op, dim=dim, method=method, num_probes=num_probes, lag_cutoff=lag),
        "method": method,
        "num_matvecs": op.num_matvecs - before,
    }
    variables = _labelled(op, dim, _summed(samples, lag), lag, raised(unit, 2))
    return xr.Dataset(variables, _coords(op, dim, with_lags=lag is not None), attrs)


def _checked_lag(op: TrajectoryOperator, dim: str, lag_cutoff: int | None) -> int | None:
    """The cutoff lag; None where positions have no lags."""
    n_steps = op.domain.sizes[dim]
    same = n_steps == op.codomain.sizes[dim] and dim not in op.domain.misaligned(op.codomain)
    if dim != "time" or not same:
        if lag_cutoff is not None:
            raise ValueError(
                f"lag_cutoff={lag_cutoff}: a lag needs the dim 'time', the same on both sides"
            )
        return None
    if lag_cutoff is None:
        return n_steps // 4
    check_count("lag_cutoff", lag_cutoff, 0, n_steps - 1)
    return int(lag_cutoff)


# Energies (out, in) in float64; (probe, out, in) where they are estimated.


def _probed(op: TrajectoryOperator, dim: str, num_probes: int, rng: np.random.Generator) -> Tensor:
    uncoupled = dim in block_diagonal_dims(op)
    work.expect(num_probes * (1 if uncoupled else op.domain.sizes[dim]))
    z = signs((num_probes, *op.domain.shape), op, RandomVectors(rng))
    if uncoupled:  # what starts at one position stays there: all positions share a vector
        parts = [_energies(op.apply(some), op.codomain, dim) for some in z.split(BLOCK)]
        return torch.diag_embed(torch.cat(parts))
    axis = 1 + op.domain.dims.index(dim)
    n_in, n_out = op.domain.sizes[dim], op.codomain.sizes[dim]
    result = torch.empty(n_in * num_probes, n_out, dtype=torch.float64, device=op.device)
    pairs = torch.cartesian_prod(*(torch.arange(n, device=op.device) for n in (num_probes, n_in)))
    positions = torch.arange(n_in, device=op.device)
    along = [n_in if i == axis else 1 for i in range(1, z.ndim)]
    for some, chosen in zip(result.split(BLOCK), pairs.split(BLOCK), strict=True):
        probe, position = chosen.T
        here = (positions == position[:, None]).reshape(len(chosen), *along)
        some[:] = _energies(op.apply(z[probe] * here), op.codomain, dim)
    return result.unflatten(0, (num_probes, n_in)).mT


def _energies(images: Tensor, space: Space, dim: str) -> Tensor:
    """Sum of squares at each position, (vector, position)."""
    return _sum_over_others(images.double().square(), [0, 1 + space.dims.index(dim)])


def _of_dense_blocks(op: TrajectoryOperator, dim: str) -> tuple[Tensor, float]:
    """Energies (1, out, in) of the scaled operator, and its scale."""
    inside, outside = batches(op)
    dense, unit = normalized_blocks(op)
    squares = dense.double().square()
    front = len(block_diagonal_dims(op))
    squares = squares.reshape(*outside.shape, *inside.shape[front:])
    row = outside.order.index(op.codomain.dims.index(dim))
    column = len(outside.shape) - front + inside.order.index(op.domain.dims.index(dim))
    if row < front:
        return torch.diag(_sum_over_others(squares, [row]))[None], unit
    return _sum_over_others(squares, [row, column])[None], unit


def _sum_over_others(array: Tensor, axes: list[int]) -> Tensor:
    others = [i for i in range(array.ndim) if i not in axes]
    return array.sum(others) if others else array


def _of_unit_blocks(op: TrajectoryOperator, blocks: UnitBlocks, dim: str) -> Tensor:
    layer = blocks.gram.layer
    shape = (layer.variables, *layer.previous.shape[:2])
    axis = {"unit": 0, "trial": 1, "time": 2}[dim]
    n = op.domain.sizes[dim]
    energy = torch.zeros(n, n, dtype=torch.float64, device=op.device)
    places = torch.arange(n, device=op.device)
    of_layer = places[blocks.units].unflatten(0, (layer.variables, -1)).T if dim == "unit" else None
    for units in blocks.chunks():
        for i, m in zip(range(units.start, units.stop), blocks.factors(units), strict=True):
            part = _of_factor(m.unflatten(0, shape).movedim(axis, 0).flatten(1, 2))
            if of_layer is None:
                energy += part
            else:
                here = of_layer[i]
                energy[here[:, None], here] = part
    return energy


def _of_factor(m: Tensor) -> Tensor:
    """``||M[t] M[t']^T||_F^2`` for M (position, row, column), the cheaper way."""
    size = m.abs().max()
    if size == 0:
        return m.new_zeros(len(m), len(m), dtype=torch.float64)
    m = m / size  # fourth powers of small numbers would underflow
    n_positions, n_rows, n_columns = m.shape
    whole = n_positions * n_rows
    if n_columns * (whole + n_positions**2) < whole**2:
        grams = (m.mT @ m).flatten(1)
        energy = (grams @ grams.mT).clamp_min(0)
    else:
        rows = m.flatten(0, 1)
        blocks = (rows @ rows.mT).unflatten(0, (n_positions, n_rows))
        energy = blocks.unflatten(2, (n_positions, -1)).square().sum((1, 3))
    return size.double() ** 4 * energy.double()


# Means and fractions with their standard errors.


def _summed(samples: Tensor, lag: int | None) -> dict[str, tuple[Tensor, Tensor]]:
    """All variables with their standard errors, from energies (probe, out, in)."""
    total = samples.sum((1, 2))
    result = {"energy": _mean(samples), "total": _mean(total)}
    if lag is not None:
        by_lag = _by_lag(samples)
        result["energy_by_lag"] = _mean(by_lag)
        result["near_diagonal"] = _fraction(by_lag.cumsum(1), total)
        result["long_range"] = _fraction(by_lag[:, lag + 1 :].sum(1), total)
    return result


def _mean(samples: Tensor) -> tuple[Tensor, Tensor]:
    mean, m = samples.mean(0), len(samples)
    return mean, samples.std(0) / m**0.5 if m > 1 else torch.zeros_like(mean)


def _by_lag(samples: Tensor) -> Tensor:
    """Sums over pairs of times with the same lag: (probe, time, time) to (probe, lag)."""
    n = samples.shape[1]
    times = torch.arange(n, device=samples.device)
    lags = (times[:, None] - times).abs().flatten()
    return samples.new_zeros(len(samples), n).index_add_(1, lags, samples.flatten(1))


def _fraction(part: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of parts (probe, ...) over that of the whole (probe,), with the jackknife's error."""
    m = len(part)
    whole = whole.reshape(m, *[1] * (part.ndim - 1))
    fraction = part.sum(0) / whole.sum(0)
    if m == 1:
        return fraction, torch.zeros_like(fraction)
    without = (part.sum(0) - part) / (whole.sum(0) - whole)
    spread = (without - without.mean(0)).square().sum(0)
    return fraction, ((m - 1) / m * spread).sqrt()


# Labels.

_FRACTIONS = ("near_diagonal", "long_range")
_NAMES = {
    "energy": "energy",
    "total": "squared Frobenius norm",
    "energy_by_lag": "energy at this lag",
    "near_diagonal": "fraction within this lag",
    "long_range": "fraction of the energy beyond lag {lag}",
}


def _labelled(
    op: TrajectoryOperator,
    dim: str,
    arrays: dict[str, tuple[Tensor, Tensor]],
    lag: int | None,
    unit: float,
) -> dict[str, xr.Variable]:
    dims = {"energy": (dim, f"{dim}_in"), "energy_by_lag": ("lag",), "near_diagonal": ("lag",)}
    result = {}
    for name, both in arrays.items():
        long_name = _NAMES[name].format(lag=lag)
        error = "stderr" if name == "energy" else f"{name}_stderr"
        texts = (long_name, f"standard error of the {long_name}")
        for key, values, text in zip((name, error), both, texts, strict=True):
            array = undone(values, 1.0 if name in _FRACTIONS else unit, op, text)
            result[key] = xr.Variable(dims.get(name, ()), array, unitless(text))
    return result


def _coords(op: TrajectoryOperator, dim: str, *, with_lags: bool) -> dict[str, Any]:
    coords = identity(op)
    for space, suffix in ((op.codomain, ""), (op.domain, "_in")):
        for name, coordinate in space.coords.items():
            dims, values, attrs = coordinate.described(name)
            if dims == (dim,):
                coords[name + suffix] = (dim + suffix, values, attrs)
    if with_lags:
        lags = np.arange(op.domain.sizes[dim])
        coords["lag"] = ("lag", lags, unitless("lag in steps"))
    return coords
