"""The derivative of any function of tensors, and its transpose, by reverse mode alone.

Forward mode is not asked: it passes through ``torch.no_grad``, hooks on gradients and
``torch.autograd.Function`` in other ways than the backward pass that training uses, and then J and
J* would belong to different maps. The pullback ``c -> c^T df`` is linear in c, so that its own
pullback is ``u -> df u``: the two are adjoint by construction, and neither evaluates the function
again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp


class Differential:
    """df of a function at a point.

    Parameters
    ----------
    function : callable
        Of one argument, a tensor or a dict of tensors; returns a tensor.
    point : Tensor or dict of str to Tensor
        Where the derivative is taken.
    """

    def __init__(self, function: Callable[[Any], Tensor], point: Any) -> None:
        made: Any = vjp(function, point)
        self.value, self._pullback = made

    def pull(self, cotangent: Tensor) -> Any:
        """c^T df, of the form of the point."""
        return self._pullback(cotangent)[0]

    @cached_property
    def push(self) -> Callable[[Any], Tensor]:
        """The map of a tangent u of the form of the point to df u; ask for it outside of vmap."""
        transpose: Any = vjp(self.pull, torch.zeros_like(self.value))[1]
        return lambda tangent: transpose(tangent)[0]
