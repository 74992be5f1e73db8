"""That no larger mode is missing: a second search, and the probability that it is blind."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kpops.linalg.lanczos import Deflation, Lanczos, run
from kpops.linalg.problem import Modes, SpectralProblem
from kpops.linalg.search import Search

# Vectors of a block that looks for one mode, to see whether any is missing.
SMALL_BLOCK = 2
# Probability that a mode is missing at which it counts as excluded.
_UNSEEN = 1e-6
# Extent of the rest, as a part of the level, that is taken for rounding.
_FLAT = 1e-12


def certify_leading(
    problem: SpectralProblem, modes: Modes, search: Search, process: Lanczos | None = None
) -> bool:
    """Whether nothing larger is left off these modes, by a fresh random block.

    A method may converge to other modes than the leading ones, or find too few copies of one. What
    else `process`, which found them, knows is deflated with the modes.
    """
    least = float(modes.values.abs().min())
    largest = float(modes.values.abs().max())
    unit = math.sqrt(least * largest) if search.squares else largest
    level = least + 0.5 * search.tol * unit
    if process is None:
        deflation = Deflation(_by_problem(problem, modes), level)
    else:
        deflation = process.deflation(level)

    def off(x: Tensor) -> Tensor:
        return x - (x @ deflation.vectors.mT) @ deflation.vectors

    def act(x: Tensor) -> Tensor:
        return off(problem.act(off(x)))

    def decided(theta: float, spent: int) -> bool:
        degree = spent // block - (1 if problem.positive else 2)
        return theta > level or _chance(problem, theta, deflation.level, degree, block) <= _UNSEEN

    rest = Search(
        1,
        search.tol,
        search.budget - search.spent,
        search.rng,
        floor=largest,
        rounding=search.rounding,
        ended=decided,
        squares=search.squares,
    )
    block = min(SMALL_BLOCK, problem.space.size)
    if not rest.can_afford(block):
        return False
    left = run(Lanczos(act, problem.space, rest, block), rest, block)
    search.spend(rest.spent)
    return left.n_certified == 1 and float(left.values[0].abs()) <= deflation.level


def _by_problem(problem: SpectralProblem, modes: Modes) -> Tensor:
    """The vectors of modes by problem, (problem, mode, entry); zeros in the other problems."""
    shape = len(modes.values), problem.space.n_problems, problem.space.size
    vectors = modes.vectors[0].new_zeros(shape)
    vectors[torch.arange(len(vectors)), modes.problem] = modes.vectors[0]
    return vectors.transpose(0, 1).contiguous()


def _chance(problem: SpectralProblem, theta: float, level: float, degree: int, block: int) -> float:
    """Bound the probability that a value above `level` is unseen when the largest is `theta`.

    Some polynomial of the degree is T (of Chebyshev) times as large at the level as anywhere
    in the interval [low, theta]. With a start whose part along the hidden mode is c, it would
    show as a value above theta unless ``c^2 T^2 (level - theta) <= theta - low``, and a random
    vector of n entries has so small a c with probability ``c sqrt(2 n / pi)`` at most (after
    Kuczynski and Wozniakowski 1992, Estimating the largest eigenvalue by the power and Lanczos
    algorithms with a random start). Every vector of the block has to miss it.
    """
    if theta >= level or degree < 1:
        return 1.0 if theta else 0.0
    low = 0.0 if problem.positive else -theta
    ratio = (level - theta) / max(theta - low, _FLAT * level)
    growth = degree * math.acosh(1 + 2 * ratio) - math.log(2)
    log_miss = 0.5 * math.log(2 * problem.space.size / math.pi / ratio) - growth
    return problem.space.n_problems * math.exp(min(0.0, block * log_miss))
