"""The engine that stores the state Jacobian of every step and runs compiled recursions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kpops.engines.base import Engine
from kpops.engines.rowwise import TEMPORARIES
from kpops.engines.trajectory import Trajectory
from kpops.models.recurrence import Recurrence


class JacobianEngine(Engine):
    """Stored state Jacobians A[b, t], computed at the first use of P, and kept maps J and J*.

    On the CPU the recursion is compiled by Numba and parallel over trials, with no barrier inside
    a time step; elsewhere it is one batched GEMM per time step.
    """

    name = "jacobian"
    keeps = True

    @staticmethod
    def bytes_needed(
        recurrence: Recurrence,
        names: Sequence[str],
        trajectory: Trajectory,
        *,
        exact: bool = False,
    ) -> int:
        """One S x S matrix for every trial and step, and about 24 S numbers for J and J*."""
        states = trajectory.states
        return states.nbytes * (states.shape[2] + TEMPORARIES)

    _stored: Tensor | None = None

    @property
    def jacobians(self) -> Tensor:
        """A[b, t], shape (trial, time, unit, unit)."""
        if self._stored is None:
            n_trials, n_steps = self.trajectory.states.shape[:2]
            self._stored = self.rows.state_jacobians().unflatten(0, (n_trials, n_steps))
        return self._stored

    def __getstate__(self) -> dict[str, Any]:
        # Recomputing is cheaper than shipping S x S numbers per trial and step.
        return {**super().__getstate__(), "_stored": None}

    def _propagate(self, q: Tensor) -> Tensor:
        if q.device.type == "cpu":
            from kpops.engines.cpu import jacobian_kernels

            return jacobian_kernels.propagate(self.jacobians, q)
        return propagate(self.jacobians, q)

    def _backpropagate(self, a: Tensor) -> Tensor:
        if a.device.type == "cpu":
            from kpops.engines.cpu import jacobian_kernels

            return jacobian_kernels.backpropagate(self.jacobians, a)
        return backpropagate(self.jacobians, a)

    def step_jacobians(self, t: int) -> Tensor:
        """A of the step at position t, (trial, unit, unit)."""
        return self.jacobians[:, t]

    def _jvp_steps(self, v: Tensor) -> Tensor:
        return (self.jacobians @ v.permute(1, 2, 3, 0)).permute(3, 0, 1, 2)

    def _vjp_steps(self, a: Tensor) -> Tensor:
        return (self.jacobians.mT @ a.permute(1, 2, 3, 0)).permute(3, 0, 1, 2)


def propagate(jacobians: Tensor, q: Tensor) -> Tensor:
    """P q by one batched product per step; q: (block, trial, time, unit)."""
    v = torch.empty_like(q)
    v[:, :, 0] = q[:, :, 0]
    state = q[:, :, 0].transpose(0, 1)  # (trial, block, unit): each trial is one GEMM
    for t in range(1, q.shape[2]):
        state = torch.baddbmm(q[:, :, t].transpose(0, 1), state, jacobians[:, t].mT)
        v[:, :, t] = state.transpose(0, 1)
    return v


def backpropagate(jacobians: Tensor, a: Tensor) -> Tensor:
    """P* a by one batched product per step; a: (block, trial, time, unit)."""
    v = torch.empty_like(a)
    v[:, :, -1] = a[:, :, -1]
    state = a[:, :, -1].transpose(0, 1)
    for t in range(a.shape[2] - 1, 0, -1):
        state = torch.baddbmm(a[:, :, t - 1].transpose(0, 1), state, jacobians[:, t])
        v[:, :, t - 1] = state.transpose(0, 1)
    return v
