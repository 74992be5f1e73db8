"""Randomised block Krylov methods with full reorthogonalisation and thick restart.

From a random block X the vectors ``X, A X, A^2 X, ...`` are made orthonormal as they come, and the
modes of A are approximated by those of the small matrix ``H = Q A Q*``, where the rows of Q are the
basis. The image of the last block, less its components along the basis, is the residual, so the
error of every mode is known at no cost. A block sees as many copies of a repeated eigenvalue as it
has vectors; matvecs of large blocks are cheaper, small blocks need fewer of them.

When the basis is full, its best combinations are kept, and the recurrence goes on from there
(Wu and Simon 2000, Thick-restart Lanczos method; Baglama and Reichel 2005 for singular values).
Convergence from random blocks whatever the gaps: Musco and Musco (2015), Randomized block Krylov
methods for stronger and faster approximate singular value decomposition.

Several problems of one size are solved side by side: the trials of P. Small matrices are kept on
the host, where all is decided.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kpops.engines.memory import free_bytes
from kpops.engines.threads import enough_for
from kpops.linalg.basis import Basis, Gram
from kpops.linalg.probes import Act, Block, inner, lengths_of
from kpops.linalg.problem import Modes
from kpops.linalg.search import Search
from kpops.linalg.vectors import VectorSpace
from kpops.transfers import beside, on_host

# Blocks of a full basis; its vectors, at least, where memory allows.
_BLOCKS, _VECTORS = 40, 400
# Blocks before any mode counts as found. The first residuals of a nearly flat spectrum are small
# whatever stands out of it: they show d / sqrt(n) of an outlier at distance d. Each block brings it
# nearer, by d over the width of the rest. A search near known modes may be rasher, since a
# certificate follows: one that fails costs matvecs.
AT_LEAST, _AT_LEAST_NEAR = 6, 3
# Fraction of the free memory that the bases may take.
_MEMORY = 0.25
# A look at the modes of the basis costs as much as some matvecs. The next one comes after this
# fraction of the distance left at the present rate of convergence, within these factors of growth.
_PART, _SOON, _LATE = 0.6, 1.05, 1.25
# Singular values below this fraction of the largest are lost to their squares in float64.
_LOST = 1e-6
# Modes that are deflated beside those found, and how far one may lower the level, as a fraction of
# the distance of the nearest.
_ASIDE, _LOWERED = 10, 5e-3

Values = Float[Tensor, "problem mode"]
Axes = Float[Tensor, "problem basis mode"]


class Deflation(NamedTuple):
    """A subspace that is deflated to see what else there is; see :meth:`Lanczos.deflation`.

    Attributes
    ----------
    vectors
        Its orthonormal basis; zeros where a problem has fewer.
    coupling
        C, by which ``C* C`` is added to the rest.
    level
        What the rest, with that, has to lie below.
    """

    vectors: Block
    coupling: Block
    level: float


class Process:
    """What both processes share; `basis` is that of the domain."""

    cost: int  # matvecs for each vector of the basis
    waits = False  # whether the image of a block comes back to the basis of the block
    rough = False  # whether only a glance was taken, after which `solve` is due
    first: int  # vector of the basis with which its last block begins
    remainder: Block  # what the last image adds to the basis
    gram: Gram  # of the remainder
    length: float  # of the longest vector that it is left over from

    def __init__(self, spaces: list[VectorSpace], search: Search, block: int) -> None:
        inside = spaces[0]
        self.size = inside.total
        self.room = _room(search.k, block, spaces)
        self.bases = [Basis(space, self.room, search.rng) for space in spaces]
        self.basis = self.bases[0]
        shape = (inside.n_problems, self.room, self.room)
        self.small = torch.zeros(shape, dtype=torch.float64)  # on the host
        self.related = 0  # first vector of the basis that A relates to the next block
        self.axes: list[Axes] = []  # of the modes in each basis

    def expand(self, block: Block) -> None:
        """Add a block to the basis, and its image to the projected operator."""
        raise NotImplementedError

    def solve(self) -> tuple[Values, Values]:
        """Values and residuals of the modes in the basis."""
        raise NotImplementedError

    def glance(self, k: int) -> tuple[Values, Values]:
        """As :meth:`solve`, at a fraction of the cost where that can be had."""
        return self.solve()

    @property
    def projected(self) -> Float[Tensor, "problem basis basis"]:
        """The projected operator, without the room for more."""
        return self.small[:, : self.basis.n, : self.basis.n]

    def keep(self, values: Values, best: Int[Tensor, "problem kept"]) -> None:
        """Restart with the modes at the positions `best` as the basis."""
        for basis, axes in zip(self.bases, self.axes, strict=True):
            basis.rotate(_picked(axes, best))
        self.small.zero_().diagonal(dim1=1, dim2=2)[:, : self.basis.n] = values.gather(1, best)
        self.related = 0

    @property
    def sound(self) -> bool:
        """Whether the bases are orthonormal."""
        return all(basis.sound for basis in self.bases)

    def vectors(
        self, problem: Int[Tensor, " mode"], mode: Int[Tensor, " mode"]
    ) -> tuple[Float[Tensor, "mode _"], ...]:
        """Vectors of the modes in each of the spaces."""
        pairs = zip(self.bases, self.axes, strict=True)
        return tuple(_combined(basis, axes, problem, mode) for basis, axes in pairs)


class Lanczos(Process):
    """Self-adjoint operators: one basis, ``A Q* = Q* H + remainder``."""

    cost = 1
    waits = True

    def __init__(self, act: Act, space: VectorSpace, search: Search, block: int) -> None:
        super().__init__([space], search, block)
        self.act = act

    def expand(self, block: Block) -> None:
        """Add a block to the basis."""
        first = self.first = self.basis.n
        self.basis.append(block)
        image = self.act(block)
        above, self.gram, self.length = _removed(self.basis, image, self.related)
        self.small[:, : self.basis.n, first : self.basis.n] = above
        self.small[:, first : self.basis.n, : self.basis.n] = above.mT
        self.related = first
        self.remainder = image

    def solve(self) -> tuple[Values, Values]:
        """Values and residuals of the modes in the basis."""
        h = self.projected
        self.values, axes = torch.linalg.eigh((h + h.mT) / 2)
        self.axes = [axes]
        self.residuals = _residuals(axes[:, self.first :], self.gram)
        return self.values, self.residuals

    def deflation(self, level: float, n: int, *, positive: bool) -> Deflation:
        """Deflate n modes and some more, so that nothing above `level` can hide behind them.

        In a basis of them and the rest, ``A = [[H, E*], [E, B]]``, where the columns of E are their
        residual vectors. By Sylvester's law of inertia A has as many eigenvalues above the level as
        H, if ``B + E (level - H)^-1 E*`` lies below it; modes above the level only lower that sum.
        All residual vectors are combinations of the remainder, so the sum is ``B + C* C`` with one
        row of C for each vector of a block. This allows modes with large residuals, and the more
        are deflated, the further down is the rest.

        Eigenvalues of both signs have to lie below the level in magnitude. It is then lowered by
        ``||C||^2`` instead, and modes that would lower it much are not deflated.
        """
        size, best = self.values.abs().topk(min(n + _ASIDE, self.values.shape[1]), dim=1)
        gap = (level - size).clamp_min(torch.finfo(size.dtype).tiny)
        weights = torch.where(size < level, 1 / gap, 0)
        lowered = self.residuals.gather(1, best).square() * weights
        nearest = gap[:, n:].amin(1, keepdim=True) if gap.shape[1] > n else gap
        taken = (lowered <= _LOWERED * nearest) | (torch.arange(gap.shape[1]) < n) | positive
        axes = _picked(self.axes[0], best) * taken[:, None]
        vectors = beside(axes.mT, self.basis.rows) @ self.basis.rows
        ends = axes[:, self.first :]
        squares, turn = torch.linalg.eigh((ends * weights[:, None]) @ ends.mT)
        rows = (turn * squares.clamp_min(0).sqrt()[:, None]).mT
        if positive:
            return Deflation(vectors, beside(rows, self.remainder) @ self.remainder, level)
        lost = torch.linalg.eigvalsh(rows @ self.gram @ rows.mT)[:, -1].max()
        lost = self.basis.space.worst(float(lost))
        return Deflation(vectors, self.remainder[:, :0], level - lost)


class Bidiagonal(Process):
    """Any operators: bases of both sides, ``A V* = U* B`` and ``A* U* = V* B* + remainder``.

    Singular values are accurate to rounding of the largest, where eigenvalues of A*A would lose
    half of the digits. `forth` and `back` apply A and A*, from `inside` to `outside` and back;
    `inside` is not the larger space.
    """

    cost = 2
    rough = True

    def __init__(
        self,
        forth: Act,
        back: Act,
        inside: VectorSpace,
        outside: VectorSpace,
        search: Search,
        block: int,
    ) -> None:
        super().__init__([inside, outside], search, block)
        self.forth, self.back = forth, back
        self.other = self.bases[1]

    def expand(self, block: Block) -> None:
        """Add a block to the basis of the domain, and its image to the other."""
        first = self.first = self.basis.n
        self.basis.append(block)
        image = self.forth(block)
        above, gram, length = _removed(self.other, image, self.related)
        self.small[:, :first, first : self.basis.n] = above
        made = self.other.orthonormal(image, gram, length)
        self.other.append(made)
        self.related = first
        self.remainder = self.back(made)
        corner = self.other.space.inner(made, image)
        _, self.gram, self.length, corner = _removed(self.basis, self.remainder, first, corner)
        self.small[:, first : self.basis.n, first : self.basis.n] = corner

    def glance(self, k: int) -> tuple[Values, Values]:
        """As :meth:`solve`, at a fraction of the cost, if the k leading ones are not too small."""
        b = self.projected
        squares, left = torch.linalg.eigh(b @ b.mT)
        values = squares.clamp_min(0).sqrt()
        every = self.basis.space.everywhere(values).flatten()
        leading = every.topk(min(k, len(every))).values
        if leading[-1] <= _LOST * leading[0]:
            return self.solve()
        self.rough = True
        return values, _residuals(left[:, self.first :], self.gram)

    def solve(self) -> tuple[Values, Values]:
        """Values and residuals of the modes in the bases."""
        left, values, right = torch.linalg.svd(self.projected)
        self.axes = [right.mT, left]
        self.rough = False
        return values, _residuals(left[:, self.first :], self.gram)


def run(process: Process, search: Search, block: int) -> Modes:
    """Expand the bases until the wanted modes are found, or the search must end."""
    basis, pace, blocks = process.basis, _Pace(), 0
    at_least = AT_LEAST if search.near is None else _AT_LEAST_NEAR
    fewest = -(-search.k // basis.space.total_problems)
    next_look = max(fewest, min(at_least * block, process.room - block))

    def look(values: Values, residuals: Values) -> tuple[Values, Tensor, int]:
        every = basis.space.everywhere(values)
        return every, *search.look(every, basis.space.everywhere(residuals))

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
            every, chosen, n_certified = look(values, residuals * (not complete))
            early = blocks < at_least and not complete
            ended = (n_certified == search.k and not early) or complete
            stopped = search.stopped  # read once: Ctrl-C may come at any time
            if process.rough and (ended or full or stopped):
                values, residuals = process.solve()
                every, chosen, n_certified = look(values, residuals * (not complete))
                ended = (n_certified == search.k and not early) or complete
            if ended or stopped:
                problem, mode = chosen // basis.n, chosen % basis.n
                vectors = process.vectors(problem, mode)
                n_certified = n_certified if process.sound and not early else 0
                return Modes(every[problem, mode], problem, vectors, n_certified)
            next_look = pace.next_look(search.spent // process.cost, basis.n, search.distance)
            if full:
                kept = min(2 * search.k + block, process.room - 2 * block)  # at least k + block
                process.keep(values, values.abs().argsort(dim=1, descending=True)[:, :kept])
                next_look = kept + 2 * block
        left = process.remainder, process.gram, process.length
        new = basis.orthonormal(*left, wait=process.waits)


class _Pace:
    """How fast the residuals fall, and when to look again."""

    def __init__(self) -> None:
        self.last: tuple[int, float] | None = None

    def next_look(self, spent: int, n: int, distance: float) -> int:
        """Size of the basis at the next look, `distance` decades before convergence."""
        soon, late = int(_SOON * n), int(_LATE * n)
        expected = late
        if self.last is not None and distance < self.last[1]:
            rate = (self.last[1] - distance) / max(1, spent - self.last[0])
            expected = n + int(_PART * min(distance / rate, late))
        self.last = spent, distance
        return min(max(expected, soon, n + 1), late)


def _room(k: int, block: int, spaces: list[VectorSpace]) -> int:
    """Vectors of a full basis: what memory allows, and at least what the method needs."""
    first = spaces[0]
    per_vector = sum(f.n_problems * f.size for f in spaces) * torch.finfo(first.dtype).bits // 8
    fits = first.in_step.least(int(_MEMORY * free_bytes(first.device)) // max(1, per_vector))
    wanted = max(_BLOCKS * block, _VECTORS, 3 * k + 4 * block)
    return min(first.total, max(min(wanted, int(fits)), k + 3 * block))


def _removed(basis: Basis, image: Block, related: int, *more: Tensor) -> tuple[Any, ...]:
    """Subtract from the image its components along the basis.

    Vectors that A relates to the block come first: the rest is small along all others, so that
    whatever orthogonality the basis lacks does little harm. Returns the coefficients, the Gram
    matrix of what is left, the length of the longest vector before, and `more`, on the host.
    """
    squares = lengths_of(image).square()
    local, squares = basis.remove_from_image(image, related, squares)
    with enough_for(2 * image.numel() * image.shape[1]):
        gram = inner(image, image)
    coefficients, gram = basis.remove(image, 0, gram)
    gram = gram - coefficients.mT @ coefficients  # of what is left, by Pythagoras
    coefficients[:, related:] += local
    length = squares.max().sqrt()
    coefficients, gram, length, *rest = on_host(coefficients, gram, length, *more)
    return coefficients, gram, basis.space.worst(float(length)), *rest


def _residuals(ends: Float[Tensor, "problem vector mode"], gram: Gram) -> Values:
    """Residual of every mode, from its entries in the last block."""
    return (ends * (gram @ ends)).sum(1).clamp_min(0).sqrt()


def _picked(axes: Axes, best: Int[Tensor, "problem kept"]) -> Float[Tensor, "problem basis kept"]:
    return axes.gather(2, best[:, None].expand(-1, axes.shape[1], -1))


def _combined(
    basis: Basis, axes: Axes, problem: Int[Tensor, " chosen"], mode: Int[Tensor, " chosen"]
) -> Float[Tensor, "chosen entry"]:
    if basis.space.total_problems == 1:
        return beside(axes[0, :, mode].mT, basis.rows) @ basis.rows[0]
    vectors = basis.rows.new_zeros(len(problem), basis.rows.shape[2])
    for i, (p, m) in enumerate(zip(basis.space.local(problem), mode.tolist(), strict=True)):
        if p is not None:
            vectors[i] = beside(axes[p, :, m], basis.rows) @ basis.rows[p]
    return vectors


def block_lanczos(act: Act, space: VectorSpace, search: Search, block: int) -> Modes:
    """Leading modes by :class:`Lanczos`."""
    return run(Lanczos(act, space, search, block), search, block)
