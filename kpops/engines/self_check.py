"""What an engine believes of a model, against automatic differentiation at a few steps."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from kpops.engines.trajectory import Trajectory

_STEPS = 8


def first_steps(trajectory: Trajectory) -> tuple[Trajectory, Tensor]:
    """One trial's first steps, and a block of one vector on them."""
    first = slice(0, 1), slice(0, _STEPS)
    part = Trajectory(
        trajectory.inputs[first], trajectory.previous[first], trajectory.states[first], None
    )
    q = torch.arange(part.states.numel()).to(part.states).cos()
    return part, q.view(1, *part.states.shape)


def disagreement(pairs: Iterable[tuple[Tensor, Tensor]]) -> float | None:
    """Relative difference of the first of some pairs that differ by more than rounding, or None."""
    for ours, reference in pairs:
        gap, size = (ours.flatten() - reference.flatten()).norm(), reference.norm()
        if not gap <= torch.finfo(ours.dtype).eps ** 0.5 * size:
            return float(gap / size)
    return None
