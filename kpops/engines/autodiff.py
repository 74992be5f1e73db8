"""The engine for any module and any device: closures of torch.func, one step at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import vmap

from kpops.engines.base import Engine
from kpops.engines.differential import Differential
from kpops.engines.threads import enough_for
from kpops.engines.trajectory import Trajectory
from kpops.models.recurrence import Recurrence


class AutodiffEngine(Engine):
    """Jacobian-vector products of the step, recomputed whenever they are needed.

    Nothing is stored but the trajectory, so the longest and widest models fit; each product costs
    a few evaluations of the model.
    """

    name = "autodiff"

    @staticmethod
    def bytes_needed(
        recurrence: Recurrence,
        names: Sequence[str],
        trajectory: Trajectory,
        *,
        exact: bool = False,
    ) -> int:
        """Nothing beside the trajectory."""
        return 0

    def _propagate(self, q: Tensor) -> Tensor:
        v = torch.empty_like(q)
        v[:, :, 0] = q[:, :, 0]
        with enough_for(self._flops_of_step(len(q))):
            for t in range(1, q.shape[2]):
                v[:, :, t] = q[:, :, t] + _each(self._step(t).jvp, v[:, :, t - 1])
        return v

    def _backpropagate(self, a: Tensor) -> Tensor:
        v = torch.empty_like(a)
        v[:, :, -1] = a[:, :, -1]
        with enough_for(self._flops_of_step(len(a))):
            for t in range(a.shape[2] - 1, 0, -1):
                v[:, :, t - 1] = a[:, :, t - 1] + _each(self._step(t).vjp, v[:, :, t])
        return v

    def _jvp_steps(self, v: Tensor) -> Tensor:
        return self._unflatten(self.rows.state_jvp(v.flatten(1, 2)))

    def _vjp_steps(self, a: Tensor) -> Tensor:
        return self._unflatten(self.rows.state_vjp(a.flatten(1, 2)))

    def _flops_of_step(self, n_vectors: int) -> int:
        return n_vectors * self.recurrence.flops(len(self.trajectory.states))

    def _step(self, t: int) -> Differential:
        """A[t] of step number t, from 0."""
        x, h = self.trajectory.inputs[:, t], self.trajectory.previous[:, t]
        return Differential(lambda state: self.recurrence.step(self.parameters, x, state), h)


def _each(action: Callable[[Tensor], Tensor], block: Tensor) -> Tensor:
    if len(block) == 1:  # vmap over a single vector only adds overhead to every step
        return action(block[0])[None]
    return vmap(action)(block)
