"""The curvature of a loss: by the outputs, and through the model on parameter space."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.func import grad

from kpops.engines.differential import Differential
from kpops.engines.rowwise import on_each
from kpops.labels import Space
from kpops.operators.action import check_same
from kpops.operators.base import TrajectoryOperator
from kpops.operators.readout import ReadoutJacobian, ReadoutParameterJacobian
from kpops.operators.shapes import InCodomain, InDomain, Parameters


class LossRoot(TrajectoryOperator):
    """R with ``H = R R*``, the second derivative of a convex loss by the outputs.

    ``R = diag(d) - a b^T`` at each position of all dimensions but the last.

    Parameters
    ----------
    space : Space
        That of the outputs.
    d, a, b : Tensor
        Of its shape; without a and b, R is diagonal.
    """

    def __init__(
        self, space: Space, d: Tensor, a: Tensor | None = None, b: Tensor | None = None
    ) -> None:
        super().__init__(space, space, dtype=d.dtype, device=d.device, symbol="R")
        self.d, self.a, self.b = d, a, b
        self.block_diagonal_dims = space.dims[:-1]

    def _apply(self, q: InDomain) -> InCodomain:
        return self._combined(q, self.a, self.b)

    def _apply_adjoint(self, q: InCodomain) -> InDomain:
        return self._combined(q, self.b, self.a)

    def _combined(self, q: InDomain, a: Tensor | None, b: Tensor | None) -> InCodomain:
        if a is None or b is None:
            return self.d * q
        return self.d * q - a * (b * q).sum(-1, keepdim=True)


class LossHessian(TrajectoryOperator):
    """H, the second derivative of any loss by the outputs, by automatic differentiation.

    Parameters
    ----------
    space : Space
        That of the outputs.
    loss : callable
        The loss of outputs of its shape.
    outputs : Tensor
        Where to take the derivative.
    """

    def __init__(self, space: Space, loss: Callable[[Tensor], Tensor], outputs: Tensor) -> None:
        super().__init__(
            space,
            space,
            dtype=outputs.dtype,
            device=outputs.device,
            symbol="H",
            self_adjoint=True,
        )
        self.loss, self.outputs = loss, outputs

    def _apply(self, q: InDomain) -> InCodomain:
        return on_each(Differential(grad(self.loss), self.outputs).vjp, q)


class SideBySide(TrajectoryOperator):
    r"""``[A, B, ...]``: the sum of operators, each of which acts on its part of a flat vector.

    Parameters
    ----------
    domain : Space
        The flat vectors, whose parts are the domains of the blocks in turn.
    \*blocks : TrajectoryOperator
        Operators to one codomain, in one dtype, on one device.
    """

    is_composed = True

    def __init__(self, domain: Space, *blocks: TrajectoryOperator) -> None:
        for left, right in pairwise(blocks):
            check_same(left, right, "codomain", "codomain")
        symbol = f"[{', '.join(block.symbol for block in blocks)}]"
        alike = blocks[0].alike(*blocks[1:])
        super().__init__(domain, blocks[0].codomain, symbol=symbol, **alike)
        self.blocks = blocks

    def _apply(self, q: InDomain) -> InCodomain:
        parts = q.split([block.domain.size for block in self.blocks], dim=1)
        images = [block.apply(part) for block, part in zip(self.blocks, parts, strict=True)]
        return sum(images[1:], images[0])

    def _apply_adjoint(self, q: InCodomain) -> InDomain:
        return torch.cat([block.apply_adjoint(q).flatten(1) for block in self.blocks], 1)


class Hessian(TrajectoryOperator):
    r"""The Hessian of a loss L(C(h)) by all parameters that learn.

    With the states h[t] = f(theta, h[t-1]), S = P J = dh/dtheta, the error e = dL/dy of the outputs
    and the adjoint a = P* C* e of the states held fixed, the Lagrangian
    ``L(C(h)) + sum_t a[t] . (f(theta, h[t-1]) - h[t])`` is stationary in the states. So

        L'' = D* H D + [1; S]* M [1; S],   D = [C S, J_C],

    where M is the second derivative of ``sum_t a[t] . f(theta, h[t-1]) + e . C(h)`` by parameters
    and states. It couples no two steps, so all are differentiated at once, and the time recursions
    of a matvec are those of S and S*.

    Parameters
    ----------
    domain : Space
        The parameters of the model, then those of the readout.
    second_order, names
        The action of M but for the readout (:meth:`kpops.Linearization.second_order`), and the
        names of the model's parameters.
    S : TrajectoryOperator
        The sensitivity.
    C : ReadoutJacobian or None
        The readout.
    J_C : ReadoutParameterJacobian or None
        The Jacobian by its own parameters, if some learn.
    H : TrajectoryOperator
        The second derivative of the loss by the outputs.
    adjoint, error : Tensor
        a and e.
    """

    is_composed = True

    def __init__(
        self,
        domain: Space,
        second_order: Callable[..., tuple[Tensor, Tensor]],
        names: tuple[str, ...],
        S: TrajectoryOperator,
        C: ReadoutJacobian | None,
        J_C: ReadoutParameterJacobian | None,
        H: TrajectoryOperator,
        adjoint: Tensor,
        error: Tensor,
    ) -> None:
        super().__init__(domain, domain, symbol="L''", self_adjoint=True, **S.alike(H))
        self.second_order, self.names = second_order, names
        self.S, self.C, self.J_C, self.of_loss = S, C, J_C, H
        self.adjoint, self.error = adjoint, error
        self.parts = S.parts

    def _apply(self, q: Parameters) -> Parameters:
        n = self.S.domain.size
        dtheta, own = q.split([n, q.shape[1] - n], dim=1)
        dh = self.S.apply(dtheta)
        by_theta, by_h = self.second_order(self.adjoint, dtheta, dh, self.names)
        if self.C is None:
            by_own, by_h = own.new_zeros(own.shape), by_h + self.of_loss.apply(dh)
        else:
            dy = self.C.apply(dh)
            dy = self.of_loss.apply(dy if self.J_C is None else dy + self.J_C.apply(own))
            readout = self.C if self.J_C is None else self.J_C
            by_own, by_states = readout.second_order(self.error, own, dh)
            by_h = by_h + by_states + self.C.apply_adjoint(dy)
        by_theta, by_own = self.parts.sum(by_theta, by_own)
        by_theta = by_theta + self.S.apply_adjoint(by_h)
        if self.J_C is not None:
            by_own = by_own + self.J_C.apply_adjoint(dy)
        return torch.cat([by_theta, by_own], 1)

    def _numbers_per_vector(self) -> int:
        return super()._numbers_per_vector() + 4 * self.S.codomain.size
