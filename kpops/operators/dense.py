"""Matrices of operators, whole or block by block.

Where an operator is block diagonal, as P is over trials, one basis serves all blocks at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kpops.arrays import to_numpy
from kpops.distributed.parts import WHOLE
from kpops.engines.memory import REMEDY, check_allocation
from kpops.labels import Space
from kpops.operators.base import TrajectoryOperator, as_method
from kpops.operators.shapes import Given, InCodomain, InDomain

_CHUNK = 64  # vectors of the basis that are applied at a time


class Batches:
    """A space as `count` independent problems of one `size`, one for each position of `dims`.

    Where trials are spread over processes, either the problems are, or the entries of each: `here`
    of them are on this process, those of the numbers `entries`.

    Attributes
    ----------
    between, within : Parts
        How the problems, and the entries of each, are spread.
    """

    def __init__(self, space: Space, dims: tuple[str, ...]) -> None:
        front = [space.dims.index(d) for d in dims]
        rest = [i for i in range(len(space.dims)) if i not in front]
        self.order = [*front, *rest]
        self.shape = [space.shape[i] for i in self.order]
        self.count = math.prod(space.shape[i] for i in front)
        self.here = space.size // max(1, self.count)
        apart = 0 in front
        self.between, self.within = (space.parts, WHOLE) if apart else (WHOLE, space.parts)
        self.size = self.here if apart else space.total // max(1, self.count)
        first = self.within.offset * (self.size // max(1, sum(self.within.counts)))
        self.entries = range(first, first + self.here)
        # Problems of each process, and of all; those here are numbered from `first` on.
        each = self.count // space.shape[0] if apart and self.between.many else 0
        self.counts = [each * n for n in self.between.counts] or [self.count]
        self.first, self.total_count = sum(self.counts[: self.between.rank]), sum(self.counts)

    def split(self, block: Given) -> Float[Tensor, "problem block entry"]:
        """Bring the dimensions of the problems to the front."""
        moved = block.permute(0, *(1 + i for i in self.order))
        return moved.reshape(len(block), self.count, self.here).transpose(0, 1)

    def join(self, batched: Float[Tensor, "problem block entry"]) -> Given:
        """Invert :meth:`split`."""
        moved = batched.transpose(0, 1).reshape(batched.shape[1], *self.shape)
        back = [1 + self.order.index(i) for i in range(len(self.order))]
        return moved.permute(0, *back)

    # Small problems, whose vectors are whole on every process that has the problem.

    def basis(self, chosen: range, like: Tensor) -> Given:
        """Unit vectors of the entries `chosen`, of all problems at once."""
        basis = like.new_zeros(self.count, len(chosen), self.here)
        mine = range(max(chosen.start, self.entries.start), min(chosen.stop, self.entries.stop))
        if mine:
            rows, columns = mine.start - chosen.start, mine.start - self.entries.start
            basis[:, rows:, columns:].diagonal(dim1=1, dim2=2)[:, : len(mine)] = 1
        return self.join(basis)

    def whole(self, block: Given) -> Float[Tensor, "problem block whole"]:
        """Vectors of each problem, with the entries of all processes."""
        mine = self.split(block)
        if not self.within.many:
            return mine
        per_trial = self.size // sum(self.within.counts)
        rows = mine.movedim(2, 0).contiguous()
        rows = self.within.concatenated(rows, [per_trial * n for n in self.within.counts])
        return rows.movedim(0, 2)

    def everywhere(self, values: Float[Tensor, " problem *rest"]) -> Float[Tensor, " all *rest"]:
        """Values of the problems of all processes."""
        return self.between.concatenated(values, self.counts)

    def place(
        self,
        vectors: Float[Tensor, "problem whole vector"],
        problem: Int[Tensor, " mode"],
        chosen: Int[Tensor, " mode"],
    ) -> Given:
        """Some of the vectors of single problems, numbered among all, as vectors of the space."""
        placed = vectors.new_zeros(self.count, len(problem), self.here)
        here, mine = self.here_of(problem)
        entries = slice(self.entries.start, self.entries.stop)
        placed[here, mine] = vectors[here, entries, chosen[mine]]
        return self.join(placed)

    def here_of(self, problem: Int[Tensor, " mode"]) -> tuple[Tensor, Tensor]:
        """Of modes of problems numbered among all, those here: their problems, and which."""
        mine = torch.arange(len(problem), device=problem.device)
        if self.between.many:
            mine = mine[(problem >= self.first) & (problem < self.first + self.count)]
        return problem[mine] - self.first, mine


Side = Space | Batches
"""A space, whole or as independent problems."""


class DenseOperator(TrajectoryOperator):
    """A matrix between labelled spaces.

    Parameters
    ----------
    matrix : Tensor, shape (codomain.size, domain.size)
        float32 or float64.
    domain, codomain, symbol, self_adjoint, positive, attrs
        As for :class:`kpops.TrajectoryOperator`.
    """

    def __init__(
        self,
        matrix: Float[Tensor, "row column"],
        domain: Space,
        codomain: Space,
        *,
        symbol: str,
        self_adjoint: bool = False,
        positive: bool = False,
        attrs: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            domain,
            codomain,
            dtype=matrix.dtype,
            device=matrix.device,
            symbol=symbol,
            self_adjoint=self_adjoint or positive,
            positive=positive,
            attrs=attrs,
        )
        self.matrix = matrix

    def _apply(self, q: InDomain) -> InCodomain:
        return (q.flatten(1) @ self.matrix.mT).reshape(-1, *self.codomain.shape)

    def _apply_adjoint(self, q: InCodomain) -> InDomain:
        return (q.flatten(1) @ self.matrix).reshape(-1, *self.domain.shape)


def block_diagonal_dims(op: TrajectoryOperator) -> tuple[str, ...]:
    """Dimensions over which the operator is block diagonal, of equal sizes on both sides."""
    ours, other = op.domain.sizes, op.codomain.sizes
    return tuple(d for d in op.block_diagonal_dims if ours.get(d) == other.get(d) is not None)


def batches(op: TrajectoryOperator, dims: tuple[str, ...] | None = None) -> tuple[Batches, Batches]:
    """Domain and codomain as independent problems over `dims`; default: all block-diagonal ones."""
    dims = block_diagonal_dims(op) if dims is None else dims
    return Batches(op.domain, dims), Batches(op.codomain, dims)


def dense_blocks(
    op: TrajectoryOperator, dims: tuple[str, ...] | None = None
) -> Float[Tensor, "problem row column"]:
    """The diagonal blocks over `dims`; over none, the matrix. MemoryError if they do not fit.

    Of an operator that is spread over processes each has its own blocks, or the whole matrix.
    """
    inside, outside = batches(op, dims)
    n_bytes = 2 * inside.count * inside.size * outside.size * op.dtype.itemsize
    remedy = f"use what needs matvecs alone (eigsh, svds, estimates), or {REMEDY}"
    check_allocation(f"the dense {op!r}", n_bytes, op.device, remedy, op.parts)
    wide = outside.size < inside.size
    of, to, act = (outside, inside, op.apply_adjoint) if wide else (inside, outside, op.apply)
    images = torch.empty(of.count, of.size, to.size, dtype=op.torch_dtype, device=op.device)
    for start in range(0, of.size, _CHUNK):
        chosen = range(start, min(start + _CHUNK, of.size))
        images[:, start : chosen.stop] = to.whole(act(of.basis(chosen, images)))
    return images if wide else images.mT.contiguous()


@as_method
def dense_tensor(op: TrajectoryOperator) -> Float[Tensor, "row column"]:
    """Return the matrix as a tensor on the operator's device; see :meth:`to_dense`."""
    return dense_blocks(op, ())[0]


@as_method
def to_dense(op: TrajectoryOperator) -> np.ndarray:
    """Return the matrix, (codomain.size, domain.size), in NumPy; MemoryError if it does not fit."""
    return to_numpy(dense_tensor(op))
