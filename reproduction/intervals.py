"""Numbers of learning curves, intervals over seeds by the bootstrap, and criteria on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from reproduction.verdicts import Check, check, number

DRAWS = 10_000


def bootstrap(
    values: Sequence[float], level: float = 0.95, draws: int = DRAWS
) -> tuple[float, float]:
    """Percentile interval of the mean over seeds.

    Parameters
    ----------
    values : sequence of float
        One for each seed.
    level : float
        Probability that the interval should hold.
    draws : int
        Number of samples of as many seeds, drawn with replacement from a fixed source.

    Examples
    --------
    >>> from reproduction.intervals import bootstrap
    >>> low, high = bootstrap([1.0, 2.0, 3.0, 4.0])
    >>> low < 2.5 < high
    True
    """
    given = np.asarray(values, float)
    chosen = np.random.default_rng(0).integers(len(given), size=(draws, len(given)))
    low, high = np.quantile(given[chosen].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def excludes_zero(text: str, values: Sequence[float]) -> Check:
    """Whether the interval of the mean over seeds excludes 0, as one criterion."""
    return of_interval(text, values, lambda low, high: low > 0 or high < 0)


def of_interval(
    text: str, values: Sequence[float], criterion: Callable[[float, float], bool]
) -> Check:
    """A criterion on the bootstrap interval of the mean over seeds."""
    low, high = bootstrap(values)
    mean = float(np.mean(values))

    def say(_: Sequence[float]) -> str:
        return f"{number(mean)}, interval {number(low)} to {number(high)}"

    return check(text, [mean], lambda _: criterion(low, high), say)


def passes(steps: np.ndarray, values: np.ndarray, level: float) -> float:
    """First step at which falling values pass a level, interpolated; infinite if they do not.

    Examples
    --------
    >>> import numpy as np
    >>> from reproduction.intervals import passes
    >>> passes(np.array([0, 10, 20]), np.array([3.0, 2.0, 0.0]), 1.0)
    15.0
    """
    below = np.flatnonzero(values <= level)
    if not below.size:
        return np.inf
    at = int(below[0])
    if at == 0:
        return float(steps[0])
    share = (values[at - 1] - level) / (values[at - 1] - values[at])
    return float(steps[at - 1] + share * (steps[at] - steps[at - 1]))
