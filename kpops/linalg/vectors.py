"""The vectors of an algorithm, and the one way to add up over their entries.

Trials may be spread over processes, each of which then holds a part of every vector, while all hold
the same small matrices. So inner products, lengths and whatever else takes all entries of a vector
are methods of a :class:`VectorSpace`, which adds up what the processes have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kpops.distributed.parts import WHOLE, Parts
from kpops.engines.random_vectors import RandomVectors
from kpops.linalg.orthonormal import orthonormal
from kpops.linalg.probes import BLOCK, Rows, dots, inner, lengths_of
from kpops.linalg.rounding import fix_signs
from kpops.operators.base import TrajectoryOperator
from kpops.operators.dense import Batches, Side
from kpops.transfers import beside, on_device, on_host

# Bytes of a block of vectors that go through an operator together. A constant, since error bars
# may depend on how many they are.
_BLOCK_BYTES = 2**30


@dataclass(frozen=True)
class VectorSpace:
    """Rows of `size` entries, of `total` on all processes, in `n_problems` independent problems.

    `entries` are those of a whole vector that are here; `parts` says who has the others. If it is
    the problems that are spread, `sides` says how. The processes `in_step` do the same, also with
    vectors that each has whole.
    """

    n_problems: int
    size: int
    dtype: torch.dtype
    device: torch.device
    parts: Parts = WHOLE
    entries: range = range(0)
    total: int = 0
    sides: Batches | None = None
    in_step: Parts = WHOLE

    def __post_init__(self) -> None:
        if not self.parts.many:
            object.__setattr__(self, "entries", range(self.size))
            object.__setattr__(self, "total", self.size)

    @classmethod
    def of(cls, op: TrajectoryOperator, side: Side) -> VectorSpace:
        """The vectors of a space of `op`, whole or as independent problems."""
        sides = side if isinstance(side, Batches) else Batches(side, ())
        kind = op.torch_dtype, op.device
        apart = sides if sides.between.many else None
        return cls(
            sides.count, sides.here, *kind,
            parts=sides.within, entries=sides.entries, total=sides.size, sides=apart,
            in_step=op.parts,
        )  # fmt: skip

    @property
    def block(self) -> int:
        """Vectors that go through an operator together: few where they are large."""
        most = max(self.parts.counts, default=1) / max(1, sum(self.parts.counts))
        n_bytes = self.dtype.itemsize * self.total * (most if self.parts.many else 1)
        return max(1, min(BLOCK, int(_BLOCK_BYTES // max(1, n_bytes))))

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype, on the device."""
        return torch.empty((), dtype=self.dtype, device=self.device)

    def inner(
        self,
        a: Float[Tensor, "*problem i entry"],
        b: Float[Tensor, "*problem j entry"],
        *more: Tensor,
    ) -> Any:
        """Inner products of rows, in float64; with the sums of `more` that this process has."""
        return self.parts.sum(inner(a, b), *more)

    def dots(self, a: Rows, b: Rows) -> Float[Tensor, " vector"]:
        """Inner products of the rows of two blocks, summed in float64."""
        return self.parts.sum(dots(a, b))

    def lengths(self, block: Float[Tensor, "*problem vector entry"]) -> Tensor:
        """Lengths of rows, in float64."""
        lengths = lengths_of(block)
        return self.parts.sum(lengths.square()).sqrt() if self.parts.many else lengths

    def normal(self, source: RandomVectors, k: int) -> Float[Tensor, "{k} entry"]:
        """Standard normal vectors, the same however they are spread."""
        return source.normal(k, self.entries, self.like)

    def normal_blocks(self, source: RandomVectors, k: int) -> Float[Tensor, "problem {k} entry"]:
        """The same, k of them for each problem."""
        before = 0 if self.sides is None else self.sides.first
        source.skip(k * before)
        block = self.normal(source, k * self.n_problems)
        source.skip(k * (self.total_problems - self.n_problems - before))
        return block.unflatten(0, (self.n_problems, k))

    def everywhere(self, values: Float[Tensor, " problem *rest"]) -> Float[Tensor, " all *rest"]:
        """Values of the problems of all processes."""
        return values if self.sides is None else self.sides.everywhere(values)

    def worst(self, value: float) -> float:
        """The largest over the problems of all processes, of which each knows that of its own."""
        return value if self.sides is None else self.sides.between.largest(value)

    def local(self, problem: Int[Tensor, " mode"]) -> list[int | None]:
        """Positions here of problems numbered among all; None for those elsewhere."""
        first = 0 if self.sides is None else self.sides.first
        here = range(first, first + self.n_problems)
        return [p - first if p in here else None for p in problem.tolist()]

    @property
    def total_problems(self) -> int:
        """Number of problems on all processes."""
        return self.n_problems if self.sides is None else self.sides.total_count

    def sphere(self, source: RandomVectors, k: int) -> Float[Tensor, "{k} entry"]:
        """Random vectors, uniform on the sphere of squared radius n.

        Their quadratic forms scatter less than those of Gaussian vectors, whose length adds to the
        noise: relative variance ``2 (1/PR - 1/n)`` instead of ``2 / PR`` for a positive operator.
        """
        block = self.normal(source, k)
        for row, square in zip(block, self.dots(block, block), strict=True):
            row.copy_(row.double() * (self.total / square).sqrt())
        return block

    def largest(self, values: Float[Tensor, "*any"]) -> float:
        """The largest magnitude; 0 if there is no value."""
        return self.parts.largest(float(values.abs().max()) if values.numel() else 0.0)

    def signs(self, rows: Rows) -> Float[Tensor, " vector"]:
        """Signs that make the entry of largest magnitude of every row positive."""
        extremes = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
        return fix_signs(self.parts.concatenated(extremes.mT, [1] * len(self.parts.counts)).mT)

    def orthonormal(self, rows: Rows) -> tuple[Float[Tensor, "q entry"], Float[Tensor, "vector q"]]:
        """Orthonormal rows, and the coordinates of `rows` in them, lower triangular.

        As :func:`kpops.linalg.orthonormal.orthonormal`. Rows that are spread are decomposed on each
        process, then their coordinates side by side (Demmel, Grigori, Hoemmen and Langou 2012,
        Communication-optimal parallel and sequential QR factorizations).
        """
        q, coords = orthonormal(rows)
        if not self.parts.many:
            return q, coords
        per_trial = self.total // sum(self.parts.counts)
        lengths = [min(len(rows), per_trial * n) for n in self.parts.counts]
        every = self.parts.concatenated(on_device(coords.mT, q.device, torch.float64), lengths)
        axes, upper = torch.linalg.qr(on_host(every)[0])
        mine = axes.split(lengths)[self.parts.rank]
        return beside(mine.mT, q) @ q, upper.mT
