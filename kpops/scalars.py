"""The one door for single numbers and random seeds of users."""

from __future__ import annotations

from typing import Any

import numpy as np

from kpops.distributed.parts import WHOLE, Parts
from kpops.kinds import described


def check_count(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Refuse a value that is not an int from `low` to `high`."""
    bounds = f"of {low} or more" if high is None else f"from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}={value!r}: pass an int {bounds}")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name}={value}: choose an int {bounds}")


def check_modes(k: Any, n: int) -> None:
    """Refuse a number of modes that an operator of size n does not have."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= n:
        raise ValueError(f"k={k!r}: choose an int from 1 to {n}, the size of the operator")


def check_real(name: str, value: Any) -> None:
    """Refuse a value that is not one real number."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} is {described(value)}: pass a real number")


def generator(rng: Any, parts: Parts = WHOLE) -> np.random.Generator:
    """Make a generator from a seed or None, or return the given one.

    Processes that compute together get the same: a fresh seed is that of the first, and generators
    in different states are refused.
    """
    try:
        made = np.random.default_rng(rng)
        return parts.shared_generator(made, fresh=rng is None) if parts.many else made
    except (TypeError, ValueError):
        kind = ValueError if isinstance(rng, int) else TypeError
        raise kind(
            f"rng is {described(rng)}: pass a seed, an int of 0 or more, or a "
            "numpy.random.Generator"
        ) from None
