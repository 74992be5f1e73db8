"""Time single calls, in turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Limits:
    """When a measurement has enough repetitions."""

    at_least: int = 5
    enough_s: float = 0.3
    at_most: int = 500
    few: int = 3
    """Repetitions that suffice when one takes over `long_s`."""
    long_s: float = 1.0
    most_s: float = 7.5
    warm_s: float = 0.2
    """Products that take less are called once, untimed, at the start of each turn."""

    @property
    def longest_call_s(self) -> float:
        """A product that takes longer is not measured."""
        return self.most_s / self.few

    def reached(self, times: list[float]) -> bool:
        """Whether these repetitions suffice."""
        if times and max(times) > self.long_s:
            return len(times) >= self.few
        return len(times) >= self.at_least and (
            sum(times) >= self.enough_s or len(times) >= self.at_most
        )


def seconds(
    act: Callable[[], Any], device: str, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, Any]:
    """Time one call, on a GPU by its own clock."""
    if torch.device(device).type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        result = act()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3, result
    begin = clock()
    result = act()
    return clock() - begin, result


def take_turns(
    acts: dict[Any, Callable[[], Any]],
    device: str,
    limits: Limits,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Any, list[float]]:
    """Times of repeated calls, one of each in turn, so that the machine's noise hits all alike.

    The caller has called each of them before, to warm up. The previous act leaves its own matrices
    in the caches and threads that spin, so a turn begins with an untimed call.
    """
    times: dict[Any, list[float]] = {name: [] for name in acts}
    while waiting := [name for name in acts if not limits.reached(times[name])]:
        first = max(map(len, times.values())) % len(waiting)
        for name in waiting[first:] + waiting[:first]:  # none always follows the same one
            if not times[name] or times[name][-1] < limits.warm_s:
                acts[name]()
            times[name].append(seconds(acts[name], device, clock)[0])
    return times


def median(times: list[float]) -> float:
    return float(np.median(times))
