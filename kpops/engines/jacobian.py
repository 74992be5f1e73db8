"""The engine that stores the state Jacobian of every step and runs compiled recursions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from kpops.engines.base import Engine
from kpops.engines.rowwise import TEMPORARIES
from kpops.engines.trajectory import Block, Trajectory
from kpops.models.recurrence import Recurrence


class JacobianEngine(Engine):
    """Stored state Jacobians A[b, t], computed at the first use of P, and kept maps J and J*.

    On the CPU the recursion is compiled by Numba and parallel over trials, with no barrier inside
    a time step; elsewhere it is one batched GEMM per time step.
    """

    name = "jacobian"
    keeps = True
    recomputed = ("jacobians",)

    @staticmethod
    def bytes_needed(
        recurrence: Recurrence, names: Sequence[str], trajectory: Trajectory, *, exact: bool = False
    ) -> int:
        """One S x S matrix for every trial and step, and about 24 S numbers for J and J*."""
        states = trajectory.states
        return states.nbytes * (states.shape[2] + TEMPORARIES)

    @cached_property
    def jacobians(self) -> Float[Tensor, "trial time unit unit"]:
        """A[b, t]."""
        return self.rows.state_jacobians().unflatten(0, self.trajectory.states.shape[:2])

    def _recur(self, q: Block, *, backwards: bool) -> Block:
        if q.device.type != "cpu":
            return recur(self.jacobians, q, backwards=backwards)
        from kpops.engines.cpu import jacobian_kernels

        return jacobian_kernels.recur(self.jacobians, q, backwards=backwards)

    def step_jacobians(self, t: int) -> Float[Tensor, "trial unit unit"]:
        """A of the step at position t."""
        return self.jacobians[:, t]

    def _jvp_steps(self, v: Block) -> Block:
        return (self.jacobians @ v.permute(1, 2, 3, 0)).permute(3, 0, 1, 2)

    def _vjp_steps(self, a: Block) -> Block:
        return (self.jacobians.mT @ a.permute(1, 2, 3, 0)).permute(3, 0, 1, 2)


def recur(jacobians: Float[Tensor, "trial time unit unit"], q: Block, *, backwards: bool) -> Block:
    """P q, or P* q if `backwards`, by one batched product per step."""
    v = torch.empty_like(q)
    first, *others = range(q.shape[2])[:: -1 if backwards else 1]
    v[:, :, first] = q[:, :, first]
    state = q[:, :, first].transpose(0, 1)  # (trial, block, unit): each trial is one GEMM
    for t in others:
        transposed = jacobians[:, t + 1] if backwards else jacobians[:, t].mT
        state = torch.baddbmm(q[:, :, t].transpose(0, 1), state, transposed)
        v[:, :, t] = state.transpose(0, 1)
    return v
