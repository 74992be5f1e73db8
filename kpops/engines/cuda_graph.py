"""Time loops without launch overhead: record the launches once, then replay them.

A recursion through time is hundreds of small kernels, and on a GPU launching one takes longer than
running it. A CUDA graph replays them all by one launch. It reads and writes fixed memory, so
argument and result are copied in and out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Action = Callable[[Tensor], Tensor]


class Recording(NamedTuple):
    """A recorded action on one shape: where it reads, where it writes, how to run it."""

    argument: Tensor
    result: Tensor
    replay: Callable[[], None]


def record(action: Action, argument: Tensor) -> Recording:
    """Record `action` on a CUDA tensor that stays in place."""
    with torch.cuda.device(argument.device):
        side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries set themselves up outside of the graph
            action(argument)
        torch.cuda.current_stream().wait_stream(side)
        # Other threads, such as those of a data loader, may allocate meanwhile.
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            result = action(argument)
    return Recording(argument, result, graph.replay)


RECORD: dict[str, Callable[[Action, Tensor], Recording]] = {"cuda": record}
"""How loops are recorded, by type of device."""


class Recorder:
    """Actions by name, each recorded for the shape that it was last called with."""

    def __init__(self, record: Callable[[Action, Tensor], Recording] | None = None) -> None:
        self._record = record  # as RECORD says by default
        self._recordings: dict[str, Recording] = {}

    def __call__(self, name: str, action: Action, argument: Tensor) -> Tensor:
        """Return ``action(argument)``, by the recording under `name` where there is one."""
        recording = self._recordings.get(name)
        if recording is None or recording.argument.shape != argument.shape:
            self._recordings.pop(name, None)  # frees its memory before the next one takes some
            record = self._record or RECORD[argument.device.type]
            recording = self._recordings[name] = record(action, argument.clone())
        recording.argument.copy_(argument)
        recording.replay()
        return recording.result.clone()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_recordings": {}}
