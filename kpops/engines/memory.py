"""Memory: what is free, what may be taken, and room for results."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

import psutil
import torch
from torch import Tensor

_HUGE = 2**22  # bytes from which a result is worth huge pages


def free_bytes(device: torch.device) -> int:
    """Bytes that can be allocated on `device` now."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return psutil.virtual_memory().available


LESS = "take fewer trials (inputs, or op.select), or float32 (dtype= of kpops.linearize)"
"""What always takes less memory."""


def check_allocation(what: str, n_bytes: int, device: torch.device, remedy: str = LESS) -> None:
    """Raise MemoryError, with the remedy, before an allocation that would not fit."""
    free = free_bytes(device)
    if n_bytes > free:
        needs = f"{what} needs {mib(n_bytes)}, {mib(free)} are free on {device}"
        raise MemoryError(f"{needs}: {remedy}")


def mib(n_bytes: int) -> str:
    """Bytes for people to read."""
    return f"{n_bytes / 2**20:.4g} MiB"


def room_for(block: Tensor) -> Tensor:
    """A tensor of the shape of `block`, in row-major order, whose values are not set."""
    return room(tuple(block.shape), block.dtype, block.device)


def room(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor whose values are not set.

    On Linux large ones ask for huge pages: the system hands out fresh memory page by page, which
    by pages of 4 KiB takes longer than the arithmetic of a cheap product.
    """
    new = torch.empty(shape, dtype=dtype, device=device)
    if new.nbytes >= _HUGE and new.device.type == "cpu" and sys.platform == "linux":
        start = -(-new.data_ptr() // 4096) * 4096
        length = (new.data_ptr() + new.nbytes - start) // 4096 * 4096
        _libc().madvise(start, length, 14)  # MADV_HUGEPAGE; a kernel without them says no
    return new


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc
