"""Traces of Gram operators, and of their squares, in the smaller space."""

from __future__ import annotations

import numpy as np

from kpops.linalg.budget import rows_of
from kpops.linalg.probes import Rows
from kpops.linalg.problem import SpectralProblem
from kpops.linalg.scaling import power_of_two
from kpops.linalg.traces.auto import TraceEstimate
from kpops.linalg.traces.runs import GramTrace
from kpops.linalg.vectors import VectorSpace
from kpops.operators.base import TrajectoryOperator


def gram_trace(
    op: TrajectoryOperator, cost: float, method: str, rng: np.random.Generator
) -> TraceEstimate:
    """Trace of ``A A*``, in the smaller of the two spaces."""
    factor = SpectralProblem(op, symmetric=False).factor
    assert factor is not None
    forth = rows_of(factor.apply, factor.domain.shape)
    back = rows_of(factor.apply_adjoint, factor.codomain.shape)
    inside, outside = (VectorSpace.of(op, side) for side in (factor.domain, factor.codomain))
    return TraceEstimate(GramTrace(forth, back, inside, outside, cost, rng), method)


class Gram:
    """``F* F`` on rows, divided by a power of two so that it is of the size of F."""

    def __init__(self, factor: TrajectoryOperator) -> None:
        self.forth = rows_of(factor.apply, factor.domain.shape)
        self.back = rows_of(factor.apply_adjoint, factor.codomain.shape)
        self.inside, self.outside = (
            VectorSpace.of(factor, side) for side in (factor.domain, factor.codomain)
        )
        self.scale = 0.0

    def __call__(self, rows: Rows) -> Rows:
        """Apply it."""
        images = self.forth(rows)
        self.scale = self.scale or power_of_two(self.outside.largest(images), images.dtype)
        return self.back(images / self.scale)


def squared_gram_trace(
    factor: TrajectoryOperator, cost: float, method: str, rng: np.random.Generator
) -> tuple[TraceEstimate, Gram]:
    """Trace of ``(F* F)^2`` in units of the scale of the action, and this action."""
    act = Gram(factor)
    run = GramTrace(act, act, act.inside, act.inside, cost, rng)
    return TraceEstimate(run, method), act
