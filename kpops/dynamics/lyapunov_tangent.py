"""Tangent vectors along trajectories, orthogonalised by QR.

With A[t] the state Jacobian and Q an orthonormal frame of k columns in the tangent space of every
trial, m steps and one factorisation

    A[t+m] ... A[t+1] Q = Q' R

move the frame on; R is upper triangular. The volume of the first i columns grows by the product of
``|R_11| .. |R_ii|``, for any m, so the logarithms of the diagonal add up over time to the same
numbers wherever the QRs stand (Benettin et al. 1980, Meccanica 15, 9-30).

Between two QRs the columns turn towards the leading directions. The rest of the last one is known
to eps times the ratio of the longest to the shortest, with eps the rounding unit of the dtype. The
growth seen so far sets m: this ratio, which counts the unit length of the start among the lengths,
should stay near eps^(-1/4). A piece where it passes eps^(-1/2) is repeated in halves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kpops import work
from kpops.dynamics.lyapunov_source import Source
from kpops.engines.cpu.gated import GatedNumbaEngine
from kpops.engines.gated.engine import GatedEngine
from kpops.engines.random_vectors import RandomVectors
from kpops.engines.rowwise import TEMPORARIES, Rowwise
from kpops.engines.trajectory import Trajectory
from kpops.models.gated import GatedRecurrence
from kpops.models.recurrence import Recurrence

_CHUNK_BYTES = 2**26  # of derivatives in memory at a time


class Piece(NamedTuple):
    """The step from one QR to the next.

    `stop` is the number of steps so far, `frames` (trial, unit, mode) the new Q, `triangle` (trial,
    mode, mode) the R, and `growth` (trial, mode) its log |R_ii| in float64, -inf once a mode has
    been annihilated. `log_det` (trial,) sums log |det A| over the piece in float64; None unless all
    modes are there and A is formed.
    """

    stop: int
    frames: Tensor
    triangle: Tensor
    growth: Tensor
    log_det: Tensor | None


def evolve_frames(
    source: Source, k: int, stops: Sequence[int], interval: int | None, rng: Any
) -> Iterator[Piece]:
    """Move k random tangents along every trajectory, from the first to the last of `stops`.

    There is a QR at each of these rising numbers of steps, and after `interval` steps at most. The
    first frames of fewer vectors are the first columns of those of more.
    """
    n_units = source.space.sizes["unit"]
    frames = _Frames(source.start, k, interval, rng)
    kind = _kind_of_steps(source.recurrence, n_units, k, source.start.device)
    per_unit = n_units if kind is _JacobianSteps else TEMPORARIES
    size = _CHUNK_BYTES // (source.start.nbytes * per_unit)
    position, ahead = stops[0], list(stops[:0:-1])
    work.expect(stops[-1] - position, "steps")
    for first, trajectory in source.chunks(max(1, size)):
        last = first + trajectory.states.shape[1]
        if last <= position:
            continue
        steps = kind(source.recurrence, trajectory)
        log_dets = steps.log_dets() if k == n_units else None
        while position < last and ahead:
            begin = position - first
            n, triangle, growth = frames.advance(steps, begin, min(last, ahead[-1]) - position)
            log_det = None if log_dets is None else log_dets[:, begin : begin + n].sum(1)
            position += n
            work.advance(n)
            yield Piece(position, frames.matrices, triangle, growth, log_det)
            if position == ahead[-1]:
                ahead.pop()
        if not ahead:
            return


class _Frames:
    """Orthonormal frames, one for each trial: `matrices`, Q, (trial, unit, mode).

    `dead` marks modes (trial, mode) that a singular Jacobian has annihilated. The rank of a product
    never rises again: their growth stays -inf, and their columns go on in arbitrary directions.
    """

    def __init__(self, like: Tensor, k: int, interval: int | None, rng: Any) -> None:
        drawn = RandomVectors(rng).normal(k, range(like.numel()), like)
        self.matrices = torch.linalg.qr(drawn.reshape(k, *like.shape).permute(1, 2, 0)).Q
        self.dead = torch.zeros(len(like), k, dtype=torch.bool, device=like.device)
        self.most = math.inf if interval is None else interval
        self.next = 1
        eps = torch.finfo(like.dtype).eps
        self.noise = 4 * eps * math.sqrt(like.shape[1])
        self.aim, self.limit = -math.log(eps) / 4, -math.log(eps) / 2

    def advance(self, steps: _Steps, begin: int, room: int) -> tuple[int, Tensor, Tensor]:
        """Move from position `begin` to the next QR, by at most `room` steps.

        Returns the number of steps, R, and the logarithms of its diagonal.
        """
        n = min(self.next, room)
        while True:
            block = steps.take(begin, n, self.matrices.permute(2, 0, 1).contiguous())
            frames, triangle = torch.linalg.qr(block.permute(1, 2, 0))
            diagonal = triangle.diagonal(dim1=1, dim2=2).abs()
            if n == 1:  # only a single step shows what its Jacobian annihilates
                self.dead |= _annihilated(triangle, diagonal, self.noise)
            growth = diagonal.double().log()
            alive = growth.masked_fill(self.dead, 0)
            ratio = float(alive.clamp_min(0).amax() - alive.clamp_max(0).amin())
            if n == 1 or ratio <= self.limit:
                break
            n = self.next = n // 2
        if not math.isfinite(ratio):
            raise ValueError(
                "tangent vectors are not finite after a single step: its Jacobian overflows, or "
                "it is not differentiable there; check the weights"
            )
        self.matrices = frames
        self.next = int(min(self.most, 2 * self.next, max(1, n * self.aim / max(ratio, 1e-9))))
        return n, triangle, growth.masked_fill(self.dead, -math.inf)


def _annihilated(triangle: Tensor, diagonal: Tensor, noise: float) -> Tensor:
    """Columns (trial, mode) of which only rounding is left: `noise` times the longest."""
    largest = triangle.abs().amax((1, 2), keepdim=True).clamp_min(torch.finfo(triangle.dtype).tiny)
    # This bound of the longest column mostly decides.
    longest = math.sqrt(triangle.shape[1]) * largest[:, 0]
    if bool((diagonal <= noise * longest).any()):
        longest = (triangle / largest).norm(dim=1).amax(1, keepdim=True) * largest[:, 0]
    return diagonal <= noise * longest


class _Steps:
    """A[t] of a chunk on blocks (mode, trial, unit); the identity where a trial has ended."""

    def __init__(self, recurrence: Recurrence, trajectory: Trajectory) -> None:
        self.recurrence = recurrence
        self.trajectory = trajectory

    def take(self, begin: int, n: int, block: Tensor) -> Tensor:
        """A of n steps of the chunk, one after the other, on every vector."""
        mask = self.trajectory.mask
        for t in range(begin, begin + n):
            tangents = self._jvp(t, block)
            block = tangents if mask is None else torch.where(mask[:, t, None], tangents, block)
        return block

    def _jvp(self, t: int, block: Tensor) -> Tensor:
        """Forward differentiation of any recurrence; nothing is stored."""
        x, h = self.trajectory.inputs[:, t], self.trajectory.previous[:, t]
        return Rowwise(self.recurrence.step, {}, x, h).state_jvp(block)

    def log_dets(self) -> Tensor | None:
        """Logarithm of |det A| (trial, time) in float64, where A is formed."""
        return None


class _GatedSteps(_Steps):
    """Weights between the diagonals of the gates; for many vectors, the Jacobian of one step."""

    engine_class = GatedEngine

    def __init__(self, recurrence: Recurrence, trajectory: Trajectory) -> None:
        super().__init__(recurrence, trajectory)
        self.engine = self.engine_class(recurrence, {}, trajectory)
        self.layers = self.engine.layers

    def _assembles(self, block: Tensor) -> bool:
        return len(self.layers) == 1 and block.shape[2] <= 4 * len(block)

    def _jvp(self, t: int, block: Tensor) -> Tensor:
        if self._assembles(block):
            return _times(self.layers[0].jacobians(t), block)
        new = torch.zeros_like(block)
        for below, layer in zip([None, *self.layers], self.layers, strict=False):
            d = layer.diagonals(slice(t, t + 1))[:, :, 0]
            layer.jvp(d, block[..., layer.units], into=new[..., layer.units])
            if below is not None:
                layer.jvp_input(d, new[..., below.output], into=new[..., layer.units])
        return new


class _CompiledSteps(_GatedSteps):
    """The same, compiled for the CPU; the parent handles steps after the end of a trial."""

    engine_class = GatedNumbaEngine
    engine: GatedNumbaEngine

    def take(self, begin: int, n: int, block: Tensor) -> Tensor:
        """A of n steps of the chunk, one after the other, on every vector."""
        time, mask = slice(begin, begin + n), self.trajectory.mask
        if self._assembles(block) or (mask is not None and not mask[:, time].all()):
            return super().take(begin, n, block)
        return self.engine.transport(block, time)


class _JacobianSteps(_Steps):
    """Jacobians of all steps of the chunk, formed at once."""

    def __init__(self, recurrence: Recurrence, trajectory: Trajectory) -> None:
        super().__init__(recurrence, trajectory)
        x, h = trajectory.inputs.flatten(0, 1), trajectory.previous.flatten(0, 1)
        jacobians = Rowwise(recurrence.step, {}, x, h).state_jacobians()
        self.jacobians = jacobians.unflatten(0, trajectory.states.shape[:2])

    def _jvp(self, t: int, block: Tensor) -> Tensor:
        return _times(self.jacobians[:, t], block)

    def log_dets(self) -> Tensor | None:
        """Logarithm of |det A| (trial, time) in float64; zero where a trial has ended."""
        logs, mask = torch.linalg.slogdet(self.jacobians).logabsdet.double(), self.trajectory.mask
        return logs if mask is None else logs.masked_fill(~mask, 0)


def _times(jacobians: Tensor, block: Tensor) -> Tensor:
    """A of every trial times the block's vectors (mode, trial, unit)."""
    return (jacobians @ block.permute(1, 2, 0)).permute(2, 0, 1)


def _kind_of_steps(
    recurrence: Recurrence, n_units: int, k: int, device: torch.device
) -> type[_Steps]:
    """The cheapest way to k jvps of every step.

    A Jacobian costs about n_units jvps, but all steps of a chunk are formed at once, without the
    overhead of many small operations.
    """
    gated = isinstance(recurrence, GatedRecurrence)
    if n_units <= 16 or (n_units <= 8 * k and not (gated and n_units > 64)):
        return _JacobianSteps
    if not gated:
        return _Steps
    return _CompiledSteps if device.type == "cpu" else _GatedSteps
