"""The readout C, linearised about the trajectory, and its own parameters."""

from __future__ import annotations

from torch import Tensor

from kpops.engines.rowwise import Rowwise
from kpops.engines.trajectory import Trajectory
from kpops.labels import Space
from kpops.operators.base import TrajectoryOperator


class ReadoutJacobian(TrajectoryOperator):
    """C: what a change of the states makes of the outputs, step by step.

    Parameters
    ----------
    rows : Rowwise
        The readout at every (trial, time).
    trajectory : Trajectory
        Gives the mask.
    states, outputs : Space
        (trial, time, unit) and (trial, time, output).
    """

    def __init__(
        self, rows: Rowwise, trajectory: Trajectory, states: Space, outputs: Space
    ) -> None:
        h = trajectory.states
        super().__init__(states, outputs, dtype=h.dtype, device=h.device, symbol="C")
        self.block_diagonal_dims = ("trial", "time")
        self.rows = rows
        self.trajectory = trajectory

    def _apply(self, block: Tensor) -> Tensor:
        tangents = self.rows.state_jvp(self.trajectory.restrict(block).flatten(1, 2))
        return self.trajectory.restrict(tangents.unflatten(1, self.codomain.shape[:2]))

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        cotangents = self.rows.state_vjp(self.trajectory.restrict(block).flatten(1, 2))
        return self.trajectory.restrict(cotangents.unflatten(1, self.domain.shape[:2]))


class ReadoutParameterJacobian(TrajectoryOperator):
    """J_C: what a change of the readout's own parameters makes of the outputs.

    Parameters
    ----------
    rows : Rowwise
        The readout at every (trial, time).
    trajectory : Trajectory
        Gives the mask.
    parameters, outputs : Space
        (parameter,) and (trial, time, output).
    """

    def __init__(
        self, rows: Rowwise, trajectory: Trajectory, parameters: Space, outputs: Space
    ) -> None:
        h = trajectory.states
        super().__init__(parameters, outputs, dtype=h.dtype, device=h.device, symbol="J_C")
        self.rows = rows
        self.trajectory = trajectory
        self.names = tuple(rows.parameters)

    def _apply(self, block: Tensor) -> Tensor:
        tangents = self.rows.parameter_jvp(block, self.names)
        return self.trajectory.restrict(tangents.unflatten(1, self.codomain.shape[:2]))

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        return self.rows.parameter_vjp(self.trajectory.restrict(block).flatten(1, 2), self.names)
