"""What functions of this folder ask of their arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from kpops.linearization import Linearization


def expect_linearization(lin: Any) -> None:
    """Refuse what is given in the place of a linearization."""
    if not isinstance(lin, Linearization):
        raise TypeError(
            f"lin is a {type(lin).__name__}, expected a Linearization: pass what "
            "kpops.linearize(model, inputs) returns, not one of its operators"
        )


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether `function` has a parameter of that name, by which it can be passed."""
    called = function.forward if isinstance(function, nn.Module) else function
    try:
        parameters = inspect.signature(called).parameters
    except (TypeError, ValueError):  # a builtin tells no signature
        return False
    return name in parameters and parameters[name].kind is not inspect.Parameter.POSITIONAL_ONLY
