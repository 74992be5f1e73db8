"""Jacobian-vector products of any function of tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vjp


def push_forward(function: Callable[[Any], Tensor], point: Any, tangent: Any) -> Tensor:
    """Derivative of `function` at `point` along `tangent`.

    By forward mode; where an operation lacks it (fused recurrent kernels, weight norm), by two
    reverse passes: the pullback ``c -> c^T df`` is linear in c, so that its own pullback is
    ``u -> df u``.
    """
    _load_forward_mode()
    try:
        return jvp(function, (point,), (tangent,))[1]
    except NotImplementedError:
        pull = vjp(function, point)[1]
        zero = torch.zeros_like(function(point))
        transpose = vjp(lambda c: pull(c)[0], zero)[1]
        return transpose(tangent)[0]


@cache
def _load_forward_mode() -> None:
    """Make torch load its forward mode, which warns of a deprecation of torch's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))
