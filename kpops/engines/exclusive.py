"""The lock and the modes in which a model is computed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache

import torch

from kpops.engines.cuda_graph import is_recording
from kpops.precision import Computing, without_autocast

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
    inference = torch.is_inference_mode_enabled()
    with (
        TORCH_FUNC_LOCK,
        torch.inference_mode(False) if inference else nullcontext(),
        torch.no_grad(),
        without_autocast(device.type),
        Computing(precision),
        _in_turn(device) if device.type != "cpu" else nullcontext(),
    ):
        yield


@contextmanager
def _in_turn(device: torch.device) -> Iterator[None]:
    """Computations on several streams of a GPU follow each other, as they share what is kept."""
    if is_recording():
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
