"""The Jacobians of many steps, applied to frames of tangent vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from kpops.dynamics.lyapunov_source import Source
from kpops.engines.gated.engine import GatedEngine
from kpops.engines.rowwise import Rowwise
from kpops.engines.trajectory import Trajectory
from kpops.models.gated import GatedRecurrence
from kpops.models.recurrence import Recurrence

Known = list[Tensor] | None
"""Diagonals of every layer, of a run that was compiled."""


class Steps:
    """A[t] of a chunk on frames (trial, unit, mode); the identity where a trial has ended.

    This is forward differentiation of any recurrence, of which nothing is stored. With `check`,
    gated cells are compared with automatic differentiation.
    """

    def __init__(
        self, recurrence: Recurrence, trajectory: Trajectory, known: Known, *, check: bool
    ) -> None:
        self.recurrence = recurrence
        self.trajectory = trajectory
        self._prepare(known, check)

    def _prepare(self, known: Known, check: bool) -> None:
        """Compute what serves all steps."""

    def move(self, frames: Tensor, time: slice) -> Tensor:
        """A of these steps of the chunk, one after the other, on every vector."""
        block, mask = frames.permute(2, 0, 1), self.trajectory.mask
        for t in range(time.start, time.stop):
            tangents = self._jvp(t, block)
            block = tangents if mask is None else torch.where(mask[:, t, None], tangents, block)
        return block.permute(1, 2, 0)

    def _jvp(self, t: int, block: Tensor) -> Tensor:
        x, h = self.trajectory.inputs[:, t], self.trajectory.previous[:, t]
        return Rowwise(self.recurrence.step, {}, x, h).state_jvp(block)

    def jacobians(self, t: int) -> Tensor | None:
        """A of one step of every trial, where it is cheap."""
        return None

    def log_dets(self) -> Tensor | None:
        """Logarithm of |det A| (trial, time) in float64, where A is formed."""
        return None


class GatedSteps(Steps):
    """Weights between the diagonals of the gates; for many vectors, the Jacobian of one step."""

    def _prepare(self, known: Known, check: bool) -> None:
        self.layers = GatedEngine(self.recurrence, {}, self.trajectory, check=check).layers

    def _jvp(self, t: int, block: Tensor) -> Tensor:
        if len(self.layers) == 1 and block.shape[2] <= 4 * len(block):
            return _times(self.layers[0].jacobians(t), block)
        new = torch.zeros_like(block)
        for below, layer in zip([None, *self.layers], self.layers, strict=False):
            d = layer.diagonals(slice(t, t + 1))[:, :, 0]
            layer.jvp(d, block[..., layer.units], into=new[..., layer.units])
            if below is not None:
                layer.jvp_input(d, new[..., below.output], into=new[..., layer.units])
        return new


class CompiledSteps(Steps):
    """The same, compiled for the CPU."""

    def _prepare(self, known: Known, check: bool) -> None:
        from kpops.engines.cpu.tangents import TangentEngine

        self.engine = TangentEngine(self.recurrence, {}, self.trajectory, check=check)
        if known is not None:
            self.engine.know(known, check=check)

    def move(self, frames: Tensor, time: slice) -> Tensor:
        """A of these steps of the chunk, one after the other, on every vector."""
        return self.engine.move(frames.mT, time).mT

    def jacobians(self, t: int) -> Tensor | None:
        """A of one step of every trial, where it is cheap."""
        return self.engine.jacobians(t) if len(self.engine.layers) == 1 else None


class JacobianSteps(Steps):
    """Jacobians of all steps of the chunk, formed at once."""

    def _prepare(self, known: Known, check: bool) -> None:
        trajectory = self.trajectory
        x, h = trajectory.inputs.flatten(0, 1), trajectory.previous.flatten(0, 1)
        jacobians = Rowwise(self.recurrence.step, {}, x, h).state_jacobians()
        self._every = jacobians.unflatten(0, trajectory.states.shape[:2])

    def _jvp(self, t: int, block: Tensor) -> Tensor:
        return _times(self._every[:, t], block)

    def jacobians(self, t: int) -> Tensor | None:
        """A of one step of every trial."""
        mask, here = self.trajectory.mask, self._every[:, t]
        if mask is None:
            return here
        return here.where(mask[:, t, None, None], torch.eye(here.shape[1]).to(here))

    def log_dets(self) -> Tensor | None:
        """Logarithm of |det A| (trial, time) in float64; zero where a trial has ended."""
        logs, mask = torch.linalg.slogdet(self._every).logabsdet.double(), self.trajectory.mask
        return logs if mask is None else logs.masked_fill(~mask, 0)


def _times(jacobians: Tensor, block: Tensor) -> Tensor:
    """A of every trial times the block's vectors (mode, trial, unit)."""
    return (jacobians @ block.permute(1, 2, 0)).permute(2, 0, 1)


def kind_of_steps(source: Source, k: int) -> type[Steps]:
    """The cheapest way to k jvps of every step.

    A Jacobian costs about n_units jvps, but all steps of a chunk are formed at once, without the
    overhead of many small operations.
    """
    gated, n_units = isinstance(source.recurrence, GatedRecurrence), source.space.sizes["unit"]
    if n_units <= 16 or (n_units <= 8 * k and not (gated and n_units > 64)):
        return JacobianSteps
    if not gated:
        return Steps
    return CompiledSteps if source.compiles else GatedSteps
