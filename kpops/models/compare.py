"""What the tensors that a module takes and makes in a run have to do with each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

View = Callable[[Tensor], Tensor]


def as_it_is(t: Tensor) -> Tensor:
    """All of t (trial, time, ...)."""
    return t


def time_first(t: Tensor) -> Tensor:
    """All of t as (time, trial, ...)."""
    return t.transpose(0, 1)


def last_step(t: Tensor) -> Tensor:
    """The last step of t, (trial, ...)."""
    return t[:, -1]


def classes_second(t: Tensor) -> Tensor:
    """All of t as (trial, output, time), as nn.CrossEntropyLoss has it."""
    return t.transpose(1, 2)


def tensors(nested: Any) -> list[Tensor]:
    """All tensors of what a module takes or returns, in order."""
    if isinstance(nested, Tensor):
        return [nested]
    if isinstance(nested, dict):
        nested = list(nested.values())
    if not isinstance(nested, tuple | list):
        nested = list(vars(nested).values()) if hasattr(nested, "__dataclass_fields__") else []
    return [t for part in nested for t in tensors(part)]


def same(a: Tensor, b: Tensor) -> bool:
    """Whether a and b have the same entries in the same order, in whatever shape."""
    return a.numel() == b.numel() and torch.equal(a.reshape(-1), b.reshape(-1))


def is_view(a: Any, t: Tensor) -> bool:
    """Whether `a` has the entries of t (trial, time, ...), time first or not, or of its end."""
    return isinstance(a, Tensor) and any(same(a, v(t)) for v in (as_it_is, time_first, last_step))


def close(a: Tensor, b: Tensor) -> bool:
    """Whether a and b differ by rounding, measured by the largest entry."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    bound = 1e3 * torch.finfo(a.dtype).eps * max(largest(a), largest(b))
    return torch.allclose(a, b, rtol=0, atol=bound, equal_nan=True)


def largest(a: Tensor) -> float:
    """The largest absolute entry, 0 of none."""
    return float(a.detach().abs().max()) if a.numel() else 0.0


def gradients(y: Tensor, weights: Tensor, wanted: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of the weighted sum of y, zeros by what it does not depend on."""
    if not y.requires_grad:
        return [torch.zeros_like(w) for w in wanted]
    found = torch.autograd.grad(y, wanted, weights, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]
