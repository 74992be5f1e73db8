"""Matrices of operators, whole or block by block.

Where an operator is block diagonal, as P is over trials, one basis serves all blocks at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kpops.arrays import to_numpy
from kpops.engines.memory import REMEDY, check_allocation
from kpops.labels import Space
from kpops.operators.base import TrajectoryOperator, as_method
from kpops.operators.shapes import Given, InCodomain, InDomain

_CHUNK = 64  # vectors of the basis that are applied at a time


class Batches:
    """A space as `count` independent problems of one `size`, one for each position of `dims`."""

    def __init__(self, space: Space, dims: tuple[str, ...]) -> None:
        front = [space.dims.index(d) for d in dims]
        rest = [i for i in range(len(space.dims)) if i not in front]
        self.order = [*front, *rest]
        self.shape = [space.shape[i] for i in self.order]
        self.count = math.prod(space.shape[i] for i in front)
        self.size = space.size // max(1, self.count)

    def split(self, block: Given) -> Float[Tensor, "problem block entry"]:
        """Bring the dimensions of the problems to the front."""
        moved = block.permute(0, *(1 + i for i in self.order))
        return moved.reshape(len(block), self.count, self.size).transpose(0, 1)

    def join(self, batched: Float[Tensor, "problem block entry"]) -> Given:
        """Invert :meth:`split`."""
        moved = batched.transpose(0, 1).reshape(batched.shape[1], *self.shape)
        back = [1 + self.order.index(i) for i in range(len(self.order))]
        return moved.permute(0, *back)


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
    """The diagonal blocks over `dims`; over none, the matrix. MemoryError if they do not fit."""
    inside, outside = batches(op, dims)
    n_bytes = 2 * inside.count * inside.size * outside.size * op.dtype.itemsize
    remedy = f"use what needs matvecs alone (eigsh, svds, estimates), or {REMEDY}"
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
def dense_tensor(op: TrajectoryOperator) -> Float[Tensor, "row column"]:
    """Return the matrix as a tensor on the operator's device; see :meth:`to_dense`."""
    return dense_blocks(op, ())[0]


@as_method
def to_dense(op: TrajectoryOperator) -> np.ndarray:
    """Return the matrix, (codomain.size, domain.size), in NumPy; MemoryError if it does not fit."""
    return to_numpy(dense_tensor(op))
