"""The engine for any module and any device: closures of torch.func, one step at a time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from kpops.engines.base import Engine
from kpops.engines.differential import Differential
from kpops.engines.rowwise import on_each
from kpops.engines.threads import enough_for
from kpops.engines.trajectory import Block, Trajectory
from kpops.models.recurrence import Recurrence


class AutodiffEngine(Engine):
    """Jacobian-vector products of the step, recomputed whenever they are needed.

    Nothing is stored but the trajectory, so the longest and widest models fit; each matvec costs a
    few evaluations of the model.
    """

    name = "autodiff"

    @staticmethod
    def bytes_needed(
        recurrence: Recurrence, names: Sequence[str], trajectory: Trajectory, *, exact: bool = False
    ) -> int:
        """Nothing beside the trajectory."""
        return 0

    def _recur(self, q: Block, *, backwards: bool) -> Block:
        v = torch.empty_like(q)
        steps = range(q.shape[2])[:: -1 if backwards else 1]
        v[:, :, steps[0]] = q[:, :, steps[0]]
        with enough_for(len(q) * self.recurrence.flops(len(self.trajectory.states))):
            for before, t in pairwise(steps):
                act = self._step(before).vjp if backwards else self._step(t).jvp
                v[:, :, t] = q[:, :, t] + on_each(act, v[:, :, before])
        return v

    def _jvp_steps(self, v: Block) -> Block:
        return self._unflatten(self.rows.state_jvp(v.flatten(1, 2)))

    def _vjp_steps(self, a: Block) -> Block:
        return self._unflatten(self.rows.state_vjp(a.flatten(1, 2)))

    def _step(self, t: int) -> Differential:
        """A[t] of step number t, from 0."""
        x, h = self.trajectory.inputs[:, t], self.trajectory.previous[:, t]
        return Differential(lambda state: self.recurrence.step(self.parameters, x, state), h)
