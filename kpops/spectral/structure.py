"""What is known of an operator beyond its action, and what is exact because of it.

An operator may be small; it may couple no two positions of some dims, as P couples no two trials,
so that a basis of one block serves all blocks at once; and K may couple no two units, so that its
whole spectrum is that of small matrices (:mod:`kpops.engines.unit_blocks`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kpops.engines.memory import check_allocation
from kpops.engines.unit_blocks import UnitBlocks
from kpops.labels import Space
from kpops.operators.base import TrajectoryOperator

# Up to this size of a block the dense matrix is cheaper and safer than any iteration.
DENSE_SIZE = 1024
# Entries of all dense blocks together, at most, for what is done without being asked for.
DENSE_ENTRIES = 2**26


class Batches:
    """A space as independent problems of one size, one for each position of some dims.

    Parameters
    ----------
    space : Space
        The space.
    dims : tuple of str
        The dims over which the problems run; none of them: one problem.

    Attributes
    ----------
    count, size : int
        Number of problems, and the size of each.
    """

    def __init__(self, space: Space, dims: tuple[str, ...]) -> None:
        front = [space.dims.index(d) for d in dims]
        rest = [i for i in range(len(space.dims)) if i not in front]
        self.order = [*front, *rest]
        self.shape = [space.shape[i] for i in self.order]
        self.count = math.prod(space.shape[i] for i in front)
        self.size = space.size // max(1, self.count)

    def split(self, block: Tensor) -> Tensor:
        """(vector, *dims) to (problem, vector, entry)."""
        moved = block.permute(0, *(1 + i for i in self.order))
        return moved.reshape(len(block), self.count, self.size).transpose(0, 1)

    def join(self, batched: Tensor) -> Tensor:
        """(problem, vector, entry) to (vector, *dims)."""
        moved = batched.transpose(0, 1).reshape(batched.shape[1], *self.shape)
        back = [1 + self.order.index(i) for i in range(len(self.order))]
        return moved.permute(0, *back)


def uncoupled(op: TrajectoryOperator) -> tuple[str, ...]:
    """Dims over which the operator is block diagonal, if its two sides have them alike."""
    ours, other = op.domain.sizes, op.codomain.sizes
    return tuple(d for d in op.uncoupled if ours.get(d) == other.get(d) is not None)


def batches(op: TrajectoryOperator) -> tuple[Batches, Batches]:
    """Domain and codomain as the independent problems that the operator consists of."""
    dims = uncoupled(op)
    return Batches(op.domain, dims), Batches(op.codomain, dims)


def is_small(op: TrajectoryOperator) -> bool:
    """Whether the dense blocks are made without being asked for."""
    inside, outside = batches(op)
    few = min(inside.size, outside.size) <= DENSE_SIZE
    return few and inside.count * inside.size * outside.size <= DENSE_ENTRIES


def dense_blocks(op: TrajectoryOperator) -> Tensor:
    """The diagonal blocks, shape (problem, row, column); one block if nothing is known.

    Raises
    ------
    MemoryError
        If they would not fit.
    """
    inside, outside = batches(op)
    n_bytes = 2 * inside.count * inside.size * outside.size * op.dtype.itemsize
    check_allocation(f"the dense blocks of {op!r}", n_bytes, op.device)
    wide = outside.size < inside.size
    of, to, act = (outside, inside, op.apply_adjoint) if wide else (inside, outside, op.apply)
    images = torch.empty(of.count, of.size, to.size, dtype=op.torch_dtype, device=op.device)
    chunk = 64
    for start in range(0, of.size, chunk):
        n = min(chunk, of.size - start)
        basis = torch.zeros(of.count, n, of.size, dtype=op.torch_dtype, device=op.device)
        basis[:, :, start : start + n].diagonal(dim1=1, dim2=2).fill_(1)
        images[:, start : start + n] = to.split(act(of.join(basis)))
    return images if wide else images.mT.contiguous()


@dataclass(frozen=True)
class Spectrum:
    """All eigenvalues of a self-adjoint operator, or all singular values of any.

    Attributes
    ----------
    values : Tensor
        Of falling magnitude.
    n_zeros : int
        How many more there are, all zero.
    how : str
        How they were found, in words.
    unit : Tensor or None
        Position of the unit to which each belongs, where units are not coupled.
    """

    values: Tensor
    n_zeros: int
    how: str
    unit: Tensor | None = None


def is_exact(op: TrajectoryOperator) -> bool:
    """Whether the whole spectrum is to be had without being asked for."""
    return is_small(op) or op.unit_blocks() is not None


def eigenvalues(op: TrajectoryOperator) -> Spectrum:
    """All eigenvalues of a self-adjoint operator, from its structure or its dense blocks."""
    blocks = op.unit_blocks()
    if blocks is not None and not smaller_dense(op, blocks):
        each = blocks.eigenvalues()
        values = each.flatten()
        order = values.argsort(descending=True)
        unit = blocks.units.start + order // each.shape[1]
        how = f"K couples no two of {blocks.n_units} units"
        return Spectrum(values[order], op.shape[0] - values.numel(), how, unit)
    dense = dense_blocks(op)
    values = torch.linalg.eigvalsh((dense + dense.mT) / 2).flatten()
    how = f"{len(dense)} dense block(s) of size {dense.shape[1]}"
    return Spectrum(_falling(values), op.shape[0] - values.numel(), how)


def singular_values(op: TrajectoryOperator) -> Spectrum:
    """All min(m, n) singular values of an operator, from its structure or its dense blocks."""
    if op.self_adjoint:
        spectrum = eigenvalues(op)
        return Spectrum(spectrum.values.abs(), spectrum.n_zeros, spectrum.how)
    dense = dense_blocks(op)
    values = torch.linalg.svdvals(dense).flatten()
    how = f"{len(dense)} dense block(s) of shape {tuple(dense.shape[1:])}"
    return Spectrum(_falling(values), min(op.shape) - values.numel(), how)


def smaller_dense(op: TrajectoryOperator, blocks: UnitBlocks) -> bool:
    """Whether the matrix itself is no larger than that of a unit."""
    return is_small(op) and batches(op)[0].size <= min(blocks.n_rows, blocks.n_columns)


def _falling(values: Tensor) -> Tensor:
    return values[values.abs().argsort(descending=True)]
