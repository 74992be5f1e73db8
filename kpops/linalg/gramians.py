"""Gramians of the propagator, and its exact Frobenius norm.

With A[t] the state Jacobian, ``P[s, t] = A[s] ... A[t+1]`` maps a perturbation at t to that of the
state at s. The matrices ``S_t = sum_s P[s,t]^T P[s,t]`` and ``C_t = sum_s P[t,s] P[t,s]^T`` obey
recursions of one S x S matrix for each trial, so no block of P is ever formed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from kpops import work
from kpops.engines.base import Engine
from kpops.engines.exclusive import exclusive_compute
from kpops.operators.base import Adjoint, Product, Scaled, TrajectoryOperator
from kpops.operators.propagator import Propagator
from kpops.operators.reduce import Restriction


def propagator_norm(op: TrajectoryOperator) -> float | None:
    """Exact Frobenius norm of P, an adjoint, multiple or selection of it; None of other operators.

    The recursion of :func:`_observability` takes about ``4 S^3`` operations for each trial and
    step. In a selection, or a block ``R P R'*``, the projection on its rows replaces I, and its
    columns choose the entries of the diagonal that are summed.
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
        total = float(op.parts.sum(torch.tensor(total, dtype=torch.float64)))
    return abs(window.factor) * math.sqrt(total)


Field = Float[Tensor, "trial time unit"]
Gramians = Iterator[tuple[int, Float[Tensor, "trial unit unit"], Float[Tensor, " trial"]]]


@dataclass(frozen=True)
class _Window:
    """``factor * D_rows P D_columns``, or its adjoint, with diagonals of zeros and ones."""

    P: Propagator
    rows: Field
    columns: Field
    factor: float = 1.0
    adjoint: bool = False


def _window(op: TrajectoryOperator) -> _Window | None:
    if isinstance(op, Propagator) and isinstance(op.engine, Engine):  # with steps in time
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


def _chosen(restrictions: list[Restriction]) -> Field | float:
    """Ones where the restrictions, the last of which acts first, keep an entry."""
    if not restrictions:
        return 1.0
    first = restrictions[0]
    ones = torch.ones(1, *first.codomain.shape, dtype=first.torch_dtype, device=first.device)
    for restriction in restrictions:
        ones = restriction.apply_adjoint(ones)
    return ones[0]


def _observability(engine: Engine, rows: Field) -> Gramians:
    """Times t, matrices M and factors s with S_t = s M, backwards; `rows` replaces I."""
    last = rows.shape[1] - 1
    gramian = torch.diag_embed(rows[:, last])
    scale = gramian.new_ones(len(rows), dtype=torch.float64)
    yield last, gramian, scale
    for t in reversed(range(last)):
        A = engine.step_jacobians(t + 1)
        gramian, scale = _kept_finite(A.mT @ gramian @ A, scale)
        gramian.diagonal(dim1=1, dim2=2).add_(rows[:, t] / scale[:, None])
        yield t, gramian, scale


def _controllability(engine: Engine, valid: Field) -> Gramians:
    """The same for C_t = s M, forwards."""
    gramian = torch.diag_embed(valid[:, 0])
    scale = gramian.new_ones(len(valid), dtype=torch.float64)
    yield 0, gramian, scale
    for t in range(1, valid.shape[1]):
        A = engine.step_jacobians(t) * valid[:, t, :, None]
        gramian, scale = _kept_finite(A @ gramian @ A.mT, scale)
        gramian.diagonal(dim1=1, dim2=2).add_(valid[:, t] / scale[:, None])
        yield t, gramian, scale


def _kept_finite(
    gramian: Float[Tensor, "trial unit unit"], scale: Float[Tensor, " trial"]
) -> tuple[Float[Tensor, "trial unit unit"], Float[Tensor, " trial"]]:
    """Move the size of large matrices, which hold squares of entries of P, into the factor."""
    size = gramian.abs().amax((1, 2))
    large = size > torch.finfo(gramian.dtype).max ** 0.25
    if not large.any():
        return gramian, scale
    size = torch.where(large, size, 1)
    return gramian / size[..., None, None], scale * size
