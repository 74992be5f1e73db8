"""How settled a public name is: new ones may change, renamed ones warn."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

from kpops import work

Public = TypeVar("Public", bound=Any)

_NOTE = """\
.. admonition:: Experimental

   May change in a later version without a deprecated alias."""


def experimental(public: Public) -> Public:
    """Write the mark into the docstring of a function or class, and return the same object.

    The mark follows the summary. Nothing else changes, so the order of decorators is free.
    """
    if public.__doc__:  # python -OO strips it
        summary, *rest = inspect.cleandoc(public.__doc__).split("\n\n", 1)
        public.__doc__ = "\n\n".join([summary, _NOTE, *rest])
    return public


def warn_renamed(old: str, new: str) -> None:
    """Warn at the line of the user that a public name has changed."""
    work.warn(f"{old} is now called {new}: version 0.2 drops the old name", DeprecationWarning)
