"""The readout C, linearised about the trajectory, and its own parameters."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from kpops.engines.rowwise import Rowwise
from kpops.engines.site_engine import SiteTrajectory
from kpops.engines.trajectory import Trajectory
from kpops.labels import Space
from kpops.operators.base import Product, TrajectoryOperator
from kpops.operators.shapes import Outputs, Parameters, States


class _ReadoutOperator(TrajectoryOperator):
    def __init__(
        self,
        rows: Rowwise,
        trajectory: Trajectory | SiteTrajectory,
        domain: Space,
        outputs: Space,
        symbol: str,
    ) -> None:
        h, precision = trajectory.states, trajectory.precision
        super().__init__(
            domain, outputs, dtype=h.dtype, device=h.device, symbol=symbol, precision=precision
        )
        self.rows = rows
        self.trajectory = trajectory

    def second_order(
        self, error: Float[Tensor, "trial *time output"], dtheta: Parameters, dh: States
    ) -> tuple[Parameters, States]:
        """The second derivative of error . C(h) applied to (dtheta, dh), by them.

        `dtheta` are the readout's own parameters, of which there may be none.
        """
        c, names = self._by_row(error[None])[0], tuple(self.rows.parameters)
        by_theta, by_h = self.rows.second_order(c, dtheta, self._by_row(dh), names)
        return by_theta, self.trajectory.restrict(by_h.reshape(dh.shape))

    def _by_row(self, q: Float[Tensor, " block *given"]) -> Float[Tensor, "block row x"]:
        return self.trajectory.restrict(q).reshape(len(q), len(self.rows.h), -1)

    def _in(self, space: Space, q: Float[Tensor, "block row x"]) -> Float[Tensor, " block *image"]:
        return self.trajectory.restrict(q.reshape(len(q), *space.shape))


class ReadoutJacobian(_ReadoutOperator):
    """C: how a change of the states changes the outputs, step by step.

    Parameters
    ----------
    rows : Rowwise
        The readout at every (trial, time), or the outputs of a network at every trial.
    trajectory : Trajectory
        Gives the mask.
    states, outputs : Space
        (trial, time, unit) and (trial, time, output), or (trial, unit) and (trial, ..., output).
    """

    def __init__(
        self, rows: Rowwise, trajectory: Trajectory | SiteTrajectory, states: Space, outputs: Space
    ) -> None:
        super().__init__(rows, trajectory, states, outputs, "C")
        self.block_diagonal_dims = states.dims[:-1]

    def _apply(self, q: States) -> Outputs:
        return self._in(self.codomain, self.rows.state_jvp(self._by_row(q)))

    def _apply_adjoint(self, q: Outputs) -> States:
        return self._in(self.domain, self.rows.state_vjp(self._by_row(q)))


class ReadoutParameterJacobian(_ReadoutOperator):
    """J_C: how a change of the readout's own parameters changes the outputs.

    Parameters as for :class:`ReadoutJacobian`, with the space (parameter,) for `states`; `symbol`
    is another one where the parameters are those of a whole network.
    """

    pools_trials = True

    def __init__(
        self,
        rows: Rowwise,
        trajectory: Trajectory | SiteTrajectory,
        parameters: Space,
        outputs: Space,
        symbol: str = "J_C",
    ) -> None:
        super().__init__(rows, trajectory, parameters, outputs, symbol)
        self.names = tuple(rows.parameters)

    def _apply(self, q: Parameters) -> Outputs:
        return self._in(self.codomain, self.rows.parameter_jvp(q, self.names))

    def _apply_adjoint(self, q: Outputs) -> Parameters:
        return self.rows.parameter_vjp(self._by_row(q), self.names)


class OutputKernel(Product):
    """S S*, for the derivative S of the outputs of a network by its parameters."""

    def __init__(self, S: ReadoutParameterJacobian) -> None:
        super().__init__(S, S.H)
        self.S = S

    def _apply(self, q: Outputs) -> Outputs:
        S = self.S
        if self.parts.many:  # between the two, processes add up
            return super()._apply(q)
        image = S.rows.parameter_gram(S._by_row(q), S.names)
        S.count(2 * len(q))
        return S._in(S.codomain, image)

    def _apply_adjoint(self, q: Outputs) -> Outputs:
        return self._apply(q)
