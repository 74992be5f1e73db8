"""How many threads work: as many as the user has set, where the work is large enough.

Nothing here looks at the load of the machine, so results do not depend on it. Compiled tasks run on
Python threads around kernels that release the GIL. A task runs on one thread from beginning to end,
with BLAS at one thread and no barrier inside a time step, so a busy core delays only its own tasks.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache

import torch

FEW_FLOPS = 2.5e7
"""Operations that one thread has done before a second one would pay."""

PARTS_OF_A_STEP = 10
"""Operations of torch, or more, among which the flops of a step are shared."""


def enough(flops: float) -> int:
    """Number of threads that pay for so many operations: all that torch is set to use, or one."""
    return torch.get_num_threads() if flops > FEW_FLOPS else 1


@contextmanager
def enough_for(flops: float) -> Iterator[None]:
    """Let torch use one thread for operations of fewer than :data:`FEW_FLOPS` flops each.

    An operation on several threads ends when its slowest thread does. A thread whose core is taken
    by another process waits for some milliseconds at each of the many small operations of a loop
    over time, which is ten times slower; one thread alone loses little.
    """
    before, threads = torch.get_num_threads(), enough(flops)
    if threads == before:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def each(task: Callable[[int], None], n_tasks: int, flops: float = math.inf) -> None:
    """Run ``task(0) .. task(n_tasks - 1)`` on as many threads as torch is set to use.

    With fewer tasks than threads, BLAS takes the spare threads inside each task, if all of them
    have more than a few `flops` to do.
    """
    from kpops.engines.cpu import blas  # Numba is slow to import, and not always needed

    threads = min(torch.get_num_threads(), n_tasks)
    inside = max(1, enough(flops) // max(1, n_tasks))
    limit = blas.limiter()

    def limited(i: int) -> None:
        before = limit(inside)
        try:
            task(i)
        finally:
            limit(before)

    with blas.process_limited(inside):
        if threads <= 1:
            for i in range(n_tasks):
                limited(i)
        else:
            futures = [_pool(threads).submit(limited, i) for i in range(n_tasks)]
            try:
                for future in futures:
                    future.result()
            finally:  # an error or an interrupt must not leave tasks writing into shared memory
                for future in futures:
                    future.cancel()
                wait(futures)


def split(size: int, n_threads: int, largest: int) -> list[int]:
    """Bounds of nearly equal parts: as many for each thread, none above `largest`."""
    n = max(1, min(size, n_threads * math.ceil(size / (n_threads * largest))))
    if n == 1:
        return [0, size]
    return [round(i * size / n) for i in range(n + 1)]


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="kpops")


if hasattr(os, "register_at_fork"):  # a forked child inherits the pool without its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
