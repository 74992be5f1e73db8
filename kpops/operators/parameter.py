"""The parameter Jacobian J of one step, K = J J* and the flow operator P K P*."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from kpops.engines.blocks import Blocks
from kpops.engines.exclusive import exclusive_compute
from kpops.labels import Space
from kpops.operators.base import Product, TrajectoryOperator
from kpops.operators.propagator import AnyEngine, EngineOperator, Propagator
from kpops.operators.shapes import Parameters, States


class ParameterJacobian(EngineOperator):
    """J: the forcing ``df/dtheta dtheta`` that a change of parameters exerts on every step.

    `parameters` is the space of the flat parameter vector, in the order of `names`; the others are
    as for :class:`ParameterOperator`.
    """

    pools_trials = True

    def __init__(
        self, engine: AnyEngine, parameters: Space, space: Space, names: Sequence[str]
    ) -> None:
        super().__init__(engine, parameters, space, "J")
        self.names = tuple(names)

    def _apply(self, q: Parameters) -> States:
        return self.engine.parameter_jvp(q, self.names)

    def _apply_adjoint(self, q: States) -> Parameters:
        return self.engine.parameter_vjp(q, self.names)


class ThinFactor(EngineOperator):
    """F with ``K = F F*``, of as few columns as the features behind K have dimensions.

    Parameters as for :class:`ParameterOperator`, and `size`, the number of columns.
    """

    pools_trials = True

    def __init__(self, engine: AnyEngine, size: int, space: Space, names: Sequence[str]) -> None:
        super().__init__(engine, Space(("coefficient",), (size,)), space, "F")
        self.names = tuple(names)

    def _apply(self, q: Float[Tensor, "block coefficient"]) -> States:
        return self.engine.factor_jvp(q, self.names)

    def _apply_adjoint(self, q: States) -> Float[Tensor, "block coefficient"]:
        return self.engine.factor_vjp(q, self.names)


class ParameterOperator(EngineOperator):
    """K = scale J J*: how a gradient step, pooled over trials and time, forces every step.

    Restricted to some of the parameters it is K_j, and K is the sum of the K_j.

    Parameters
    ----------
    engine, space
        As for :class:`Propagator`.
    names : sequence of str
        The parameters that K sees.
    scale : float
        1 for ``measure="sum"``, one over the number of valid steps for ``measure="mean"``.
    symbol : str
        ``"K"``, or ``"K[name]"`` for one parameter.
    """

    def __init__(
        self, engine: AnyEngine, space: Space, names: Sequence[str], scale: float, symbol: str = "K"
    ) -> None:
        super().__init__(engine, space, space, symbol, self_adjoint=True, positive=True)
        self.names = tuple(names)
        self.scale = scale
        self._n_parameters = sum(engine.parameters[name].numel() for name in names)
        self.is_composed = space.parts.many

    def _apply(self, q: States) -> States:
        if self.is_composed:  # one sum over processes, of the thinner of the two sides
            root = self.root
            assert root is not None
            return root.apply(root.apply_adjoint(q))
        image = self.engine.parameter_gram(q, self.names)
        return image if self.scale == 1 else self.scale * image

    def _numbers_per_vector(self) -> int:
        return super()._numbers_per_vector() + self._n_parameters

    def _make_root(self) -> TrajectoryOperator:
        size = self.engine.factor_size(self.names)
        if size is not None and size <= self._n_parameters:
            factor: TrajectoryOperator = ThinFactor(self.engine, size, self.domain, self.names)
        else:
            space = Space(("parameter",), (self._n_parameters,))
            factor = ParameterJacobian(self.engine, space, self.domain, self.names)
        return factor if self.scale == 1 else self.scale**0.5 * factor

    def unit_blocks(self) -> Blocks | None:
        """Return K unit by unit, if it does not couple units; else None."""
        with exclusive_compute(self.device):
            blocks = self.engine.unit_blocks(self.names)
            return blocks and blocks.scaled(self.scale)


class FlowOperator(Product):
    """P K P*: how gradient descent moves the trajectories, ``dh = -eta P K P* Err``.

    Equal to the product of its factors, for which the engine may know a shorter way: in a stack of
    layers, P passes up again what the layers of K pass up within a step.

    Parameters
    ----------
    P, K : TrajectoryOperator
        The propagator and the parameter operator of the same linearization.
    """

    def __init__(self, P: TrajectoryOperator, K: TrajectoryOperator) -> None:
        super().__init__(P, K, P.H)
        self.P, self.K = P, K

    def _apply(self, q: States) -> States:
        known = isinstance(self.P, Propagator) and isinstance(self.K, ParameterOperator)
        if not known or self.parts.many:
            return super()._apply(q)  # multiples of them, and trials of several processes
        image = self.K.engine.flow(q, self.K.names)
        self.P.count(2 * len(q))
        self.K.count(len(q))
        return image if self.K.scale == 1 else image.mul_(self.K.scale)

    def _apply_adjoint(self, q: States) -> States:
        return self._apply(q)

    def _numbers_per_vector(self) -> int:
        # Nothing else holds the results of P*, K and P.
        return self.domain.size + self.K._numbers_per_vector()
