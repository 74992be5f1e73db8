"""Computation in the precision of the dtype."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def in_full_precision(function: Function) -> Function:
    """Keep autocast, which lowers the precision of matrix products, out of a function."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        with ExitStack() as stack:
            for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
                stack.enter_context(torch.autocast(device, enabled=False))
            return function(*arguments, **options)

    return wrapped  # type: ignore[return-value]
