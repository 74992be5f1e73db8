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
