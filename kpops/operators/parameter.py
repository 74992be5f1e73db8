"""The parameter Jacobian J of one step and the parameter operator K = J J*."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kpops.engines.base import Engine
from kpops.engines.exclusive import exclusive_compute
from kpops.engines.gated.unit_blocks import UnitBlocks
from kpops.labels import Space
from kpops.operators.base import TrajectoryOperator


class ParameterJacobian(TrajectoryOperator):
    """J: the forcing ``df/dtheta dtheta`` that a change of parameters exerts on every step.

    Parameters
    ----------
    engine : Engine
        Computes the action.
    parameters : Space
        The flat parameter vector, in the order of `names`.
    space : Space
        The trajectory space (trial, time, unit).
    names : sequence of str
        The parameters that J sees.
    """

    def __init__(
        self, engine: Engine, parameters: Space, space: Space, names: Sequence[str]
    ) -> None:
        states = engine.trajectory.states
        super().__init__(parameters, space, dtype=states.dtype, device=states.device, symbol="J")
        self.engine = engine
        self.names = tuple(names)

    def _apply(self, block: Tensor) -> Tensor:
        return self.engine.parameter_jvp(block, self.names)

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        return self.engine.parameter_vjp(block, self.names)


class ParameterOperator(TrajectoryOperator):
    """K = scale J J*: how a gradient step, pooled over trials and time, forces every step.

    Restricted to some of the parameters it is K_j, and K is the sum of the K_j.

    Parameters
    ----------
    engine : Engine
        Computes the action.
    space : Space
        The trajectory space (trial, time, unit).
    names : sequence of str
        The parameters that K sees.
    scale : float
        1 for ``measure="sum"``, one over the number of valid steps for ``measure="mean"``.
    symbol : str
        ``"K"``, or ``"K[name]"`` for one parameter.
    """

    def __init__(
        self, engine: Engine, space: Space, names: Sequence[str], scale: float, symbol: str = "K"
    ) -> None:
        states = engine.trajectory.states
        super().__init__(
            space,
            space,
            dtype=states.dtype,
            device=states.device,
            symbol=symbol,
            self_adjoint=True,
            positive=True,
        )
        self.engine = engine
        self.names = tuple(names)
        self.scale = scale

    def _apply(self, block: Tensor) -> Tensor:
        image = self.engine.parameter_gram(block, self.names)
        return image if self.scale == 1 else self.scale * image

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        return self._apply(block)

    def _numbers_per_vector(self) -> int:
        return super()._numbers_per_vector() + self._n_parameters

    @property
    def _n_parameters(self) -> int:
        return sum(self.engine.parameters[name].numel() for name in self.names)

    def _make_root(self) -> TrajectoryOperator:
        size = self.engine.factor_size(self.names)
        if size is not None and size <= self._n_parameters:
            factor: TrajectoryOperator = ThinFactor(self.engine, size, self.domain, self.names)
        else:
            space = Space(("parameter",), (self._n_parameters,))
            factor = ParameterJacobian(self.engine, space, self.domain, self.names)
        return factor if self.scale == 1 else self.scale**0.5 * factor

    def unit_blocks(self) -> UnitBlocks | None:
        """K unit by unit, where it couples no two of them; else None."""
        with exclusive_compute(self.device):
            blocks = self.engine.unit_blocks(self.names)
            return blocks and blocks.scaled(self.scale)


class ThinFactor(TrajectoryOperator):
    """F with ``K = F F*``, of as few columns as the features behind K have dims.

    Parameters
    ----------
    engine : Engine
        Computes the action.
    size : int
        Number of columns.
    space : Space
        The trajectory space (trial, time, unit).
    names : sequence of str
        The parameters that K sees.
    """

    def __init__(self, engine: Engine, size: int, space: Space, names: Sequence[str]) -> None:
        states = engine.trajectory.states
        coefficients = Space(("coefficient",), (size,))
        super().__init__(coefficients, space, dtype=states.dtype, device=states.device, symbol="F")
        self.engine = engine
        self.names = tuple(names)

    def _apply(self, block: Tensor) -> Tensor:
        return self.engine.factor_jvp(block, self.names)

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        return self.engine.factor_vjp(block, self.names)
