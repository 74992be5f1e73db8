"""Shares of the time of a call: products, orthogonalisation, and the rest."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from kpops.linalg.basis import Basis
from kpops.operators.base import TrajectoryOperator

_PARTS = {
    # All products go through the former, all orthogonalisation through the latter.
    "products": (TrajectoryOperator, ("_counted",)),
    "orthogonalisation": (Basis, ("append", "remove", "orthonormal", "rotate")),
}


class Stopwatch:
    """Time spent in wrapped functions, by name; nested time counts for the inner one alone."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(_PARTS, 0.0)
        self.inner = [0.0]

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*arguments: Any, **options: Any) -> Any:
            self.inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                elapsed = time.perf_counter() - start
                self.seconds[name] += elapsed - self.inner.pop()
                self.inner[-1] += elapsed

        return timed


def of(call: Callable[[], Any]) -> dict[str, float]:
    """Fractions of the time of a call, by part, and the time itself as "seconds"."""
    watch = Stopwatch()
    with ExitStack() as stack:
        for name, (owner, methods) in _PARTS.items():
            for method in methods:
                timed = watch.wrap(name, getattr(owner, method))
                stack.enter_context(patch.object(owner, method, timed))
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
    found = {name: part / seconds for name, part in watch.seconds.items()}
    return {**found, "rest": 1 - sum(found.values()), "seconds": seconds}
