"""A recurrence run on inputs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Trajectory:
    """A recurrence run on inputs: the point at which everything is linearised.

    Parameters
    ----------
    inputs : Tensor, shape (trial, time, feature)
        x[t], t = 1..T.
    previous : Tensor, shape (trial, time, unit)
        h[t-1], the state each step started from.
    states : Tensor, shape (trial, time, unit)
        h[t].
    mask : Tensor of bool, shape (trial, time), or None
        Valid steps. The rows of the others repeat the trial's last valid step, so that every
        derivative is taken where the model has really been.
    """

    inputs: Tensor
    previous: Tensor
    states: Tensor
    mask: Tensor | None

    @property
    def n_valid(self) -> int:
        """Number of valid (trial, time) pairs."""
        n_trials, n_steps = self.states.shape[:2]
        return n_trials * n_steps if self.mask is None else int(self.mask.sum())

    def restrict(self, q: Tensor) -> Tensor:
        """Return q with zeros at the steps that are not valid; q: (block, trial, time, unit)."""
        return q if self.mask is None else q.masked_fill(~self.mask[..., None], 0)
