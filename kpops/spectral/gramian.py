"""Gramians of the propagator, and its exact Frobenius norm.

With A[t] the state Jacobian, ``P[s, t] = A[s] ... A[t+1]`` is what a perturbation at t makes of the
state at s. The matrices ``S_t = sum_s P[s,t]^T P[s,t]`` and ``C_t = sum_s P[t,s] P[t,s]^T`` obey
recursions of one S x S matrix for each trial, so that no block of P is ever formed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops import work
from kpops.engines.base import Engine
from kpops.engines.exclusive import exclusive_compute
from kpops.kinds import described
from kpops.operators.base import Adjoint, Product, Scaled, TrajectoryOperator
from kpops.operators.propagator import Propagator
from kpops.operators.reduce import Restriction
from kpops.spectral import common
from kpops.spectral.scaling import undone


@common.in_full_precision
@work.shown
def observability_gramian(
    lin: Any, times: Sequence[int] | None = None, *, progress: bool = False
) -> xr.Dataset:
    """Finite-horizon observability Gramians: how strongly the future shows a perturbation.

    Parameters
    ----------
    lin : Linearization or Propagator
        A linearized model, or its ``P``.
    times : sequence of int, optional
        Positions along time at which the matrices are returned, each of ``trial * unit^2``
        numbers. Default: the first.
    progress : bool
        Show a bar of the steps.

    Returns
    -------
    Dataset
        ``gramian(trial, at_time, unit, unit_in)`` at these times and ``trace(trial, time)`` at all
        times, in the dtype of `lin`; zero where a step is not valid.

    Raises
    ------
    TypeError
        If `lin` is neither a Linearization nor a Propagator.
    ValueError
        If a time is out of range.

    See Also
    --------
    controllability_gramian : The mirror image.
    propagator_norm : The root of the sum of all traces.

    Notes
    -----
    ``S_T = I`` and ``S_t = I + A[t+1]^T S_{t+1} A[t+1]``, so that ``q^T S_t q`` is the squared norm
    of the trajectory that a perturbation q of the state at time t makes from then on, and
    ``||P||_F^2 = sum_t tr S_t``. For constant A it tends to the solution of the discrete Lyapunov
    equation (Antoulas 2005, Approximation of Large-Scale Dynamical Systems, section 4.3) as the
    horizon grows.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(2, 3, batch_first=True), torch.zeros(2, 4, 2))
    >>> gramians = kpops.observability_gramian(lin)
    >>> dict(gramians.gramian.sizes)
    {'trial': 2, 'at_time': 1, 'unit': 3, 'unit_in': 3}
    >>> float(gramians.trace.isel(trial=0, time=-1))  # the last step shows itself alone
    3.0
    """
    return _gramians(lin, times, "observability", 0)


@common.in_full_precision
@work.shown
def controllability_gramian(
    lin: Any, times: Sequence[int] | None = None, *, progress: bool = False
) -> xr.Dataset:
    """Finite-horizon controllability Gramians: how strongly past perturbations reach a state.

    Parameters
    ----------
    lin : Linearization or Propagator
        A linearized model, or its ``P``.
    times : sequence of int, optional
        Positions along time at which the matrices are returned, each of ``trial * unit^2``
        numbers. Default: the last.
    progress : bool
        Show a bar of the steps.

    Returns
    -------
    Dataset
        ``gramian(trial, at_time, unit, unit_in)`` at these times and ``trace(trial, time)`` at all
        times, in the dtype of `lin`; zero where a step is not valid.

    Raises
    ------
    TypeError
        If `lin` is neither a Linearization nor a Propagator.
    ValueError
        If a time is out of range.

    See Also
    --------
    observability_gramian : The mirror image.

    Notes
    -----
    ``C_1 = I`` and ``C_t = I + A[t] C_{t-1} A[t]^T``: the covariance that white noise of unit
    variance at every step has made by time t. ``||P||_F^2 = sum_t tr C_t``.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.RNN(2, 3, batch_first=True), torch.zeros(2, 4, 2))
    >>> forth, back = kpops.observability_gramian(lin), kpops.controllability_gramian(lin)
    >>> bool(abs(forth.trace.sum() - back.trace.sum()) < 1e-4)
    True
    """
    return _gramians(lin, times, "controllability", -1)


def propagator_norm(op: TrajectoryOperator) -> float | None:
    """Return the exact Frobenius norm of a propagator, or None for other operators.

    Parameters
    ----------
    op : TrajectoryOperator
        P, an adjoint or multiple of it, a selection ``P.select(...)``, or a block ``R P R'*``.

    Returns
    -------
    float or None
        None if `op` is none of these.

    Notes
    -----
    The recursion of :func:`observability_gramian` takes about ``4 S^3`` operations for each trial
    and step. A selection puts the projection on its rows in the place of I, and its columns choose
    the entries of the diagonal that are summed.

    Examples
    --------
    >>> import torch, kpops
    >>> from kpops.spectral.gramian import propagator_norm
    >>> cell = torch.nn.RNN(1, 1, batch_first=True, bias=False).double()
    >>> for weight in cell.parameters():
    ...     _ = torch.nn.init.ones_(weight)
    >>> lin = kpops.linearize(cell, torch.zeros(1, 3, 1).double())
    >>> round(propagator_norm(lin.P) ** 2, 9)  # a lower triangle of ones
    6.0
    """
    total = 0.0
    with exclusive_compute(op.device):
        window = _window(op)
        if window is None:
            return None
        work.expect(window.rows.shape[1], "steps")
        for t, gramian, scale in _observability(window.P.engine, window.rows):
            work.advance(1)
            seen = gramian.diagonal(dim1=1, dim2=2).double() * window.columns[:, t]
            total += float(scale @ seen.sum(1))
    return abs(window.factor) * math.sqrt(total)


# Which part of which propagator an operator is.


@dataclass(frozen=True)
class _Window:
    """``factor * D_rows P D_columns``, or its adjoint, with diagonals of zeros and ones.

    `rows` and `columns` are (trial, time, unit).
    """

    P: Propagator
    rows: Tensor
    columns: Tensor
    factor: float = 1.0
    adjoint: bool = False


def _window(op: TrajectoryOperator) -> _Window | None:
    if isinstance(op, Propagator):
        trajectory = op.engine.trajectory
        valid = trajectory.restrict(torch.ones_like(trajectory.states)[None])[0]
        return _Window(op, valid, valid)
    if isinstance(op, Scaled):
        inner = _window(op.operator)
        return inner and replace(inner, factor=op.factor * inner.factor)
    if isinstance(op, Adjoint):
        inner = _window(op.parent)
        return inner and replace(inner, adjoint=not inner.adjoint)
    return _selected(op) if isinstance(op, Product) else None


def _selected(op: Product) -> _Window | None:
    """The window of ``R ... P ... R'*``."""
    middle, left, right = list(op.factors), [], []
    while middle and isinstance(middle[0], Restriction):
        left.append(middle.pop(0))
    while middle and isinstance(getattr(middle[-1], "parent", None), Restriction):
        right.append(middle.pop().H)
    inner = _window(middle[0]) if len(middle) == 1 else None
    if inner is None:
        return None
    rows, columns = (_chosen(left), _chosen(right))[:: -1 if inner.adjoint else 1]
    return replace(inner, rows=inner.rows * rows, columns=inner.columns * columns)


def _chosen(restrictions: list[Restriction]) -> Tensor | float:
    """Ones where the restrictions, the last of which acts first, keep an entry."""
    if not restrictions:
        return 1.0
    first = restrictions[0]
    ones = torch.ones(1, *first.codomain.shape, dtype=first.torch_dtype, device=first.device)
    for restriction in restrictions:
        ones = restriction.apply_adjoint(ones)
    return ones[0]


# The recursions.


def _observability(engine: Engine, rows: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Times t, matrices M (trial, unit, unit) and factors s with S_t = s M, backwards.

    rows : (trial, time, unit), the diagonals that stand for I.
    """
    last = rows.shape[1] - 1
    gramian = torch.diag_embed(rows[:, last])
    scale = gramian.new_ones(len(rows), dtype=torch.float64)
    yield last, gramian, scale
    for t in reversed(range(last)):
        A = engine.step_jacobians(t + 1)
        gramian, scale = _kept_finite(A.mT @ gramian @ A, scale)
        gramian.diagonal(dim1=1, dim2=2).add_(rows[:, t] / scale[:, None])
        yield t, gramian, scale


def _controllability(engine: Engine, valid: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The same for C_t = s M, forwards."""
    gramian = torch.diag_embed(valid[:, 0])
    scale = gramian.new_ones(len(valid), dtype=torch.float64)
    yield 0, gramian, scale
    for t in range(1, valid.shape[1]):
        A = engine.step_jacobians(t) * valid[:, t, :, None]
        gramian, scale = _kept_finite(A @ gramian @ A.mT, scale)
        gramian.diagonal(dim1=1, dim2=2).add_(valid[:, t] / scale[:, None])
        yield t, gramian, scale


def _kept_finite(gramian: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Move the size of large matrices, which are squares of entries of P, into the factor."""
    size = gramian.abs().amax((1, 2))
    large = size > torch.finfo(gramian.dtype).max ** 0.25
    if not large.any():
        return gramian, scale
    size = torch.where(large, size, 1)
    return gramian / size[..., None, None], scale * size


# Labels.


def _gramians(lin: Any, times: Sequence[int] | None, kind: str, default: int) -> xr.Dataset:
    P = lin if isinstance(lin, TrajectoryOperator) else getattr(lin, "P", lin)
    if not isinstance(P, Propagator):
        raise TypeError(
            f"lin is {described(lin)}: pass a Linearization, or its P, of a model that is "
            "forced by states"
        )
    n_trials, n_steps, n_units = P.domain.shape
    chosen = _positions([default] if times is None else times, n_steps)
    recursion = _observability if kind == "observability" else _controllability
    with exclusive_compute(P.device):  # tensors of inference mode could not be written to inside
        window = _window(P)
        assert window is not None
        kept = torch.empty(n_trials, len(chosen), n_units, n_units, dtype=torch.float64)
        traces = torch.empty(n_trials, n_steps, dtype=torch.float64)
        work.expect(n_steps, "steps")
        for t, gramian, scale in recursion(P.engine, window.rows):
            work.advance(1)
            traces[:, t] = scale * gramian.diagonal(dim1=1, dim2=2).double().sum(1)
            for i in np.flatnonzero(chosen == t):
                symmetric = (gramian + gramian.mT) / 2
                kept[:, i] = scale[:, None, None] * symmetric.double()
    settings = {"times": chosen.tolist()}
    return xr.Dataset(
        {
            "gramian": _labelled(P, kept, chosen, f"{kind} Gramian"),
            "trace": P.domain.keep(("trial", "time")).label(
                undone(traces, 1.0, P, f"trace of the {kind} Gramian"),
                long_name=f"trace of the {kind} Gramian",
            ),
        },
        coords=common.identity(P),
        attrs=common.configuration(P, **settings),
    )


def _labelled(P: Propagator, matrices: Tensor, times: np.ndarray, long_name: str) -> xr.DataArray:
    every = {k: c.described(k) for k, c in P.domain.coords.items()}
    coords = {k: c for k, c in every.items() if "time" not in c[0]}
    of_units = {k: c for k, c in coords.items() if c[0] == ("unit",)}
    inside = {f"{k}_in": (("unit_in",), *c[1:]) for k, c in of_units.items()}
    _, labels, attrs = every["time"]
    at = {"at_time": (("at_time",), labels[times], attrs)}
    return xr.DataArray(
        undone(matrices, 1.0, P, long_name),
        dims=("trial", "at_time", "unit", "unit_in"),
        coords=coords | inside | at,
        attrs={"long_name": long_name, "units": "1"},
    )


def _positions(times: Sequence[int], n_steps: int) -> np.ndarray:
    wanted = np.atleast_1d(np.asarray(times))
    if wanted.dtype.kind not in "iu" or ((wanted < -n_steps) | (wanted >= n_steps)).any():
        raise ValueError(f"times={times!r}: choose positions from 0 to {n_steps - 1}, as ints")
    return np.arange(n_steps)[wanted]
