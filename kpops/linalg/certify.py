r"""Certify that no larger mode is missing, from one random vector that seldom overlooks one.

Let S be what is left of A once the modes found are deflated, and u an eigenvector of S of an
eigenvalue at or above a level. From a random unit vector ``q_0``, with any numbers ``a_j``, the
three-term recurrence

    b_j q_{j+1} = S q_j - a_j q_j - b_{j-1} q_{j-1},    ||q_{j+1}|| = 1,

makes ``q_j = p_j(S) q_0``, where the polynomials ``p_j`` obey the same recurrence. So
``u . q_j = p_j(lambda) (u . q_0)``, and as ``|u . q_j| <= 1``, the start has a component of at most
``1 / p_j(lambda)`` along u. If ``p_0, ..., p_j`` are positive at the level, then by Sturm's theorem
their zeros lie below it, and ``p_j`` increases from there on: the component is at most
``1 / p_j(level)``, a number known from the ``a_j`` and ``b_j`` alone. A random vector of n entries
has a component as small as c with probability at most ``c sqrt(2 n / pi)``.

With ``a_j = q_j . S q_j`` this is Lanczos, whose ``p_j`` grow fastest. That the ``q_j`` are
orthogonal is not used: no basis is kept, and none is made orthogonal. Rounding adds to ``u . q_0``
numbers that do not depend on it, which makes no small sum likelier.
"""

from __future__ import annotations

import math

import torch

from kpops import work
from kpops.engines.random_vectors import RandomVectors
from kpops.linalg.lanczos import Deflation, Lanczos
from kpops.linalg.probes import Block
from kpops.linalg.problem import Modes, SpectralProblem, by_problem
from kpops.linalg.search import Search
from kpops.transfers import beside, on_host

# Probability that a mode is missing at which it counts as excluded.
_UNSEEN = 1e-6
# Images that are shorter than so many rounding units of the largest mode are rounding.
_FLAT = 4


def certify_leading(
    problem: SpectralProblem, modes: Modes, search: Search, process: Lanczos | None = None
) -> bool:
    """Whether nothing larger is left once these modes are deflated.

    A method may converge to other modes than the leading ones, or find too few copies of one. Where
    `process`, which found them, is given, some of what else it knows is deflated as well.
    """
    least = float(modes.values.abs().min())
    largest = float(modes.values.abs().max())
    if not largest:  # the image of a random block is zero
        return True
    unit = math.sqrt(least * largest) if search.squares else largest
    level = least + 0.5 * search.tol * unit
    if process is None:
        vectors = by_problem(problem.sides, modes.problem, modes.vectors[0])
        deflation = Deflation(vectors, vectors[:, :0], level)
    else:
        most = int(modes.problem.bincount().max())  # that one problem has
        deflation = process.deflation(level, most, positive=problem.positive)
    return _nothing_above(problem, deflation, search, largest)


def _nothing_above(
    problem: SpectralProblem, deflation: Deflation, search: Search, largest: float
) -> bool:
    """Whether the chance that a mode above the level is unseen has become small enough."""
    space, level = problem.space, deflation.level
    tiny = torch.finfo(space.dtype).tiny
    floor = _FLAT * torch.finfo(space.dtype).eps * largest
    sums = space.parts.sum

    def off(x: Block) -> Block:
        return x - sums(x @ deflation.vectors.mT) @ deflation.vectors

    def unit(x: Block) -> Block:
        for _ in range(2):
            x = off(x)
            lengths = space.lengths(x)[..., None]
            x = x / lengths.clamp_min(tiny).to(x.dtype)
        return x * (lengths > 0.5)  # else it was rounding: nothing is left

    q = unit(space.normal_blocks(RandomVectors(search.rng), 1))
    before, last = torch.zeros_like(q), torch.zeros(len(q), dtype=torch.float64)
    sides = torch.tensor([[1.0]] if problem.positive else [[1.0], [-1.0]], dtype=torch.float64)
    old, new = torch.zeros(2, len(sides), len(q), dtype=torch.float64)
    new += 1
    limit = space.total_problems * math.sqrt(2 * space.total / math.pi) / _UNSEEN
    for _ in range(2 * space.total):  # after that, all is rounding
        if not search.can_afford(1):
            break
        image = problem.act(q)
        search.spend(1)
        image += sums(q @ deflation.coupling.mT) @ deflation.coupling
        a = space.inner(q, image)
        image = off(image - a.to(q.dtype) * q - beside(last, q)[:, None, None] * before)
        more = space.inner(q, image)  # of long images along q, rounding is left
        a, image = a + more, image - more.to(q.dtype) * q
        length = space.lengths(image)[..., None]
        before, q = q, image / length.clamp_min(tiny).to(q.dtype)
        a, length = (part.flatten() for part in on_host(a, length))
        flat = length < floor
        if space.worst(float(flat.any())):
            q = unit(q)
        b = length.clamp_min(floor)
        old, new = new, ((level - sides * a) * new - last * old) / b
        last = torch.where(flat, 0.0, b)  # what is left of the image is rounding, a new start
        work.tell("certifying that no larger mode is missing")
        least = -space.worst(-float(new.min()))
        if least <= 0 or least >= limit:
            return least > 0
    return False
