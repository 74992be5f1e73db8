"""An orthonormal basis that grows by blocks, in several independent problems at once."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kpops.engines import memory
from kpops.engines.random_vectors import RandomVectors
from kpops.engines.threads import enough_for
from kpops.linalg.probes import Block, inner, lengths_of

# Most rounds in which a block is made orthonormal, and the relative length that is too short.
_ROUNDS, _WEAK = 10, 1e-3
# Columns of the basis that are recombined at a time.
_COLUMNS = 2**16


class Basis:
    """Orthonormal rows with room for more, in `count` problems.

    `rng` is the source of the vectors that replace those that vanish, `n` the number of vectors,
    and `sound` whether all blocks could be made orthonormal.
    """

    def __init__(
        self,
        count: int,
        capacity: int,
        size: int,
        dtype: torch.dtype,
        device: torch.device,
        rng: np.random.Generator,
    ) -> None:
        self.room = memory.room((count, capacity, size), dtype, device)
        self.rng = rng
        self.n = 0
        self.sound = True

    @property
    def rows(self) -> Block:
        """The vectors."""
        return self.room[:, : self.n]

    def append(self, block: Block) -> None:
        """Add orthonormal vectors that are orthogonal to all others."""
        self.room[:, self.n : self.n + block.shape[1]] = block
        self.n += block.shape[1]

    def remove(self, block: Block, since: int = 0) -> Float[Tensor, "problem basis vector"]:
        """Subtract from the block, in place, its components along the vectors from `since` on.

        Returns the coefficients, in float64.
        """
        rows = self.room[:, since : self.n]
        with enough_for(2 * rows.numel() * block.shape[1]):
            coefficients = inner(rows, block)
            block.baddbmm_(coefficients.mT.to(block.dtype), rows, alpha=-1)
        return coefficients

    def random(self, n: int, near: Block | None = None) -> Float[Tensor, "problem new entry"]:
        """Random vectors, orthonormal and orthogonal to the basis.

        The vectors of `near`, scaled to the norm of the others, replace the first of them; if they
        are more than `n`, random mixtures of them do.
        """
        block = self._draw(n)
        if near is not None:
            if near.shape[1] > n:
                near = RandomVectors(self.rng).normal(n, range(near.shape[1]), near) @ near
            lengths = lengths_of(near).amax(1, keepdim=True)
            scale = self.room.shape[2] ** 0.5 / torch.where(lengths > 0, lengths, 1)
            block[:, : near.shape[1]] = near * scale[..., None].to(near.dtype)
        return self.orthonormal(block, 0.0)

    def orthonormal(self, block: Block, scale: float) -> Float[Tensor, "problem new entry"]:
        """Orthonormal vectors that span the block, which is orthogonal to the basis already.

        Overwrites the block; returns min(block size, size - n) vectors. `scale` is the size of the
        vectors from which the block was left over, and decides how much of it is rounding. A vector
        that is all rounding is replaced by a random one: a block that has no direction left has
        found an invariant subspace, beside which there may be others.

        Stathopoulos and Wu (2002), A block orthogonalization procedure with constant
        synchronization requirements: the eigenvectors of the Gram matrix of the block make its
        rows orthogonal, up to the square root of their condition, so this is repeated until they
        are.
        """
        with enough_for(2 * block.numel() * block.shape[1]):
            return self._orthonormal(block, scale)

    def _orthonormal(self, block: Block, scale: float) -> Float[Tensor, "problem new entry"]:
        eps = torch.finfo(block.dtype).eps
        left = self.room.shape[2] - self.n
        block, lengths = (part[:, -left:] for part in self._rotated(block))  # the longest
        largest = lengths.amax(dim=1, keepdim=True)
        dead = lengths <= torch.maximum(10 * eps * largest, largest.new_tensor(eps * scale))
        if dead.any():
            block = torch.where(dead[..., None], self._draw(block.shape[1]), block)
            lengths = torch.where(dead, lengths_of(block), lengths)
        block /= lengths[..., None].to(block.dtype)
        if dead.any() or float(lengths.min()) < 0.1 * scale or scale == 0:
            self.remove(block)
        for _ in range(_ROUNDS):
            gram = inner(block, block)
            gap = float((gram - torch.eye(block.shape[1], device=gram.device)).abs().max())
            if gap <= 4 * eps:
                break
            block, lengths = self._rotated(block)
            # A direction this short among vectors of unit length is rounding: draw a random one.
            weak = lengths <= _WEAK * lengths.amax(dim=1, keepdim=True)
            if weak.any():
                block = torch.where(weak[..., None], self._draw(block.shape[1]), block)
                lengths = torch.where(weak, lengths_of(block), lengths)
            block /= lengths[..., None].to(block.dtype)
            if gap > 0.5 or weak.any():
                self.remove(block)
        self.sound &= gap <= _WEAK
        return block

    def rotate(self, coefficients: Float[Tensor, "problem vector new"]) -> None:
        """Replace the vectors by orthonormal combinations of them."""
        coefficients = coefficients.to(self.room.dtype).mT
        n_new = coefficients.shape[1]
        for start in range(0, self.room.shape[2], _COLUMNS):
            columns = slice(start, start + _COLUMNS)
            self.room[:, :n_new, columns] = coefficients @ self.rows[:, :, columns]
        self.n = n_new

    @staticmethod
    def _rotated(block: Block) -> tuple[Block, Float[Tensor, "problem vector"]]:
        """The block in the axes of its Gram matrix, and the lengths of its vectors there."""
        axes = torch.linalg.eigh(inner(block, block))[1].to(block.dtype)
        block = axes.mT @ block
        return block, lengths_of(block)

    def _draw(self, n: int) -> Float[Tensor, "problem {n} entry"]:
        count, _, size = self.room.shape
        drawn = RandomVectors(self.rng).normal(count * n, range(size), self.room)
        return drawn.reshape(count, n, size)
