"""The linearized flow propagator P and its inverse."""

from __future__ import annotations

from typing import Any, TypeAlias

from kpops.labels import Space
from kpops.operators.base import TrajectoryOperator
from kpops.operators.shapes import States

AnyEngine: TypeAlias = Any
"""An Engine, or a SiteEngine."""


class EngineOperator(TrajectoryOperator):
    """An operator that an engine computes."""

    def __init__(
        self, engine: AnyEngine, domain: Space, codomain: Space, symbol: str, **known: Any
    ) -> None:
        h = engine.trajectory.states
        known |= {"precision": engine.trajectory.precision}
        super().__init__(domain, codomain, dtype=h.dtype, device=h.device, symbol=symbol, **known)
        self.engine = engine


class Propagator(EngineOperator):
    """P: how a perturbation of every step changes the trajectory.

    ``(Pq)[t] = q[t] + A[t] (Pq)[t-1]`` with ``(Pq)[0] = 0`` and A the state Jacobian. Its adjoint
    is backpropagation through time. It is block diagonal over trials and lower triangular in time
    with unit diagonal, so that det P = 1 and tr P = n.

    Parameters
    ----------
    engine : Engine or SiteEngine
        Computes the recursion.
    space : Space
        The trajectory space (trial, time, unit).
    """

    def __init__(self, engine: AnyEngine, space: Space) -> None:
        super().__init__(engine, space, space, "P")
        self.block_diagonal_dims = ("trial",)

    def _apply(self, q: States) -> States:
        return self.engine.propagate(q)

    def _apply_adjoint(self, q: States) -> States:
        return self.engine.backpropagate(q)


class InversePropagator(EngineOperator):
    """P^-1, the Frechet derivative of the equations of motion: ``v[t] - A[t] v[t-1]``.

    No recursion: every step is independent of the others. Parameters as for :class:`Propagator`.
    """

    def __init__(self, engine: AnyEngine, space: Space) -> None:
        super().__init__(engine, space, space, "P^-1")
        self.block_diagonal_dims = ("trial",)

    def _apply(self, q: States) -> States:
        return self.engine.difference(q)

    def _apply_adjoint(self, q: States) -> States:
        return self.engine.difference_adjoint(q)
