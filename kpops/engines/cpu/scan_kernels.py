"""The recursions of P and P* over diagonal Jacobians, compiled for the CPU.

They serve models that couple no two units, except gated cells. One trial is one task, as in
:mod:`kpops.engines.cpu.jacobian_kernels`. Units fill a core's vector operations, and each number is
read once. A scan reads it twice to have fewer rounds, which gains nothing here.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
from torch import Tensor

from kpops.engines import threads
from kpops.engines.memory import uninitialised_like


@numba.njit(nogil=True, cache=True)
def _recur(blocks, q, v, b, backwards):
    """v[t] = q[t] + A[t] v[t-1], or v[t] = q[t] + A[t+1]^T v[t+1], for trial b.

    blocks: (row, column, trial, time, unit); q, v: (block, trial, time, variable, unit).
    """
    n_block, _, n_steps, n_variables, n_units = q.shape
    for i in range(n_steps):
        t = n_steps - 1 - i if backwards else i
        for k in range(n_block):
            for row in range(n_variables):
                new, forcing = v[k, b, t, row], q[k, b, t, row]
                for n in range(n_units):
                    new[n] = forcing[n]
                if i == 0:
                    continue
                for column in range(n_variables):
                    gain = blocks[column, row, b, t + 1] if backwards else blocks[row, column, b, t]
                    old = v[k, b, t + 1 if backwards else t - 1, column]
                    for n in range(n_units):
                        new[n] += gain[n] * old[n]


def recur(blocks: Tensor, q: Tensor, *, backwards: bool) -> Tensor:
    """P q, or P* q if `backwards`; q: (block, trial, time, unit)."""
    v = uninitialised_like(q)
    by_variable = (len(blocks), blocks.shape[-1])
    arrays = [
        blocks.numpy(),
        q.contiguous().unflatten(-1, by_variable).numpy(),
        v.unflatten(-1, by_variable).numpy(),
    ]
    kernel: Callable[..., None] = _recur
    threads.each(lambda b: kernel(*arrays, b, backwards), q.shape[1])
    return v
