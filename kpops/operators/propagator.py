"""The linearized flow propagator P and its inverse."""

from __future__ import annotations

from torch import Tensor

from kpops.engines.base import Engine
from kpops.labels import Space
from kpops.operators.base import TrajectoryOperator


class Propagator(TrajectoryOperator):
    """P: what a perturbation of every step makes of the trajectory.

    ``(Pq)[t] = q[t] + A[t] (Pq)[t-1]`` with ``(Pq)[0] = 0`` and A the state Jacobian. Its adjoint
    is backpropagation through time. It is block diagonal over trials and lower triangular in time
    with unit diagonal, so that det P = 1 and tr P = n.

    Parameters
    ----------
    engine : Engine
        Computes the recursion.
    space : Space
        The trajectory space (trial, time, unit).
    """

    def __init__(self, engine: Engine, space: Space) -> None:
        states = engine.trajectory.states
        super().__init__(space, space, dtype=states.dtype, device=states.device, symbol="P")
        self.block_diagonal_dims = ("trial",)
        self.engine = engine

    def _apply(self, block: Tensor) -> Tensor:
        return self.engine.propagate(block)

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        return self.engine.backpropagate(block)


class InversePropagator(TrajectoryOperator):
    """P^-1, the Frechet derivative of the equations of motion: ``v[t] - A[t] v[t-1]``.

    No recursion: every step is independent of the others.

    Parameters
    ----------
    engine : Engine
        Computes the actions of A.
    space : Space
        The trajectory space (trial, time, unit).
    """

    def __init__(self, engine: Engine, space: Space) -> None:
        states = engine.trajectory.states
        super().__init__(space, space, dtype=states.dtype, device=states.device, symbol="P^-1")
        self.block_diagonal_dims = ("trial",)
        self.engine = engine

    def _apply(self, block: Tensor) -> Tensor:
        return self.engine.difference(block)

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        return self.engine.difference_adjoint(block)
