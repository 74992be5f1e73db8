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
from kpops.engines.cpu.blas import product
from kpops.engines.memory import uninitialised_like


@numba.njit(nogil=True, cache=True)
def _recur(gemm, jacobians, q, v, state, b, backwards):
    """v[t] = q[t] + A[t] v[t-1], or v[t] = q[t] + A[t+1]^T v[t+1], for trial b.

    q, v: (block, trial, time, unit).
    """
    one, n_steps = state.dtype.type(1), q.shape[2]
    for i in range(n_steps):
        t = n_steps - 1 - i if backwards else i
        # Entry by entry: an assignment of arrays takes Numba two seconds more to compile.
        for k in range(q.shape[0]):
            for n in range(q.shape[3]):
                v[k, b, t, n] = q[k, b, t, n]
        if i > 0 and backwards:
            product(gemm, state[b], jacobians[b, t + 1], v[:, b, t], one)
        elif i > 0:
            product(gemm, state[b], jacobians[b, t], v[:, b, t], one, transpose_b=True)
        for k in range(q.shape[0]):
            for n in range(q.shape[3]):
                state[b, k, n] = v[k, b, t, n]


def recur(jacobians: Tensor, q: Tensor, *, backwards: bool) -> Tensor:
    """P q, or P* q if `backwards`; (trial, time, unit, unit), (block, trial, time, unit)."""
    v = uninitialised_like(q)
    n_block, n_trials, _, n_units = q.shape
    state = q.new_empty(n_trials, n_block, n_units)  # the vectors of a trial, side by side
    arrays = [a.numpy() for a in (jacobians, q.contiguous(), v, state)]
    gemm = blas.gemm_address(np.dtype(arrays[1].dtype))
    kernel: Callable[..., None] = _recur
    threads.each(lambda b: kernel(gemm, *arrays, b, backwards), n_trials)
    return v
