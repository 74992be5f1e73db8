"""What the parts of a module were called with and returned, in a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kpops.models.compare import gradients, same, tensors


@dataclass(frozen=True)
class Call:
    """A call of the part at a path."""

    path: str
    arguments: tuple[Any, ...]
    result: Any


def loop(calls: list[Call]) -> str | None:
    """Path of the outermost part that is called with what it returned at the call before."""
    for path in sorted({c.path for c in calls}, key=lambda p: p.count(".")):
        own = [c for c in calls if c.path == path]
        if len(own) > 1 and all(map(carries_on, own, own[1:])):
            return path
    return None


def carries_on(before: Call, after: Call) -> bool:
    """Whether a call starts from the state that the call before has left, with its derivatives."""
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
    """Whether all are tensors of a step, or of some."""
    return all(isinstance(p, Tensor) and p.ndim in (2, 3) for p in pieces)
