"""The lock and the modes in which a model is computed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from kpops.engines.cuda_graph import is_recording
from kpops.precision import Computing

# functional_call swaps the weights of a module while it runs, and the levels of torch.func belong
# to the process, so two matvecs at a time would spoil each other.
TORCH_FUNC_LOCK = threading.RLock()
if hasattr(os, "register_at_fork"):  # a child forked in the midst of a matvec would wait for ever
    os.register_at_fork(
        before=TORCH_FUNC_LOCK.acquire,
        after_in_parent=TORCH_FUNC_LOCK.release,
        after_in_child=TORCH_FUNC_LOCK.release,
    )


@contextmanager
def exclusive_compute(device: torch.device, precision: str = "highest") -> Iterator[None]:
    """One computation at a time, without autograd, autocast and cuDNN, at a precision."""
    with (
        TORCH_FUNC_LOCK,
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
        Computing(precision),
        _in_turn(device),
    ):
        yield


@contextmanager
def _in_turn(device: torch.device) -> Iterator[None]:
    """Computations on several streams of a GPU follow each other, as they share what is kept."""
    if device.type == "cpu" or is_recording():
        yield
        return
    stream = torch.accelerator.current_stream(device)
    finished = _finished(device)
    stream.wait_event(finished)
    try:
        yield
    finally:
        finished.record(stream)


@cache
def _finished(device: torch.device) -> torch.Event:
    """When the device finishes the last computation."""
    return torch.Event(device)
