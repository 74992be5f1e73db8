"""A recurrence run on inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Bool, Float
from torch import Tensor

from kpops.distributed.parts import WHOLE, Parts

Block = Float[Tensor, "block trial time unit"]
"""Several vectors of trajectory space."""


@dataclass(frozen=True)
class Trajectory:
    """A recurrence run on inputs: the point at which everything is linearised.

    `inputs` are x[t], t = 1..T, `previous` h[t-1], the states that the steps start from, `states`
    h[t], and `mask` marks the valid steps. The rows of the others repeat the trial's last valid
    step, so that every derivative is taken where the model has really been. Products with what is
    linearised here are computed at `precision`. The trials may be a part of those of several
    processes, by `parts`, which have `valid_elsewhere` more valid steps.
    """

    inputs: Float[Tensor, "trial time feature"]
    previous: Float[Tensor, "trial time unit"]
    states: Float[Tensor, "trial time unit"]
    mask: Bool[Tensor, "trial time"] | None
    precision: str = "highest"
    parts: Parts = WHOLE
    valid_elsewhere: int = 0

    @property
    def n_valid(self) -> int:
        """Number of valid (trial, time) pairs, on all processes."""
        n_trials, n_steps = self.states.shape[:2]
        here = n_trials * n_steps if self.mask is None else int(self.mask.sum())
        return here + self.valid_elsewhere

    @property
    def beginning(self) -> Trajectory:
        """The first eight steps of the first trial."""
        first = slice(0, 1), slice(0, 8)
        return Trajectory(self.inputs[first], self.previous[first], self.states[first], None)

    def of_trials(self, index: Tensor) -> Trajectory:
        """The trials at these positions."""
        mask = None if self.mask is None else self.mask[index]
        inputs, previous, states = self.inputs[index], self.previous[index], self.states[index]
        return replace(self, inputs=inputs, previous=previous, states=states, mask=mask)

    def restrict(self, q: Block) -> Block:
        """Return q with zeros at the steps that are not valid."""
        return q if self.mask is None else q.masked_fill(~self.mask[..., None], 0)

    def restrict_(self, q: Block) -> Block:
        """The same in place."""
        return q if self.mask is None else q.masked_fill_(~self.mask[..., None], 0)
