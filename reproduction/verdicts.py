"""From numbers to verdicts, by criteria that are written down before the numbers are seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

REPRODUCED = "reproduced"
IN_PART = "reproduced in part"
NOT = "not reproduced"
UNKNOWN = "not measured"

STRONG = 0.8
"""Least rank correlation that counts as a monotone relation: one exchange among four values."""


@dataclass(frozen=True)
class Check:
    """One criterion, applied to each network or to each seed.

    Attributes
    ----------
    text : str
        What must hold, with its bounds.
    found : str
        The numbers.
    passed, of : int
        The number of those for which it holds, and of those measured.
    """

    text: str
    found: str
    passed: int
    of: int

    @property
    def holds(self) -> bool:
        """Whether it holds for all."""
        return self.of > 0 and self.passed == self.of


def check(
    text: str,
    values: Iterable[float],
    criterion: Callable[[float], bool],
    say: Callable[[Sequence[float]], str] | None = None,
) -> Check:
    """Apply a criterion to a value of each network.

    Parameters
    ----------
    text : str
        What must hold.
    values : iterable of float
        One for each network.
    criterion : callable
        Whether it holds for a value.
    say : callable, optional
        The numbers in words; default: :func:`spread`.

    Examples
    --------
    >>> from reproduction.verdicts import between, check
    >>> check("about 2", [1.9, 2.1, 3.4], between(1.5, 2.5))
    Check(text='about 2', found='2.10 (1.90 to 3.40)', passed=2, of=3)
    """
    values = list(values)
    return Check(
        text, (say or spread)(values), sum(bool(criterion(v)) for v in values), len(values)
    )


def verdict(checks: Sequence[Check]) -> str:
    """Combine the checks of a claim into a verdict.

    Reproduced: each check holds for all. Not reproduced: none holds for more than half. In part:
    everything in between. Checks without measurements do not count.

    Examples
    --------
    >>> from reproduction.verdicts import Check, verdict
    >>> verdict([Check("P falls", "", 3, 3), Check("K stays", "", 1, 3)])
    'reproduced in part'
    """
    measured = [c for c in checks if c.of]
    if not measured:
        return UNKNOWN
    if all(c.holds for c in measured):
        return REPRODUCED
    return IN_PART if any(2 * c.passed > c.of for c in measured) else NOT


def between(low: float, high: float) -> Callable[[float], bool]:
    """Whether a value is from `low` to `high`."""
    return lambda value: low <= value <= high


def rises(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation of y with x, 0 if y does not change; infinite values are the largest."""
    if len(set(y)) < 2:
        return 0.0
    ordinals = np.searchsorted(np.unique(y), y)
    return round(float(spearmanr(x, ordinals).statistic), 9)  # 0.8, and not a bit less


def settled(steps: Sequence[float], values: Sequence[float], bound: float = 0.0) -> float:
    """First step from which on the values stay above `bound`; infinite if there is none.

    Examples
    --------
    >>> from reproduction.verdicts import settled
    >>> settled([0, 10, 20, 30], [1, -1, 2, 3])
    20.0
    """
    below = np.flatnonzero(~(np.asarray(values) > bound))
    first = below[-1] + 1 if below.size else 0
    return float(steps[first]) if first < len(steps) else np.inf


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Median, least and largest value as text.

    Examples
    --------
    >>> from reproduction.verdicts import spread
    >>> spread([43.4, 42.87, 44.06]), spread([0.956])
    ('43.4 (42.9 to 44.1)', '0.956')
    """
    if not len(values):
        return "\N{EN DASH}"
    middle, low, high = (number(f(values), digits) for f in (np.median, np.min, np.max))
    return middle if low == high else f"{middle} ({low} to {high})"


def number(value: float, digits: int = 3) -> str:
    """A number with this many significant digits; whole numbers whole; "never" if infinite.

    Examples
    --------
    >>> from reproduction.verdicts import number
    >>> number(1500.0), number(0.95634), number(0.00012345), number(float("inf"))
    ('1,500', '0.956', '1.23e-4', 'never')
    """
    if np.isinf(value):
        return "never"
    if np.isnan(value):
        return "\N{EN DASH}"
    size = abs(value)
    if value == round(value) or size >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    if size < 1e-3:
        return f"{value:.{digits - 1}e}".replace("e-0", "e-")
    return f"{value:.{digits - 1 - int(np.floor(np.log10(size)))}f}"
