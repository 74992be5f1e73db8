"""P and P* of wide blocks: the Jacobian of a step, assembled where it is used.

With many vectors, most of the time goes into one product with the weights of every gate. The
Jacobian ``sum_g D_g W_g`` of one trial and step replaces them by a single one; assembling it takes
as long as the products of some vectors, and nothing of it is kept. Arguments and results are those
of :mod:`kpops.engines.cpu.gated_kernels`, but for `matrix`, workspace for the Jacobian, and
`trials`, the bounds of the task. There is one slope, and one layer.
"""

from __future__ import annotations

from kpops.engines.cpu.blas import product
from kpops.engines.cpu.gated_kernels import add, clear, combine, compiled, copy, part


@part
def assemble(lists, place, d, weight, matrix):
    """Write A^T of one step to `matrix`, (hidden, variable, hidden), without what is carried."""
    for j in range(len(matrix)):
        clear(matrix[j])
        combine(lists.gains, d, weight[j], matrix[j])
        if place.source < 0:
            slope = d[lists.slopes[0, 2], j]
            for i in range(matrix.shape[1]):
                for m in range(matrix.shape[2]):
                    matrix[j, i, m] *= slope


@compiled
def propagate_trials(gemm, weight, q, v, d, lists, state, moved, matrix, place, trials):
    """v[t] = q[t] + A[t] v[t-1]; weight is W^T (hidden, gate, hidden), matrix the same of A^T."""
    n_block, n, zero = q.shape[0], state.shape[1], matrix.dtype.type(0)
    source = place.source if place.source >= 0 else lists.slopes[0, 1]
    for step in range(d.shape[1]):
        t = place.start + step
        for b in range(trials.first, trials.stop):
            rows = slice(b * n_block, (b + 1) * n_block)
            if t > 0:
                assemble(lists, place, d[b, step], weight, matrix)
                product(gemm, state[rows, source], matrix, moved[rows], zero)
            for k in range(n_block):
                r = b * n_block + k
                if t == 0:
                    clear(moved[r])
                add(q[k, b, t], moved[r], 0, n)
                combine(lists.carry, d[b, step], state[r], moved[r])
                copy(moved[r], state[r], 0, n)
                copy(moved[r], v[k, b, t], 0, n)


@compiled
def backpropagate_trials(gemm, weight, a, v, d, lists, state, moved, matrix, place, trials):
    """v[t] = a[t] + A[t+1]^T v[t+1]; weight is W, matrix (variable * hidden, hidden)."""
    hidden, n_block, n = weight.shape[1], a.shape[0], state.shape[1]
    one = matrix.dtype.type(1)
    source = place.source if place.source >= 0 else lists.slopes[0, 0]
    for step in range(d.shape[1] - 1, -1, -1):
        t = place.start + step
        for b in range(trials.first, trials.stop):
            rows = slice(b * n_block, (b + 1) * n_block)
            for k in range(n_block):
                r = b * n_block + k
                copy(a[k, b, t], moved[r], 0, n)
                add(state[r], moved[r], 0, n)
                copy(moved[r], v[k, b, t], 0, n)
                clear(state[r])
                combine(lists.carry, d[b, step], moved[r], state[r])
            if t > 0:
                clear(matrix)
                for term in range(len(lists.gains)):
                    g, i, p = lists.gains[term, 0], lists.gains[term, 1], lists.gains[term, 2]
                    for j in range(hidden):
                        gain = d[b, step, p, j]
                        into, row = matrix[i * hidden + j], weight[g * hidden + j]
                        for m in range(hidden):
                            into[m] += gain * row[m]
                if place.source < 0:
                    slopes = d[b, step, lists.slopes[0, 2]]
                    for j in range(len(matrix)):
                        for m in range(hidden):
                            matrix[j, m] *= slopes[m]
                product(gemm, moved[rows], matrix, state[rows, source], one)
