"""P and P* of wide blocks: the Jacobian of a step, assembled where it is used.

With many vectors, most of the time goes into one product with the weights of every gate. The
Jacobian ``sum_g D_g W_g`` of one trial and step replaces them by a single one; assembling it takes
as long as the products of some vectors, and nothing of it is kept. Arguments and results are those
of :mod:`kpops.engines.gated_kernels`, but for `matrix`, which is room for the Jacobian of a task,
and `trials`, its bounds. There is one slope.
"""

from __future__ import annotations

import numpy as np

from kpops.engines.blas import product
from kpops.engines.gated_kernels import add_product, compiled


@compiled
def propagate_trials(
    gemm, weight, q, v, d, start, offset, carry, recurrent, slopes, state, moved, matrix, trials
):
    """v[t] = q[t] + A[t] v[t-1]; weight is W^T, matrix (hidden, variable * hidden)."""
    hidden, n_block, n_variables = weight.shape[0], q.shape[0], state.shape[0]
    zero = matrix.dtype.type(0)
    new = np.empty(n_variables * hidden, matrix.dtype)
    source, slope = slopes[0]
    for step in range(d.shape[2]):
        t = start + step
        for b in range(trials[0], trials[1]):
            rows = slice(b * n_block, (b + 1) * n_block)
            if t > 0:
                for j in range(hidden):
                    matrix[j] = zero
                    for i, g, p in recurrent:
                        into = matrix[j, i * hidden : (i + 1) * hidden]
                        add_product(into, d[p, b, step], weight[j, g * hidden : (g + 1) * hidden])
                    if slope >= 0:
                        matrix[j] *= d[slope, b, step, j]
                product(gemm, state[source, rows], matrix, moved[rows], zero)
            for k in range(n_block):
                r = b * n_block + k
                new[:] = q[k, b, t, offset : offset + new.size]
                if t > 0:
                    for i, w, p in carry:
                        add_product(new[i * hidden : (i + 1) * hidden], d[p, b, step], state[w, r])
                    for i in range(new.size):
                        new[i] += moved[r, i]
                for i in range(n_variables):
                    state[i, r] = new[i * hidden : (i + 1) * hidden]
                v[k, b, t, offset : offset + new.size] = new


@compiled
def backpropagate_trials(
    gemm, weight, a, v, d, start, offset, carry, recurrent, slopes, state, moved, matrix, trials
):
    """v[t] = a[t] + A[t+1]^T v[t+1]; weight is W, matrix (variable * hidden, hidden)."""
    hidden, n_block, n_variables = weight.shape[1], a.shape[0], state.shape[0]
    zero, one = matrix.dtype.type(0), matrix.dtype.type(1)
    source, slope = slopes[0]
    for step in range(d.shape[2] - 1, -1, -1):
        t = start + step
        for b in range(trials[0], trials[1]):
            rows = slice(b * n_block, (b + 1) * n_block)
            for k in range(n_block):
                r = b * n_block + k
                new = moved[r]
                new[:] = a[k, b, t, offset : offset + new.size]
                for i in range(n_variables):
                    for j in range(hidden):
                        new[i * hidden + j] += state[i, r, j]
                        state[i, r, j] = zero
                v[k, b, t, offset : offset + new.size] = new
                for i, w, p in carry:
                    add_product(state[w, r], d[p, b, step], new[i * hidden : (i + 1) * hidden])
            if t > 0:
                matrix[:] = zero
                for i, g, p in recurrent:
                    for j in range(hidden):
                        gain = d[p, b, step, j]
                        into, row = matrix[i * hidden + j], weight[g * hidden + j]
                        for m in range(hidden):
                            into[m] += gain * row[m]
                if slope >= 0:
                    for j in range(len(matrix)):
                        matrix[j] *= d[slope, b, step]
                product(gemm, moved[rows], matrix, state[source, rows], one)
