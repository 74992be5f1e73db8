"""An orthonormal basis that grows by blocks, in several independent problems at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kpops.engines import memory
from kpops.engines.random_vectors import RandomVectors
from kpops.engines.threads import enough_for
from kpops.linalg.probes import Block, inner
from kpops.linalg.vectors import VectorSpace
from kpops.transfers import beside, on_device, on_host

Gram = Float[Tensor, "problem vector vector"]

# Most rounds in which a block is made orthonormal, and the relative length that is too short.
_ROUNDS, _WEAK = 10, 1e-3
# The check of a block may wait if its eigenvalues differ by less than this factor.
_SAFE = 1e4
# Columns of the basis that are recombined at a time.
_COLUMNS = 2**16


class Basis:
    """Orthonormal rows of a space, with room for more.

    `rng` is the source of the vectors that replace those that vanish, `n` the number of vectors,
    `unchecked` whether the Gram matrix of the last block is yet to be seen, and `sound` whether all
    blocks could be made orthonormal.
    """

    def __init__(self, space: VectorSpace, capacity: int, rng: np.random.Generator) -> None:
        shape = space.n_problems, capacity, space.size
        self.room = memory.room(shape, space.dtype, space.device)
        self.space = space
        self.rng = rng
        self.n = 0
        self.unchecked = False
        self.sound = True

    @property
    def rows(self) -> Block:
        """The vectors."""
        return self.room[:, : self.n]

    def append(self, block: Block) -> None:
        """Add orthonormal vectors that are orthogonal to all others."""
        self.room[:, self.n : self.n + block.shape[1]] = block
        self.n += block.shape[1]

    def remove(self, block: Block, since: int = 0, *more: Tensor) -> Any:
        """Subtract from the block, in place, its components along the vectors from `since` on.

        Returns the coefficients, in float64, with the sums over processes of `more`.
        """
        rows = self.room[:, since : self.n]
        with enough_for(2 * rows.numel() * block.shape[1]):
            found = self.space.inner(rows, block, *more)
            _subtract(found[0] if more else found, rows, block)
        return found

    def remove_from_image(self, image: Block, since: int, *more: Tensor) -> Any:
        """As :meth:`remove`, from the image of the last block, in the message that checks it.

        That block is orthonormal to rounding times its condition. If its Gram matrix G is not 1 to
        rounding, (3 - G) / 2 is ``G^(-1/2)`` up to the square of what is missing: it makes the
        block orthonormal, and its image that of the new block.
        """
        if not self.unchecked:
            return self.remove(image, since, *more)
        rows, n = self.room[:, since : self.n], image.shape[1]
        block = rows[:, -n:]
        with enough_for(2 * rows.numel() * n):
            found, gram, *sums = self.space.inner(rows, image, inner(block, block), *more)
            one = torch.eye(n, dtype=gram.dtype, device=gram.device)
            gap = float((gram - one).abs().max())
            if gap > 4 * torch.finfo(image.dtype).eps:
                turn = (3 * one - gram) / 2
                for vectors in (block, image):
                    vectors.copy_(turn.to(vectors.dtype) @ vectors)
                found = found @ turn
                found[:, -n:] = turn @ found[:, -n:]
            _subtract(found, rows, image)
        self.unchecked = False
        self.sound &= gap <= _WEAK
        return found, *sums

    def random(self, n: int, near: Block | None = None) -> Float[Tensor, "problem new entry"]:
        """Random vectors, orthonormal and orthogonal to the basis.

        The vectors of `near`, at most n, replace the first of them, scaled to their norm.
        """
        block = self._draw(n)
        if near is not None:
            lengths = self.space.lengths(near).amax(1, keepdim=True)
            scale = self.space.total**0.5 / torch.where(lengths > 0, lengths, 1)
            block[:, : near.shape[1]] = near * scale[..., None].to(near.dtype)
        return self.orthonormal(block, on_host(self.gram_of(block))[0], 0.0)

    def orthonormal(
        self, block: Block, gram: Gram, scale: float, *, wait: bool = False
    ) -> Float[Tensor, "problem new entry"]:
        """Orthonormal vectors that span the block, which is orthogonal to the basis already.

        Returns min(block size, size of the space - n) vectors. `gram` is the Gram matrix of the
        block, on the host, where all is decided; `scale` is the size of the vectors from which the
        block was left over, and decides how much of it is rounding. A vector that is all rounding
        is replaced by a random one: a block that has no direction left has found an invariant
        subspace, beside which there may be others.

        Stathopoulos and Wu (2002), A block orthogonalization procedure with constant
        synchronization requirements: the eigenvectors of the Gram matrix of the block make its
        rows orthogonal, up to the square of their condition, so this is repeated until they are.
        Rows that are nearly orthonormal are so after one more round, to rounding. That round may
        `wait` for :meth:`remove_from_image`, if the rows are far from dependent.
        """
        with enough_for(2 * block.numel() * block.shape[1]):
            return self._orthonormal(block, gram, scale, wait)

    def _orthonormal(
        self, block: Block, gram: Gram, scale: float, wait: bool
    ) -> Float[Tensor, "problem new entry"]:
        info = torch.finfo(block.dtype)
        left = self.space.total - self.n
        squares, axes = (part[..., -left:] for part in torch.linalg.eigh(gram))  # the longest
        worst = self.space.worst  # all processes do the same
        again = scale == 0 or -worst(-float(squares.min())) < (0.1 * scale) ** 2
        weak = 10 * info.eps
        if wait and not again and worst(float((squares[:, -1] / squares[:, 0]).max())) < _SAFE:
            self.unchecked = True
            return beside((axes / squares.sqrt()[:, None]).mT, block) @ block
        for _ in range(_ROUNDS + 1):
            block = beside(axes.mT, block) @ block
            lengths = self.space.lengths(block)
            block /= lengths[..., None].clamp_min(info.tiny).to(block.dtype)
            if again:
                self.remove(block)
            gram, lengths = on_host(self.space.inner(block, block), lengths)
            short = lengths <= (weak * lengths.amax(1, keepdim=True)).clamp_min(info.eps * scale)
            if worst(float(short.any())):
                drawn = self._draw(block.shape[1])
                drawn /= self.space.lengths(drawn)[..., None].to(drawn.dtype)
                there = on_device(short, block.device, torch.bool)
                block = torch.where(there[..., None], drawn, block)
                self.remove(block)
                (gram,) = on_host(self.space.inner(block, block))
            gap = worst(float((gram - torch.eye(block.shape[1])).abs().max()))
            if gap <= 4 * info.eps:
                break
            squares, axes = torch.linalg.eigh(gram)
            if -worst(-float((squares.amin(1) / squares.amax(1)).min())) > 0.5:
                gap, block = 0.0, beside((axes / squares[:, None].sqrt()).mT, block) @ block
                break
            # A direction this short among vectors of unit length is rounding: draw a random one.
            again, weak, scale = gap > 0.5, _WEAK, 0.0
        self.sound &= gap <= _WEAK
        return block

    def rotate(self, coefficients: Float[Tensor, "problem vector new"]) -> None:
        """Replace the vectors by orthonormal combinations of them."""
        coefficients = beside(coefficients, self.room).mT
        n_new = coefficients.shape[1]
        for start in range(0, self.room.shape[2], _COLUMNS):
            columns = slice(start, start + _COLUMNS)
            self.room[:, :n_new, columns] = coefficients @ self.rows[:, :, columns]
        self.n = n_new

    def _draw(self, n: int) -> Float[Tensor, "problem {n} entry"]:
        return self.space.normal_blocks(RandomVectors(self.rng), n)

    def gram_of(self, block: Block) -> Gram:
        """Inner products of the vectors of each problem, in float64."""
        with enough_for(2 * block.numel() * block.shape[1]):
            return self.space.inner(block, block)


def _subtract(coefficients: Tensor, rows: Tensor, block: Block) -> None:
    block.baddbmm_(coefficients.mT.to(block.dtype), rows, alpha=-1)
