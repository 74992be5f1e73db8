"""The recursions of P and P* over stored Jacobians, compiled for the CPU.

One trial is one task: a thread takes it through the whole of time, and no trial waits for another.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
from torch import Tensor

from kpops.engines import threads
from kpops.engines.cpu import blas
from kpops.engines.cpu.blas import product, product_by_transposed
from kpops.engines.memory import uninitialised_like


@numba.njit(nogil=True, cache=True)
def _propagate_trial(gemm, jacobians, q, v, state, b):
    """v[t] = q[t] + A[t] v[t-1] for trial b; q, v: (block, trial, time, unit)."""
    one = state.dtype.type(1)
    state[b] = q[:, b, 0]
    v[:, b, 0] = state[b]
    for t in range(1, q.shape[2]):
        v[:, b, t] = q[:, b, t]
        product_by_transposed(gemm, state[b], jacobians[b, t], v[:, b, t], one)
        state[b] = v[:, b, t]


@numba.njit(nogil=True, cache=True)
def _backpropagate_trial(gemm, jacobians, a, v, state, b):
    """v[t] = a[t] + A[t+1]^T v[t+1] for trial b; a, v: (block, trial, time, unit)."""
    one = state.dtype.type(1)
    last = a.shape[2] - 1
    state[b] = a[:, b, last]
    v[:, b, last] = state[b]
    for t in range(last, 0, -1):
        v[:, b, t - 1] = a[:, b, t - 1]
        product(gemm, state[b], jacobians[b, t], v[:, b, t - 1], one)
        state[b] = v[:, b, t - 1]


def propagate(jacobians: Tensor, q: Tensor) -> Tensor:
    """P q; jacobians: (trial, time, unit, unit), q: (block, trial, time, unit)."""
    return _over_trials(_propagate_trial, jacobians, q)


def backpropagate(jacobians: Tensor, a: Tensor) -> Tensor:
    """P* a; jacobians: (trial, time, unit, unit), a: (block, trial, time, unit)."""
    return _over_trials(_backpropagate_trial, jacobians, a)


def _over_trials(kernel: Callable[..., None], jacobians: Tensor, q: Tensor) -> Tensor:
    v = uninitialised_like(q)
    n_block, n_trials, _, n_units = q.shape
    state = q.new_empty(n_trials, n_block, n_units)  # the vectors of a trial, side by side
    arrays = [a.numpy() for a in (jacobians, q.contiguous(), v, state)]
    gemm = blas.gemm_address(np.dtype(arrays[1].dtype))
    threads.each(lambda b: kernel(gemm, *arrays, b), n_trials)
    return v
