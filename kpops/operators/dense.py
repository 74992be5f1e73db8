"""Matrices of operators, whole or block by block.

An operator may couple no two positions of some dims, as P couples no two trials; then one basis of
a block serves all blocks at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from kpops.arrays import to_numpy
from kpops.engines.memory import REMEDY, check_allocation
from kpops.labels import Space
from kpops.operators.base import TrajectoryOperator, as_method

_CHUNK = 64  # vectors of the basis that are applied at a time


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


class DenseOperator(TrajectoryOperator):
    """A matrix between labelled spaces.

    Parameters
    ----------
    matrix : Tensor, shape (codomain.size, domain.size)
        float32 or float64.
    domain, codomain : Space
        What it maps from and to.
    symbol : str
        For the repr.
    self_adjoint, positive : bool
        What is known of it.
    attrs : mapping, optional
        Provenance.
    """

    def __init__(
        self,
        matrix: Tensor,
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

    def _apply(self, block: Tensor) -> Tensor:
        return (block.flatten(1) @ self.matrix.mT).reshape(-1, *self.codomain.shape)

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        return (block.flatten(1) @ self.matrix).reshape(-1, *self.domain.shape)


def block_diagonal_dims(op: TrajectoryOperator) -> tuple[str, ...]:
    """Dims over which the operator is block diagonal, if its two sides have them alike."""
    ours, other = op.domain.sizes, op.codomain.sizes
    return tuple(d for d in op.block_diagonal_dims if ours.get(d) == other.get(d) is not None)


def batches(op: TrajectoryOperator, dims: tuple[str, ...] | None = None) -> tuple[Batches, Batches]:
    """Domain and codomain as the independent problems that the operator consists of.

    They run over `dims`, by default all those that the operator does not couple.
    """
    dims = block_diagonal_dims(op) if dims is None else dims
    return Batches(op.domain, dims), Batches(op.codomain, dims)


def dense_blocks(op: TrajectoryOperator, dims: tuple[str, ...] | None = None) -> Tensor:
    """The diagonal blocks over `dims`, shape (problem, row, column); over none: the matrix.

    Raises
    ------
    MemoryError
        If they would not fit.
    """
    inside, outside = batches(op, dims)
    n_bytes = 2 * inside.count * inside.size * outside.size * op.dtype.itemsize
    remedy = f"use what needs products alone (eigsh, svds, estimates), or {REMEDY}"
    check_allocation(f"the dense {op!r}", n_bytes, op.device, remedy)
    wide = outside.size < inside.size
    of, to, act = (outside, inside, op.apply_adjoint) if wide else (inside, outside, op.apply)
    images = torch.empty(of.count, of.size, to.size, dtype=op.torch_dtype, device=op.device)
    for start in range(0, of.size, _CHUNK):
        n = min(_CHUNK, of.size - start)
        basis = torch.zeros(of.count, n, of.size, dtype=op.torch_dtype, device=op.device)
        basis[:, :, start : start + n].diagonal(dim1=1, dim2=2).fill_(1)
        images[:, start : start + n] = to.split(act(of.join(basis)))
    return images if wide else images.mT.contiguous()


@as_method
def dense_tensor(op: TrajectoryOperator) -> Tensor:
    """Return the matrix as a tensor on the operator's device; see :meth:`to_dense`."""
    return dense_blocks(op, ())[0]


@as_method
def to_dense(op: TrajectoryOperator) -> np.ndarray:
    """Return the matrix, shape (codomain.size, domain.size), as a NumPy array.

    Raises
    ------
    MemoryError
        If it would not fit.
    """
    return to_numpy(dense_tensor(op))
