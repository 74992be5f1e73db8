"""Functions that refer to modules or parameters, which a copy of a model would not follow."""

from __future__ import annotations

import dis
from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

_LIBRARIES = ("torch", "kpops", "numpy")


def brought_along(function: Any) -> str | None:
    """Name and kind of a module, or of a tensor that learns, to which a callable refers, or None.

    A copy of the callable shares them: it changes when they are trained, and lacks their
    parameters.
    """
    seen: set[int] = set()
    return next(
        _found(function.forward if isinstance(function, nn.Module) else function, seen), None
    )


def _found(function: Any, seen: set[int]) -> Iterator[str]:
    if id(function) in seen:
        return
    seen.add(id(function))
    for name, value in _held(function):
        owner = getattr(value, "__self__", None)
        if isinstance(value, nn.Module) or (isinstance(value, Tensor) and value.requires_grad):
            yield f"{name} ({type(value).__name__})"
        elif isinstance(owner, nn.Module):
            yield f"{name} (a method of {type(owner).__name__})"
        elif isinstance(value, FunctionType | partial) and not _of_library(value):
            yield from _found(value, seen)


def _held(function: Any) -> Iterator[tuple[str, Any]]:
    """What a function closes over, has as a default, or reaches by a global name."""
    if isinstance(function, MethodType):  # its object is copied with it
        function = function.__func__
    if isinstance(function, partial):
        yield "its function", function.func
        yield from ((f"argument {i}", value) for i, value in enumerate(function.args))
        yield from function.keywords.items()
    elif isinstance(function, type):
        return
    elif not isinstance(function, FunctionType):
        yield from getattr(function, "__dict__", {}).items()
    elif not _of_library(function):
        names = function.__code__.co_freevars
        for name, cell in zip(names, function.__closure__ or (), strict=True):
            try:
                yield name, cell.cell_contents
            except ValueError:  # not filled yet
                continue
        yield from (("a default", value) for value in function.__defaults__ or ())
        yield from (function.__kwdefaults__ or {}).items()
        for instruction in dis.get_instructions(function):
            if instruction.opname == "LOAD_GLOBAL" and instruction.argval in function.__globals__:
                yield instruction.argval, function.__globals__[instruction.argval]


def _of_library(function: Callable[..., Any]) -> bool:
    return str(getattr(function, "__module__", "")).partition(".")[0] in _LIBRARIES
