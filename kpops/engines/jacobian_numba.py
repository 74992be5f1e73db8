"""The recursions of P and P* over stored Jacobians, compiled for the CPU.

One trial is one task: a thread takes it through the whole of time, with BLAS at one thread, so no
barrier stands inside a time step and a busy core delays only the trials it holds. The kernels
release the GIL; plain Python threads run them.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numba
import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  the BLAS behind np.dot in Numba
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor


@numba.njit(nogil=True, cache=True)
def _propagate_trial(jacobians, q, v, b):
    """v[t] = q[t] + A[t] v[t-1] for trial b; q, v: (block, trial, time, unit)."""
    n_block, _, n_steps, n_units = q.shape
    state = np.empty((n_block, n_units), q.dtype)
    moved = np.empty((n_block, n_units), q.dtype)
    for k in range(n_block):
        state[k] = q[k, b, 0]
        v[k, b, 0] = state[k]
    for t in range(1, n_steps):
        if n_block == 1:
            np.dot(jacobians[b, t], state[0], moved[0])
        else:
            np.dot(state, jacobians[b, t].T, moved)
        for k in range(n_block):
            for i in range(n_units):
                state[k, i] = moved[k, i] + q[k, b, t, i]
                v[k, b, t, i] = state[k, i]


@numba.njit(nogil=True, cache=True)
def _backpropagate_trial(jacobians, a, v, b):
    """v[t] = a[t] + A[t+1]^T v[t+1] for trial b; a, v: (block, trial, time, unit)."""
    n_block, _, n_steps, n_units = a.shape
    state = np.empty((n_block, n_units), a.dtype)
    moved = np.empty((n_block, n_units), a.dtype)
    for k in range(n_block):
        state[k] = a[k, b, n_steps - 1]
        v[k, b, n_steps - 1] = state[k]
    for t in range(n_steps - 1, 0, -1):
        if n_block == 1:
            np.dot(jacobians[b, t].T, state[0], moved[0])
        else:
            np.dot(state, jacobians[b, t], moved)
        for k in range(n_block):
            for i in range(n_units):
                state[k, i] = moved[k, i] + a[k, b, t - 1, i]
                v[k, b, t - 1, i] = state[k, i]


def propagate(jacobians: Tensor, q: Tensor) -> Tensor:
    """P q; jacobians: (trial, time, unit, unit), q: (block, trial, time, unit)."""
    return _over_trials(_propagate_trial, jacobians, q)


def backpropagate(jacobians: Tensor, a: Tensor) -> Tensor:
    """P* a; jacobians: (trial, time, unit, unit), a: (block, trial, time, unit)."""
    return _over_trials(_backpropagate_trial, jacobians, a)


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def _over_trials(kernel: Callable[..., None], jacobians: Tensor, q: Tensor) -> Tensor:
    v = torch.empty(q.shape, dtype=q.dtype)
    arrays = jacobians.numpy(), q.contiguous().numpy(), v.numpy()
    trials = range(q.shape[1])
    threads = min(torch.get_num_threads(), len(trials))
    with _blas().limit(limits=1, user_api="blas"):
        if threads == 1:
            for b in trials:
                kernel(*arrays, b)
        else:
            with ThreadPoolExecutor(threads) as pool:
                for _ in pool.map(lambda b: kernel(*arrays, b), trials):
                    pass
    return v
