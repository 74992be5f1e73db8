"""Compiled tasks on all cores: plain Python threads around kernels that release the GIL.

A task runs from its beginning to its end on one thread, with BLAS at one thread, so that no
barrier stands inside a time step: a busy core delays only the tasks it holds.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache

import torch


def each(task: Callable[[int], None], n_tasks: int) -> None:
    """Run ``task(0) .. task(n_tasks - 1)`` on as many threads as torch is set to use.

    With fewer tasks than threads, BLAS takes the spare threads inside each task.
    """
    from kpops.engines import blas  # Numba is slow to import, and not always needed

    threads = min(torch.get_num_threads(), n_tasks)
    inside = torch.get_num_threads() // n_tasks if n_tasks else 1

    def limited(i: int) -> None:
        with blas.thread_limited(max(1, inside)):
            task(i)

    with blas.process_limited(max(1, inside)):
        if threads <= 1:
            for i in range(n_tasks):
                limited(i)
        else:
            futures = [_pool(threads).submit(limited, i) for i in range(n_tasks)]
            try:
                for future in futures:
                    future.result()
            finally:  # an error or an interrupt must not leave tasks writing into shared room
                for future in futures:
                    future.cancel()
                wait(futures)


def split(size: int, n_threads: int, largest: int) -> list[int]:
    """Bounds of nearly equal parts: as many for each thread, none above `largest`."""
    n = max(1, min(size, n_threads * math.ceil(size / (n_threads * largest))))
    return [round(i * size / n) for i in range(n + 1)]


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="kpops")


if hasattr(os, "register_at_fork"):  # a forked child inherits the pool without its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
