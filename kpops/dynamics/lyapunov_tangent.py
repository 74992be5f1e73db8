"""Tangent vectors along trajectories, orthogonalised by QR.

With A[t] the state Jacobian and Q an orthonormal frame of k columns in the tangent space of every
trial, m steps and one factorisation

    A[t+m] ... A[t+1] Q = Q' R

move the frame on; R is upper triangular. The volume of the first i columns grows by the product of
``|R_11| .. |R_ii|``, for any m, so the logarithms of the diagonal add up over time to the same
numbers wherever the QRs stand (Benettin et al. 1980, Meccanica 15, 9-30).

Between two QRs the columns turn towards the leading directions. A step rounds each column to eps
times its length, which the steps after it turn and stretch as they do the column: of the rest of
the last one, after s steps, it is the part eps times ``|R_11| / |R_kk|`` of these s steps. With
lengths that grow or shrink together nothing is lost. The growth seen so far sets m: the ratio of
the longest to the shortest should stay near eps^(-1/4), and both above the cube root of the
smallest number and below that of the largest. A piece where the ratio passes eps^(-1/2), or a
length the square roots, is repeated in halves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kpops import work
from kpops.dynamics.lyapunov_source import Source
from kpops.dynamics.lyapunov_steps import JacobianSteps, Steps, kind_of_steps
from kpops.engines.random_vectors import RandomVectors
from kpops.engines.rowwise import TEMPORARIES

_CHUNK_BYTES = 2**26  # of derivatives in memory at a time


class Reflected:
    """Q as the product of the reflections that have made it.

    To multiply a square matrix by them takes little longer than to multiply it by Q, and half as
    long as first to form Q.
    """

    def __init__(self, reflections: Tensor, factors: Tensor) -> None:
        self._given = reflections, factors

    @cached_property
    def frames(self) -> Tensor:
        """Q itself, (trial, unit, mode)."""
        return torch.linalg.householder_product(*self._given)

    def left_by(self, jacobians: Tensor) -> Tensor:
        """A Q of every trial, if Q is square."""
        return torch.ormqr(*self._given, jacobians, left=False)


class Piece(NamedTuple):
    """The step from one QR to the next.

    `stop` is the number of steps so far, `q` the new Q, `triangle` (trial, mode, mode) the R, and
    `growth` (trial, mode) its log |R_ii| in float64, -inf once a mode has
    been annihilated. `log_det` (trial,) sums log |det A| over the piece in float64; None unless all
    modes are there and A is formed.
    """

    stop: int
    q: Reflected
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
    kind = kind_of_steps(source, k)
    per_unit = n_units if kind is JacobianSteps else TEMPORARIES
    size = _CHUNK_BYTES // (source.start.nbytes * per_unit)
    position, ahead, check = stops[0], list(stops[:0:-1]), True
    work.expect(stops[-1] - position, "steps")
    for first, trajectory, known in source.chunks(max(1, size)):
        last = first + trajectory.states.shape[1]
        if last <= position:
            continue
        steps, check = kind(source.recurrence, trajectory, known, check=check), False
        log_dets = steps.log_dets() if k == n_units else None
        while position < last and ahead:
            begin = position - first
            n, triangle, growth = frames.advance(steps, begin, min(last, ahead[-1]) - position)
            log_det = None if log_dets is None else log_dets[:, begin : begin + n].sum(1)
            position += n
            work.advance(n)
            yield Piece(position, frames.q, triangle, growth, log_det)
            if position == ahead[-1]:
                ahead.pop()
        if not ahead:
            return


class _Frames:
    """Orthonormal frames, one for each trial: `q`, the last Q.

    `dead` marks modes (trial, mode) that a singular Jacobian has annihilated. The rank of a product
    never rises again: their growth stays -inf, and their columns go on in arbitrary directions.
    """

    def __init__(self, like: Tensor, k: int, interval: int | None, rng: Any) -> None:
        drawn = RandomVectors(rng).normal(k, range(like.numel()), like)
        self.q = Reflected(*torch.geqrf(drawn.reshape(k, *like.shape).permute(1, 2, 0)))
        self.square = k == like.shape[1]
        self.dead = torch.zeros(len(like), k, dtype=torch.bool, device=like.device)
        self.most = math.inf if interval is None else interval
        self.next = 1
        limits = torch.finfo(like.dtype)
        self.noise = 4 * limits.eps * math.sqrt(like.shape[1])
        self.aim, self.limit = -math.log(limits.eps) / 4, -math.log(limits.eps) / 2
        self.range = math.log(limits.max) / 2

    def advance(self, steps: Steps, begin: int, room: int) -> tuple[int, Tensor, Tensor]:
        """Move from position `begin` to the next QR, by at most `room` steps.

        Returns the number of steps, R, and the logarithms of its diagonal.
        """
        n = min(self.next, room)
        while True:
            reflections, factors = torch.geqrf(self._moved(steps, slice(begin, begin + n)))
            triangle = reflections.mT[:, :, : reflections.shape[2]].tril().mT  # as it lies
            diagonal = triangle.diagonal(dim1=1, dim2=2).abs()
            if n == 1:  # only a single step shows what its Jacobian annihilates
                self.dead |= _annihilated(triangle, diagonal, self.noise)
            growth = diagonal.double().log()
            longest = growth.masked_fill(self.dead, -math.inf).amax(1)
            shortest = growth.masked_fill(self.dead, math.inf).amin(1)
            ratio = float((longest - shortest).amax())
            length = float(growth.masked_fill(self.dead, 0).abs().amax())
            if n == 1 or (ratio <= self.limit and length <= self.range):
                break
            n = self.next = n // 2
        if not math.isfinite(length):
            raise ValueError(
                "tangent vectors are not finite after a single step: its Jacobian overflows, or "
                "it is not differentiable there; check the weights"
            )
        self.q = Reflected(reflections, factors)
        used = max(ratio / self.aim, length / (self.range * 2 / 3), 1e-9)
        self.next = int(min(self.most, 2 * self.next, max(1, n / used)))
        return n, triangle, growth.masked_fill(self.dead, -math.inf)

    def _moved(self, steps: Steps, time: slice) -> Tensor:
        jacobians = None
        if self.square and time.stop == time.start + 1:
            jacobians = steps.jacobians(time.start)
        return steps.move(self.q.frames, time) if jacobians is None else self.q.left_by(jacobians)


def _annihilated(triangle: Tensor, diagonal: Tensor, noise: float) -> Tensor:
    """Columns (trial, mode) of which only rounding is left: `noise` times the longest."""
    largest = triangle.abs().amax((1, 2), keepdim=True).clamp_min(torch.finfo(triangle.dtype).tiny)
    # This bound of the longest column mostly decides.
    longest = math.sqrt(triangle.shape[1]) * largest[:, 0]
    if bool((diagonal <= noise * longest).any()):
        longest = (triangle / largest).norm(dim=1).amax(1, keepdim=True) * largest[:, 0]
    return diagonal <= noise * longest
