"""Memory: what is free, what may be taken, and space for results."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psutil
import torch
from torch import Tensor

from kpops.distributed.parts import WHOLE, Parts

ALWAYS_FITS = 2**24
"""Bytes that are taken without a look at the free memory, which takes time."""
_HUGE = 2**22  # bytes from which a result is worth huge pages

REMEDY = (
    "take fewer trials, steps or vectors at a time, restrict the operator by select(...), "
    "linearise with dtype=torch.float32, or with engine='autodiff', which keeps least"
)

# Where Linux says what the process, or its container or batch job, may take.
_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def free_bytes(device: torch.device) -> int:
    """Bytes that can be allocated on `device` now, by this process."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return max(0, min([psutil.virtual_memory().available, *_of_cgroups(), *_of_limits()]))


@cache
def device_bytes(device: torch.device) -> int:
    """Bytes of the memory of a device, whatever of it is free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return psutil.virtual_memory().total


def check_allocation(
    what: str, n_bytes: int, device: torch.device, remedy: str = REMEDY, parts: Parts = WHOLE
) -> None:
    """Raise MemoryError, with the remedy, before an allocation that would not fit.

    Processes that compute together raise it together, by the largest need and the least memory.
    """
    if n_bytes <= ALWAYS_FITS and not parts.many:
        return
    free, n_bytes = int(parts.least(free_bytes(device))), int(parts.largest(n_bytes))
    if n_bytes > free:
        needs = f"{what} needs {readable(n_bytes)}, {readable(free)} are free on {device}"
        raise MemoryError(f"{needs}: {remedy}")


@contextmanager
def named_allocations(what: Callable[[], str]) -> Iterator[None]:
    """Turn torch's RuntimeError on a failed allocation into a MemoryError. Also a decorator.

    It names what was computed, what is free, and the remedy.
    """
    try:
        yield
    except RuntimeError as error:
        on_cuda = isinstance(error, torch.OutOfMemoryError)
        if not on_cuda and "can't allocate memory" not in str(error):
            raise
        device = torch.device("cuda" if on_cuda else "cpu")
        raise MemoryError(
            f"{what()} got no memory, {readable(free_bytes(device))} are free on {device}: {REMEDY}"
        ) from error


def readable(n_bytes: int) -> str:
    """A number of bytes in words."""
    size, unit = (2**30, "GiB") if n_bytes >= 2**30 else (2**20, "MiB")
    return f"{n_bytes / size:.4g} {unit}"


def _of_limits() -> Iterator[int]:
    """Bytes that the limits of the process (``ulimit``) leave."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    for limit, used in ((resource.RLIMIT_AS, "vms"), (resource.RLIMIT_DATA, "data")):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY:
            # Not every system counts the data; there, all memory is taken to be data.
            taken = psutil.Process().memory_info()
            yield most - getattr(taken, used, taken.vms)


def _of_cgroups() -> Iterator[int]:
    """Bytes that the control groups of the process leave: a container, a batch job, a service."""
    try:
        lines = _MEMBERSHIP.read_text().splitlines()
    except OSError:  # not on Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = _CGROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = _CGROUPS / "memory"
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        # The limits of all ancestors hold. A container may not see the folders of the host.
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            yield from _left(folder, *names)
            if folder == root:
                break


def _left(folder: Path, limit: str, usage: str, reclaimable: str) -> Iterator[int]:
    try:
        most = (folder / limit).read_text().strip()
        if most == "max":
            return
        used = int((folder / usage).read_text())
        statistics = dict(x.split() for x in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return
    yield int(most) - used + int(statistics.get(reclaimable, 0))


def uninitialised_like(block: Tensor) -> Tensor:
    """A tensor of the shape of `block`, in row-major order, whose values are not set."""
    return room(tuple(block.shape), block.dtype, block.device)


def room(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor whose values are not set.

    On Linux, large ones ask for huge pages: to get fresh memory in pages of 4 KiB takes longer than
    the arithmetic of a cheap matvec.
    """
    new = torch.empty(shape, dtype=dtype, device=device)
    if new.nbytes >= _HUGE and new.device.type == "cpu" and sys.platform == "linux":
        start = -(-new.data_ptr() // 4096) * 4096
        length = (new.data_ptr() + new.nbytes - start) // 4096 * 4096
        _libc().madvise(start, length, 14)  # MADV_HUGEPAGE; a kernel without them refuses
    return new


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc
