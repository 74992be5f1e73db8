"""Sharing the machine: fewer threads while others keep cores busy.

An operation of torch on several threads ends when its slowest thread does. A thread whose core is
taken by another process waits for a turn of some milliseconds, and that at each of the hundreds of
operations of a product: ten times slower, where one thread less would lose a little.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def considerate() -> Iterator[None]:
    """Let torch use no more threads than there are cores that no other process keeps busy.

    Where the system does not tell (it is Linux that does), or the process has only some of the
    cores, all stays as it is. What runs is looked at once, at the beginning.
    """
    threads = torch.get_num_threads()
    others = running_elsewhere() if threads > 1 and _whole_machine() else 0
    fewer = max(1, min(threads, (os.cpu_count() or 1) - others))
    if fewer == threads:
        yield
        return
    torch.set_num_threads(fewer)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _whole_machine() -> bool:
    """Whether all cores are ours to use; the system counts what runs on all of them."""
    try:
        quota = Path("/sys/fs/cgroup/cpu.max").read_text()
    except OSError:
        quota = "max"
    pinned = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) != os.cpu_count()
    return quota.startswith("max") and not pinned


def running_elsewhere() -> int:
    """Number of threads of other processes that run, or could, at this moment."""
    try:
        running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
        if running <= 1:  # this very thread
            return 0
        states = [path.read_text() for path in Path("/proc/self/task").glob("*/stat")]
    except (OSError, ValueError, IndexError):
        return 0
    # The name, in brackets, may hold anything; the state comes behind it. Threads of torch that
    # wait for work spin for a while, and are running, too.
    own = sum(state.rpartition(")")[2].split()[0] == "R" for state in states)
    return max(0, running - own)
