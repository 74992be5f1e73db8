"""The lock and the modes in which a model is computed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

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
    autocast = torch.autocast(device.type, enabled=False)
    no_graph = torch.no_grad()
    with TORCH_FUNC_LOCK, torch.inference_mode(False), no_graph, autocast, Computing(precision):
        yield
