"""Tangent vectors moved on by the steps of a gated layer, in place, compiled for the CPU.

The formulas and arguments are those of :mod:`kpops.engines.cpu.gated_kernels`, without a forcing
and with nothing kept but the last vectors: `state` is (row, variable of the stack, hidden), where
row number ``b * n_modes + k`` is vector k of trial b. A kernel takes `steps` of d, but of trial b
only those before ``ends[b]``: after the end of a trial, its vectors stay.
"""

from __future__ import annotations

from kpops.engines.cpu.blas import product
from kpops.engines.cpu.gated_assembled_kernels import assemble
from kpops.engines.cpu.gated_kernels import clear, combine, compiled, copy


@compiled
def move_rows(
    gemm, weights, state, passed, d, ends, lists, features, maps, new, place, steps, rows
):
    """s[t] = A[t] s[t-1] + B[t] passed[t], with the weights of all gates.

    `weights` are transposed; `passed` (step, row, hidden) is what the layer below has become, or on
    exit what this layer has.
    """
    first, n, row0, row1 = place.variable, place.n_variables, rows.first, rows.stop
    n_modes = len(state) // len(d)
    zero, one = new.dtype.type(0), new.dtype.type(1)
    from_h = maps[row0:row1, : place.n_recurrent]
    from_x = maps[row0:row1, place.first_input :]
    for t in range(steps.first, steps.stop):
        if place.source >= 0:
            product(gemm, state[row0:row1, place.source], weights.recurrent, from_h, zero)
        else:
            for r in range(row0, row1):
                combine(lists.slopes, d[r // n_modes, t], state[r], features[r])
            product(gemm, features[row0:row1], weights.recurrent, from_h, zero)
        if place.has_below:
            beta = zero if place.first_input else one
            below = passed[t - steps.first, row0:row1]
            product(gemm, below, weights.input, from_x, beta)
        for r in range(row0, row1):
            b = r // n_modes
            if t < ends[b]:
                clear(new[first : first + n])
                combine(lists.carry, d[b, t], state[r], new)
                combine(lists.gains, d[b, t], maps[r], new)
                copy(new, state[r], first, n)
            if place.has_above:
                for j in range(new.shape[1]):
                    passed[t - steps.first, r, j] = state[r, first, j]


@compiled
def move_trials(gemm, weight, state, d, ends, lists, moved, matrix, place, steps, trials):
    """s[t] = A[t] s[t-1] of a single layer, with the Jacobian of each step assembled in `matrix`.

    See :mod:`kpops.engines.cpu.gated_assembled_kernels`.
    """
    n_modes, zero = len(state) // len(d), matrix.dtype.type(0)
    source = place.source if place.source >= 0 else lists.slopes[0, 1]
    for b in range(trials.first, trials.stop):
        rows = slice(b * n_modes, (b + 1) * n_modes)
        for t in range(steps.first, min(steps.stop, ends[b])):
            assemble(lists, place, d[b, t], weight, matrix)
            product(gemm, state[rows, source], matrix, moved[rows], zero)
            for r in range(b * n_modes, (b + 1) * n_modes):
                combine(lists.carry, d[b, t], state[r], moved[r])
                copy(moved[r], state[r], 0, place.n_variables)
