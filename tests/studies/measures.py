"""Measures that spawned processes import."""

import os
import resource
import signal
import threading
import time
from contextlib import contextmanager

import numpy as np
import threadpoolctl
import torch
import xarray as xr


def labelled(g, seed, cell, rng):
    """A result with every kind of variable, longer for later seeds."""
    n = 2 + seed
    variables = {
        "x": ("mode", rng.normal(size=n) * g, {"long_name": "numbers", "units": "1"}),
        "z": ("mode", np.full(n, 1 + 2j, np.complex64)),
        "large": ("mode", np.arange(n) > 0),
        "name": f"{cell} {g}",
        "count": seed,
    }
    coords = {"mode": np.arange(1, n + 1), "kind": ("mode", list("abcdef")[:n])}
    return xr.Dataset(variables, coords, {"of": "all", "g": g})


def drawn(g, seed, rng):
    return {"x": rng.normal(size=3)}


def failing(g, seed):
    if seed == 1:
        raise ZeroDivisionError(f"no result at g={g}")
    return {"x": g + seed}


def deadly(g, seed):
    if g == 2 and seed == 0:
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory is short
    return {"x": g + seed}


def threads(g, seed):
    pools = [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]
    import numba

    return {
        "torch": torch.get_num_threads(),
        "numba": numba.get_num_threads(),
        "largest": max(pools),
        "main": threading.current_thread() is threading.main_thread(),
        "process": os.getpid(),
    }


def slow(g, seed):
    time.sleep(0.3)
    return {"x": g + seed}


def compiled(g, seed):
    import numba

    @numba.njit(parallel=True)
    def total(n):
        found = 0.0
        for i in numba.prange(n):
            found += i
        return found

    return {"x": total(10), "numba": numba.get_num_threads(), "torch": torch.get_num_threads()}


def large(g, rng):
    """Zeros, which take little space, and later random numbers, which do not."""
    return {"x": rng.normal(size=5000) * (g >= 3)}


@contextmanager
def files_of_at_most(n_bytes):
    """Fail to write larger files, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
