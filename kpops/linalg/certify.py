"""Certify that no larger mode is missing, by a second search that seldom overlooks one."""

from __future__ import annotations

import math
from dataclasses import replace

from kpops.linalg.lanczos import Deflation, Lanczos, run
from kpops.linalg.probes import Block
from kpops.linalg.problem import Modes, SpectralProblem, by_problem
from kpops.linalg.search import Search

# Vectors of a block that looks for one mode, to see whether any is missing.
SMALL_BLOCK = 2
# Probability that a mode is missing at which it counts as excluded.
_UNSEEN = 1e-6
# Extent of the rest, as a fraction of the level, that counts as rounding.
_FLAT = 1e-12


def certify_leading(
    problem: SpectralProblem, modes: Modes, search: Search, process: Lanczos | None = None
) -> bool:
    """Whether nothing larger is left once these modes are deflated, by a fresh random block.

    A method may converge to other modes than the leading ones, or find too few copies of one. Where
    `process`, which found them, is given, whatever else it knows is deflated as well.
    """
    least = float(modes.values.abs().min())
    largest = float(modes.values.abs().max())
    unit = math.sqrt(least * largest) if search.squares else largest
    level = least + 0.5 * search.tol * unit
    if process is None:
        deflation = Deflation(by_problem(problem.sides, modes.problem, modes.vectors[0]), level)
    else:
        deflation = process.deflation(level)

    def off(x: Block) -> Block:
        return x - problem.space.parts.sum(x @ deflation.vectors.mT) @ deflation.vectors

    def decided(theta: float, spent: int) -> bool:
        degree = spent // block - (1 if problem.positive else 2)
        return theta > level or _chance(problem, theta, deflation.level, degree, block) <= _UNSEEN

    left = search.budget - search.spent
    rest = replace(search, k=1, budget=left, floor=largest, ended=decided, near=None, callback=None)
    block = min(SMALL_BLOCK, problem.space.total)
    if not rest.can_afford(block):
        return False
    found = run(
        Lanczos(lambda x: off(problem.act(off(x))), problem.space, rest, block), rest, block
    )
    search.spend(rest.spent)
    return found.n_certified == 1 and float(found.values[0].abs()) <= deflation.level


def _chance(problem: SpectralProblem, theta: float, level: float, degree: int, block: int) -> float:
    """Bound the probability that a value above `level` is unseen when the largest is `theta`.

    A Chebyshev polynomial of this degree is T times as large at the level as anywhere in the
    interval [low, theta]. From a start whose component along the hidden mode is c, the mode would
    show as a value above theta unless ``c^2 T^2 (level - theta) <= theta - low``. A random vector
    of n entries has a component that small with probability at most ``c sqrt(2 n / pi)`` (after
    Kuczynski and Wozniakowski 1992, Estimating the largest eigenvalue by the power and Lanczos
    algorithms with a random start). Every vector of the block has to miss the mode.
    """
    if theta >= level or degree < 1:
        return 1.0 if theta else 0.0
    low = 0.0 if problem.positive else -theta
    ratio = (level - theta) / max(theta - low, _FLAT * level)
    growth = degree * math.acosh(1 + 2 * ratio) - math.log(2)
    log_miss = 0.5 * math.log(2 * problem.space.total / math.pi / ratio) - growth
    return problem.space.total_problems * math.exp(min(0.0, block * log_miss))
