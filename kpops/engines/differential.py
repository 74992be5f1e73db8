"""The derivative of any function of tensors, and its transpose, by reverse mode.

Forward mode passes through ``torch.no_grad``, hooks on gradients and ``torch.autograd.Function`` in
other ways than the backward pass that training uses, and then J and J* would belong to different
maps. But the pullback ``c -> c^T df`` is linear in c, so its own pullback is ``u -> df u``. The two
are adjoint by construction, and neither evaluates the function again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vjp


class Differential:
    """df of a function of one tensor, or of one dict of tensors, at a point."""

    def __init__(self, function: Callable[[Any], Tensor], point: Any) -> None:
        made: Any = vjp(function, point)
        self.value, self._pullback = made
        self._function, self._point = function, point

    def vjp(self, cotangent: Tensor) -> Any:
        """c^T df, of the form of the point."""
        return self._pullback(cotangent)[0]

    @cached_property
    def jvp(self) -> Callable[[Any], Tensor]:
        """The map from a tangent u, of the form of the point, to df u; take it outside vmap."""
        # Without a reference to self, which would keep it until the next collection of garbage.
        function, point, pullback = self._function, self._point, self._pullback
        transpose: Any = vjp(lambda c: pullback(c)[0], torch.zeros_like(self.value))[1]

        def pushforward(tangent: Any) -> Tensor:
            try:
                return transpose(tangent)[0]
            except RuntimeError as error:
                if "is not implemented" not in str(error):
                    raise
                # A few backward passes, such as that of hardsigmoid, have no derivative.
                _load_forward_mode()
                return jvp(function, (point,), (tangent,))[1]

        return pushforward


@cache
def _load_forward_mode() -> None:
    """Make torch load its forward mode, during which it warns of its own deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))


def plain_gradients(
    function: Callable[[dict[str, Tensor], Any, Tensor], Tensor],
    parameters: dict[str, Tensor],
    x: Any,
    h: Tensor,
    cotangent: Tensor,
) -> tuple[Tensor | None, dict[str, Tensor | None]]:
    """c^T dy of ``y = f(theta, x, h)`` by h and by each parameter, as training takes it.

    None where y does not depend on it. It imports neither torch's compiler nor SymPy, which take
    two seconds, as do the first derivative of torch.func and the first cotangent of autograd.
    """
    with torch.enable_grad():
        leaves = [v.clone().requires_grad_() for v in (h, *parameters.values())]
        value = function(dict(zip(parameters, leaves[1:], strict=True)), x, leaves[0])
        gradients: Any = [None] * len(leaves)
        if value.requires_grad:
            gradients = torch.autograd.grad((cotangent * value).sum(), leaves, allow_unused=True)
    return gradients[0], dict(zip(parameters, gradients[1:], strict=True))
