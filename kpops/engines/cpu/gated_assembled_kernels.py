"""P and P* of wide blocks: the Jacobian of a step, assembled where it is used.

With many vectors, most of the time goes into one product with the weights of every gate. The
Jacobian ``sum_g D_g W_g`` of one trial and step replaces them by a single one; assembling it takes
as long as the products of some vectors, and nothing of it is kept. Arguments and results are those
of :mod:`kpops.engines.cpu.gated_kernels`, but for `matrix`, workspace for the Jacobian, and
`trials`, the bounds of the task. There is one slope.
"""

from __future__ import annotations

from kpops.engines.cpu.blas import product
from kpops.engines.cpu.gated_kernels import add, add_product, compiled, side_by_side


@compiled
def propagate_trials(gemm, weight, q, v, d, lists, state, moved, matrix, start, trials):
    """v[t] = q[t] + A[t] v[t-1]; weight is W^T, matrix (hidden, variable * hidden)."""
    hidden, n_block, n_variables = weight.shape[0], q.shape[0], state.shape[1]
    zero = matrix.dtype.type(0)
    source, slope = lists.slopes[0]
    for step in range(d.shape[1]):
        t = start + step
        for b in range(trials.first, trials.stop):
            rows = slice(b * n_block, (b + 1) * n_block)
            if t > 0:
                for j in range(hidden):
                    matrix[j] = zero
                    for i, g, p in lists.gains:
                        into = matrix[j, i * hidden : (i + 1) * hidden]
                        add_product(into, d[b, step, p], weight[j, g * hidden : (g + 1) * hidden])
                    if slope >= 0:
                        matrix[j] *= d[b, step, slope, j]
                product(gemm, state[rows, source], matrix, side_by_side(moved)[rows], zero)
            for k in range(n_block):
                r = b * n_block + k
                new = moved[r]
                if t == 0:
                    new[:] = zero
                for i in range(n_variables):
                    add(new[i], q[k, b, t, i])
                for i, w, p in lists.carry:
                    add_product(new[i], d[b, step, p], state[r, w])
                state[r] = new
                v[k, b, t] = new


@compiled
def backpropagate_trials(gemm, weight, a, v, d, lists, state, moved, matrix, start, trials):
    """v[t] = a[t] + A[t+1]^T v[t+1]; weight is W, matrix (variable * hidden, hidden)."""
    hidden, n_block, n_variables = weight.shape[1], a.shape[0], state.shape[1]
    zero, one = matrix.dtype.type(0), matrix.dtype.type(1)
    source, slope = lists.slopes[0]
    for step in range(d.shape[1] - 1, -1, -1):
        t = start + step
        for b in range(trials.first, trials.stop):
            rows = slice(b * n_block, (b + 1) * n_block)
            for k in range(n_block):
                r = b * n_block + k
                new = moved[r]
                new[:] = a[k, b, t]
                for i in range(n_variables):
                    add(new[i], state[r, i])
                state[r] = zero
                v[k, b, t] = new
                for i, w, p in lists.carry:
                    add_product(state[r, w], d[b, step, p], new[i])
            if t > 0:
                matrix[:] = zero
                for i, g, p in lists.gains:
                    for j in range(hidden):
                        gain = d[b, step, p, j]
                        into, row = matrix[i * hidden + j], weight[g * hidden + j]
                        for m in range(hidden):
                            into[m] += gain * row[m]
                if slope >= 0:
                    for j in range(len(matrix)):
                        matrix[j] *= d[b, step, slope]
                product(gemm, side_by_side(moved)[rows], matrix, state[rows, source], one)
