"""The flow operator P K P*, the state-space neural tangent kernel."""

from __future__ import annotations

from torch import Tensor

from kpops.operators.base import Product, TrajectoryOperator
from kpops.operators.parameter import ParameterOperator
from kpops.operators.propagator import Propagator


class FlowOperator(Product):
    """P K P*: how gradient descent moves the trajectories, ``dh = -eta P K P* Err``.

    The same as the product of its factors, for which the engine may know a shorter way: in a stack
    of layers, what the layers of K pass up within a step, P passes up once more.

    Parameters
    ----------
    P : TrajectoryOperator
        The propagator.
    K : TrajectoryOperator
        The parameter operator, of the same linearization.
    """

    def __init__(self, P: TrajectoryOperator, K: TrajectoryOperator) -> None:
        super().__init__(P, K, P.H)
        self.P, self.K = P, K

    def _apply(self, block: Tensor) -> Tensor:
        if not (isinstance(self.P, Propagator) and isinstance(self.K, ParameterOperator)):
            return super()._apply(block)  # multiples of them
        image = self.K.engine.flow(block, self.K.names)
        for operator, times in ((self.P, 2), (self.K, 1)):
            operator.count(times * len(block))
        return image if self.K.scale == 1 else image.mul_(self.K.scale)

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        return self._apply(block)

    def _numbers_per_vector(self) -> int:
        # What comes out of P*, K and P is not held by anybody else.
        return self.domain.size + self.K._numbers_per_vector()
