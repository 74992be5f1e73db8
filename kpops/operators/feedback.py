"""Feedback from errors of the outputs to the states, by weights of its own."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from kpops.engines.base import Engine
from kpops.labels import Space
from kpops.operators.propagator import EngineOperator
from kpops.operators.shapes import InCodomain, InDomain


class OutputFeedback(EngineOperator):
    """B: the error of every step comes to its units by fixed weights, in place of C*.

    Parameters
    ----------
    engine : Engine
        Gives the mask.
    weights : Tensor, shape (unit, output)
        The same at every trial and step.
    outputs, states : Space
        Domain and codomain, which differ in their last dimension alone.
    """

    def __init__(
        self, engine: Engine, weights: Float[Tensor, "unit output"], outputs: Space, states: Space
    ) -> None:
        super().__init__(engine, outputs, states, "B")
        self.block_diagonal_dims = outputs.dims[:-1]
        self.weights = weights

    def _apply(self, q: InDomain) -> InCodomain:
        return self.engine.trajectory.restrict(q @ self.weights.mT)

    def _apply_adjoint(self, q: InCodomain) -> InDomain:
        return self.engine.trajectory.restrict(q @ self.weights)
