"""Numbers that a constructor takes."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any


def check_sizes(least: int = 1, **sizes: Any) -> None:
    """Refuse, by its name, a size that is no whole number of at least `least`."""
    for name, size in sizes.items():
        if not (is_whole(size) and size >= least):
            raise ValueError(f"{name}={size!r}: pass an int, {least} or more")


def is_whole(value: Any) -> bool:
    """Whether it is an integer, NumPy's among them."""
    return isinstance(value, Integral)


def is_real(value: Any) -> bool:
    """Whether it is one real number, and no array or tensor."""
    return isinstance(value, Real)
