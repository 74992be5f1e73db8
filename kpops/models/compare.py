"""Calls of the parts of a module in a run, and how their tensors are related."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    """All of t as (trial, output, time), as nn.CrossEntropyLoss wants it."""
    return t.transpose(1, 2)


def tensors(nested: Any) -> list[Tensor]:
    """All tensors that a module takes or returns, in order."""
    if isinstance(nested, Tensor):
        return [nested]
    if isinstance(nested, dict):
        nested = list(nested.values())
    if not isinstance(nested, tuple | list):
        nested = list(vars(nested).values()) if hasattr(nested, "__dataclass_fields__") else []
    return [t for part in nested for t in tensors(part)]


def same(a: Tensor, b: Tensor) -> bool:
    """Whether a and b have the same entries in the same order, in any shape."""
    return a.numel() == b.numel() and torch.equal(a.reshape(-1), b.reshape(-1))


def is_view(a: Any, t: Tensor) -> bool:
    """Whether `a` has the entries of t (trial, time, ...), in either order, or its last step."""
    return isinstance(a, Tensor) and any(same(a, v(t)) for v in (as_it_is, time_first, last_step))


def is_whole_view(a: Any, t: Tensor) -> bool:
    """Whether `a` has the dimensions and entries of t, with time first or not."""
    same_ndim = isinstance(a, Tensor) and a.ndim == t.ndim
    return same_ndim and any(same(a, view(t)) for view in (as_it_is, time_first))


def close(a: Tensor, b: Tensor) -> bool:
    """Whether a and b differ only by rounding, relative to the largest entry."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    bound = 1e3 * torch.finfo(a.dtype).eps * max(largest(a), largest(b))
    return torch.allclose(a, b, rtol=0, atol=bound, equal_nan=True)


def largest(a: Tensor) -> float:
    """The largest absolute entry, 0 of none."""
    return float(a.detach().abs().max()) if a.numel() else 0.0


def gradients(y: Tensor, weights: Tensor, wanted: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of the weighted sum of y, zero where it does not depend on a tensor."""
    if not y.requires_grad:
        return [torch.zeros_like(w) for w in wanted]
    found = torch.autograd.grad(y, wanted, weights, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]


@dataclass(frozen=True)
class Call:
    """A call of the part at a path."""

    path: str
    arguments: tuple[Any, ...]
    result: Any


def loop(calls: list[Call]) -> str | None:
    """Path of the outermost part each of whose calls starts from the state that the last left."""
    for path in sorted({c.path for c in calls}, key=lambda p: p.count(".")):
        own = [c for c in calls if c.path == path]
        if len(own) > 1 and all(map(carries_on, own, own[1:])):
            return path
    return None


def carries_on(before: Call, after: Call) -> bool:
    """Whether a call starts from the state that the call before left, with its derivatives."""
    if not before.arguments:
        return False
    sequences = isinstance(before.arguments[0], Tensor) and before.arguments[0].ndim == 3
    left = before.result[1] if sequences and isinstance(before.result, tuple) else before.result
    ends, starts = tensors(left), tensors(after.arguments[1:])
    if not starts or len(ends) != len(starts) or not all(map(same, ends, starts)):
        return False
    for end, start in zip(ends, starts, strict=True):
        if end.requires_grad and end is not start:
            ones = torch.ones_like(start)
            back = gradients(start, ones, [end])[0] if start.requires_grad else 0 * ones
            if not torch.equal(back.reshape(-1), ones.reshape(-1)):
                return False
    return True


def are_steps(pieces: list[Any]) -> bool:
    """Whether all are tensors of one step or of several."""
    return all(isinstance(p, Tensor) and p.ndim in (2, 3) for p in pieces)
