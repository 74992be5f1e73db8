"""Randomised block Krylov methods with full reorthogonalisation and thick restart.

From a random block X the vectors ``X, A X, A^2 X, ...`` are made orthonormal as they come, and the
modes of A are approximated by those of the small matrix ``H = Q A Q*`` (Q has the basis as its
rows). What A makes of the last block beyond the basis is the residual, so that the error of every
mode is known at no cost. A block sees as many copies of a repeated eigenvalue as it has vectors;
products of large blocks are cheaper, small blocks need fewer of them.

When the basis is full, its best combinations are kept, and the recurrence goes on from there
(Wu and Simon 2000, Thick-restart Lanczos method; Baglama and Reichel 2005 for singular values).
Convergence from random blocks whatever the gaps: Musco and Musco (2015), Randomized block Krylov
methods for stronger and faster approximate singular value decomposition.

Several problems of one size are solved side by side: the trials of P.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kpops.engines.memory import free_bytes
from kpops.linalg.basis import Basis
from kpops.linalg.probes import Act, inner
from kpops.linalg.problem import BatchedSpace, Modes
from kpops.linalg.search import Search

# Blocks of a full basis; its vectors, at least, where memory allows.
_BLOCKS, _VECTORS = 40, 400


# Blocks before any mode counts as found. The first residuals of a nearly flat spectrum are small
# whatever stands out of it: of an outlier at distance d they show d / sqrt(n). Each block brings it
# nearer, by d over the width of the rest.
AT_LEAST = 6


# Part of the free memory that the bases may take.
_MEMORY = 0.25


# A look at the modes of the basis costs as much as some products: the next one is after this part
# of the way that is left at the present rate of convergence, within these factors of growth.
_PART, _SOON, _LATE = 0.6, 1.05, 1.25


# Singular values below this part of the largest are lost to their squares in float64.
_LOST = 1e-6


# Modes at most that are set aside, and how far each may lower the level, as a part of it.
_ASIDE, _LOWERED = 20, 1e-3


class Deflation(NamedTuple):
    """A subspace that is projected out to see what else there is; see :meth:`Lanczos.deflation`.

    Attributes
    ----------
    vectors : Tensor, shape (problem, vector, entry)
        Its orthonormal basis; zeros where a problem has fewer.
    level : float
        What the rest has to lie below.
    """

    vectors: Tensor
    level: float


class Lanczos:
    """Self-adjoint operators: one basis, ``A Q* = Q* H + remainder``.

    Parameters
    ----------
    act : callable
        Applies the operators: (problem, vector, entry) to the same.
    space : BatchedSpace
        What they are.
    search : Search
        What is looked for.
    block : int
        Vectors of a block.
    """

    cost = 1  # products for each vector of the basis
    rough = False  # a glance is all that is needed

    def __init__(self, act: Act, space: BatchedSpace, search: Search, block: int) -> None:
        self.act = act
        self.size = space.size
        self.room = _room(search.k, block, [space])
        self.basis = _basis(space, self.room, search)
        self.small = _square(space, self.room)
        self.related = 0  # first vector of the basis that A relates to the next block

    def expand(self, block: Tensor) -> None:
        """Take a block into the basis."""
        first = self.first = self.basis.n
        self.basis.append(block)
        image = self.act(block)
        self.length = float(image.norm(dim=2).max())
        above = _remove(self.basis, image, self.related)
        self.small[:, : self.basis.n, first : self.basis.n] = above
        self.small[:, first : self.basis.n, : self.basis.n] = above.mT
        self.related = first
        self.remainder = image

    def glance(self, k: int) -> tuple[Tensor, Tensor]:
        """As :meth:`solve`, which is cheap."""
        return self.solve()

    def solve(self) -> tuple[Tensor, Tensor]:
        """Values and residuals of the modes in the basis, (problem, mode)."""
        h = self.small[:, : self.basis.n, : self.basis.n]
        self.values, self.axes = torch.linalg.eigh((h + h.mT) / 2)
        self.residuals = _residuals(self.axes[:, self.first :], self.remainder)
        return self.values, self.residuals

    def deflation(self, level: float) -> Deflation:
        """Set modes aside so that nothing above `level` can hide behind them.

        In a basis of them and the rest, ``A = [[H, E*], [E, B]]`` with the columns of E as long as
        their residuals r_j. By Sylvester's law of inertia A has as many eigenvalues above the level
        as H, if ``B - E (H - level)^-1 E*`` lies below it; so if B lies below the level less the
        sum of ``r_j^2 / (level - h_j)``. That allows modes with large residuals, and the more are
        set aside, the further down is the rest.
        """
        size = self.values.abs()
        gap = (level - size).clamp_min(torch.finfo(size.dtype).tiny)
        lowered = torch.where(size < level, self.residuals**2 / gap, 0)
        score = torch.where(lowered <= _LOWERED * level, size, -1)
        scores, best = score.topk(min(_ASIDE, size.shape[1]), dim=1)
        most = int((scores >= 0).sum(1).max())
        taken, best = scores[:, :most] >= 0, best[:, :most]
        axes = _picked(self.axes, best) * taken[:, None]
        vectors = axes.mT.to(self.basis.rows.dtype) @ self.basis.rows
        lost = float((lowered.gather(1, best) * taken).sum(1).max())
        return Deflation(vectors, level - lost)

    def keep(self, values: Tensor, best: Tensor) -> None:
        """Restart with the modes at the positions `best` (problem, mode) as the basis."""
        self.basis.rotate(_picked(self.axes, best))
        self.small.zero_().diagonal(dim1=1, dim2=2)[:, : self.basis.n] = values.gather(1, best)
        self.related = 0

    @property
    def sound(self) -> bool:
        """Whether the basis is orthonormal."""
        return self.basis.sound

    def vectors(self, problem: Tensor, mode: Tensor) -> tuple[Tensor, ...]:
        """Eigenvectors, (mode, entry)."""
        return (_combined(self.basis, self.axes, problem, mode),)


class Bidiagonal:
    """Any operators: bases of both sides, ``A V* = U* B`` and ``A* U* = V* B* + remainder``.

    Singular values are right to rounding of the largest, where eigenvalues of A*A would lose half
    of the digits.

    Parameters
    ----------
    forth, back : callable
        Apply A and A*.
    inside, outside : BatchedSpace
        Domain and codomain of A; the domain is not the larger one.
    search, block
        As of :class:`Lanczos`.
    """

    cost = 2
    rough = True  # whether only a glance was taken

    def __init__(
        self,
        forth: Act,
        back: Act,
        inside: BatchedSpace,
        outside: BatchedSpace,
        search: Search,
        block: int,
    ) -> None:
        self.forth, self.back = forth, back
        self.size = inside.size
        self.room = _room(search.k, block, [inside, outside])
        self.basis = _basis(inside, self.room, search)
        self.other = _basis(outside, self.room, search)
        self.small = _square(inside, self.room)
        self.related = 0

    def expand(self, block: Tensor) -> None:
        """Take a block into the basis of the domain, and what A makes of it into the other."""
        first = self.first = self.basis.n
        self.basis.append(block)
        image = self.forth(block)
        length = float(image.norm(dim=2).max())
        if first:
            above = _remove(self.other, image, self.related)
            self.small[:, :first, first : self.basis.n] = above
        made = self.other.orthonormal(image, length)
        self.small[:, first : self.basis.n, first : self.basis.n] = inner(made, image)
        self.other.append(made)
        self.related = first
        self.remainder = self.back(made)
        self.length = float(self.remainder.norm(dim=2).max())
        _remove(self.basis, self.remainder, first)

    def glance(self, k: int) -> tuple[Tensor, Tensor]:
        """As :meth:`solve`, at a fraction of the cost, if the k leading ones are not too small."""
        b = self.small[:, : self.basis.n, : self.basis.n]
        squares, left = torch.linalg.eigh(b @ b.mT)
        values = squares.clamp_min(0).sqrt()
        leading = values.flatten().topk(min(k, values.numel())).values
        if leading[-1] <= _LOST * leading[0]:
            return self.solve()
        self.rough = True
        return values, _residuals(left[:, self.first :], self.remainder)

    def solve(self) -> tuple[Tensor, Tensor]:
        """Values and residuals of the modes in the bases, (problem, mode)."""
        b = self.small[:, : self.basis.n, : self.basis.n]
        self.left, values, right = torch.linalg.svd(b)
        self.right = right.mT
        self.rough = False
        return values, _residuals(self.left[:, self.first :], self.remainder)

    def keep(self, values: Tensor, best: Tensor) -> None:
        """Restart with the modes at the positions `best` (problem, mode) as the bases."""
        self.basis.rotate(_picked(self.right, best))
        self.other.rotate(_picked(self.left, best))
        self.small.zero_().diagonal(dim1=1, dim2=2)[:, : self.basis.n] = values.gather(1, best)
        self.related = 0

    @property
    def sound(self) -> bool:
        """Whether the bases are orthonormal."""
        return self.basis.sound and self.other.sound

    def vectors(self, problem: Tensor, mode: Tensor) -> tuple[Tensor, ...]:
        """Left and right singular vectors, (mode, entry)."""
        left = _combined(self.other, self.left, problem, mode)
        return left, _combined(self.basis, self.right, problem, mode)


def run(process: Lanczos | Bidiagonal, search: Search, block: int) -> Modes:
    """Let the bases grow until the modes that the search wants are found, or it must end."""
    basis, pace, blocks = process.basis, _Pace(), 0
    next_look = max(search.k, min(AT_LEAST * block, process.room - block))
    new = basis.random(min(block, process.size), search.near)
    while True:
        process.expand(new)
        search.spend(process.cost * new.shape[1])
        blocks += 1
        complete = basis.n == process.size
        # A basis with room for the whole space never restarts: it ends there, and is exact.
        full = process.room < process.size and basis.n + block > process.room
        if not search.can_afford(process.cost * block) or complete or full or basis.n >= next_look:
            values, residuals = process.glance(search.k)
            chosen, n_certified = search.look(values, residuals * (not complete))
            early = blocks < AT_LEAST and not complete
            ended = (n_certified == search.k and not early) or complete
            stopped = search.stopped  # read once: Ctrl-C may come at any time
            if process.rough and (ended or full or stopped):
                values, residuals = process.solve()
                chosen, n_certified = search.look(values, residuals * (not complete))
                ended = (n_certified == search.k and not early) or complete
            if ended or stopped:
                problem, mode = chosen // basis.n, chosen % basis.n
                vectors = process.vectors(problem, mode)
                n_certified = n_certified if process.sound and not early else 0
                return Modes(values[problem, mode], problem, vectors, n_certified)
            next_look = pace.next_look(search.spent // process.cost, basis.n, search.distance)
            if search.ended is not None:  # which may be soon, and looks at small bases are cheap
                next_look = basis.n + 1
            if full:
                kept = min(2 * search.k + block, process.room - 2 * block)  # at least k + block
                process.keep(values, values.abs().argsort(dim=1, descending=True)[:, :kept])
                next_look = kept + 2 * block
        new = basis.orthonormal(process.remainder, process.length)


class _Pace:
    """How fast the residuals fall, and when to look again."""

    def __init__(self) -> None:
        self.last: tuple[int, float] | None = None

    def next_look(self, spent: int, n: int, distance: float) -> int:
        """Size of the basis at the next look; `distance`: decades from here to convergence."""
        soon, late = int(_SOON * n), int(_LATE * n)
        expected = late
        if self.last is not None and distance < self.last[1]:
            rate = (self.last[1] - distance) / max(1, spent - self.last[0])
            expected = n + int(_PART * min(distance / rate, late))
        self.last = spent, distance
        return min(max(expected, soon, n + 1), late)


def _room(k: int, block: int, spaces: list[BatchedSpace]) -> int:
    """Vectors of a full basis: what memory allows, and at least what the method needs."""
    first = spaces[0]
    per_vector = sum(f.n_problems * f.size for f in spaces) * torch.finfo(first.dtype).bits // 8
    fits = int(_MEMORY * free_bytes(first.device)) // max(1, per_vector)
    wanted = max(_BLOCKS * block, _VECTORS, 3 * k + 4 * block)
    return min(first.size, max(min(wanted, fits), k + 3 * block))


def _basis(space: BatchedSpace, room: int, search: Search) -> Basis:
    return Basis(space.n_problems, room, space.size, space.dtype, space.device, search.rng)


def _square(space: BatchedSpace, room: int) -> Tensor:
    return torch.zeros(space.n_problems, room, room, dtype=torch.float64, device=space.device)


def _remove(basis: Basis, image: Tensor, related: int) -> Tensor:
    """Subtract from the image its part in the basis; return the coefficients.

    Vectors that A relates to the block come first: what is left is small along all others, and so
    is then the harm of what the basis lacks of orthogonality.
    """
    local = basis.remove(image, related)
    coefficients = basis.remove(image)
    coefficients[:, related:] += local
    return coefficients


def _residuals(ends: Tensor, remainder: Tensor) -> Tensor:
    """Length of what A leaves over of every mode; ends: its entries in the last block."""
    gram = inner(remainder, remainder)
    return (ends * (gram @ ends)).sum(1).clamp_min(0).sqrt()


def _picked(axes: Tensor, best: Tensor) -> Tensor:
    return axes.gather(2, best[:, None].expand(-1, axes.shape[1], -1))


def _combined(basis: Basis, axes: Tensor, problem: Tensor, mode: Tensor) -> Tensor:
    columns = axes[problem, :, mode].to(basis.rows.dtype)
    if len(basis.rows) == 1:
        return columns @ basis.rows[0]
    return torch.stack([c @ basis.rows[p] for c, p in zip(columns, problem.tolist(), strict=True)])


def block_lanczos(act: Act, space: BatchedSpace, search: Search, block: int) -> Modes:
    """Leading modes by :class:`Lanczos`."""
    return run(Lanczos(act, space, search, block), search, block)
