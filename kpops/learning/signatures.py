"""What the functions that users pass can take."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether `function` has a parameter of that name, by which it can be passed."""
    called = function.forward if isinstance(function, nn.Module) else function
    try:
        parameters = inspect.signature(called).parameters
    except (TypeError, ValueError):  # a builtin tells no signature
        return False
    return name in parameters and parameters[name].kind is not inspect.Parameter.POSITIONAL_ONLY
