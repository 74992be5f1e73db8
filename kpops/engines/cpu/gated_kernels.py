"""The loops of the compiled gated engine.

Shapes: q, a, v, into (block, trial, time, variable, hidden), with the variables of the whole stack;
d (trial, step of the segment, diagonal, hidden); state (row, variable, hidden), features (row, 1,
hidden), maps (row, gate, hidden), where row number ``b * n_block + k`` is trial b of vector k. The
tuples of arguments are those of :mod:`kpops.engines.cpu.arguments`; `gemm` is the address of a
matrix product. A kernel touches only its own rows, or its own vectors.

A first result waits for Numba, which takes longer with every operation on arrays. So the kernels
share a few parts, each compiled once, and assign no array to another: Numba compiles for two
seconds just to word the error of an assignment that fails.
"""

from __future__ import annotations

from typing import Any

import numba

from kpops.engines.cpu.blas import product

OPTIONS: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    # Fused multiply-add changes the last bit only and saves an instruction in three.
    "fastmath": {"contract"},
    "no_cfunc_wrapper": True,
}
compiled = numba.njit(**OPTIONS)
part = numba.njit(**{**OPTIONS, "no_cpython_wrapper": True})  # called by kernels only

CHUNK = 128
"""Rows of (trial, time) that the passage between layers takes at a time."""


@part
def clear(into):
    """Set a matrix to zero."""
    for i in range(len(into)):
        row = into[i]
        for j in range(row.size):
            row[j] = 0


@part
def copy(a, into, first, n):
    """Write n rows of a, from the `first` one on, into the same rows of `into`."""
    for i in range(first, first + n):
        old, new = a[i], into[i]
        for j in range(new.size):
            new[j] = old[j]


@part
def add(a, into, first, n):
    """Add n rows of a to the same rows of `into`."""
    for i in range(first, first + n):
        old, new = a[i], into[i]
        for j in range(new.size):
            new[j] += old[j]


@part
def combine(terms, d, source, into):
    """Add d[p] * source[i] to into[v], or write it there, for all terms (v, i, p, whether first).

    d is that of one step, (diagonal, hidden), and `source` and `into` are matrices.
    """
    for term in range(len(terms)):
        new, old = into[terms[term, 0]], source[terms[term, 1]]
        gain = d[terms[term, 2]]
        if terms[term, 3]:
            for j in range(new.size):
                new[j] = gain[j] * old[j]
        else:
            for j in range(new.size):
                new[j] += gain[j] * old[j]


@compiled
def propagate_rows(gemm, weights, q, v, passed, d, lists, state, features, maps, new, place, rows):
    """v[t] = q[t] + A[t] v[t-1] + B[t] passed[t] over the steps of a segment.

    `weights` are transposed. On entry `state` is v at the step before the segment, on exit at its
    last step; `passed` (time, row, hidden) what the layer below has passed on, or on exit what this
    layer has. `new` (variable, hidden) is the task's workspace.
    """
    first, n, row0, row1 = place.variable, place.n_variables, rows.first, rows.stop
    n_block = q.shape[0]
    zero, one = new.dtype.type(0), new.dtype.type(1)
    from_h = maps[row0:row1, : place.n_recurrent]
    from_x = maps[row0:row1, place.first_input :]
    for step in range(d.shape[1]):
        t = place.start + step
        if t == 0:
            for r in range(row0, row1):
                clear(maps[r])
        elif place.source >= 0:
            product(gemm, state[row0:row1, place.source], weights.recurrent, from_h, zero)
        else:
            for r in range(row0, row1):
                combine(lists.slopes, d[r // n_block, step], state[r], features[r])
            product(gemm, features[row0:row1], weights.recurrent, from_h, zero)
        if place.has_below:
            beta = zero if place.first_input else one
            product(gemm, passed[t, row0:row1], weights.input, from_x, beta)
        for r in range(row0, row1):
            b, k = r // n_block, r % n_block
            copy(q[k, b, t], new, first, n)
            if t > 0 or place.has_below:
                combine(lists.carry, d[b, step], state[r], new)
                combine(lists.gains, d[b, step], maps[r], new)
            if place.has_above:
                forcing = zero if place.full_state else one
                for j in range(new.shape[1]):
                    passed[t, r, j] = new[first, j] - forcing * q[k, b, t, first, j]
            copy(new, state[r], first, n)
            copy(new, v[k, b, t], first, n)


@compiled
def backpropagate_rows(
    gemm, weights, a, v, passed, d, lists, state, features, maps, new, place, rows
):
    """v[t] = a[t] + A[t+1]^T (v[t+1] + passed[t+1]) over the steps of a segment, backwards.

    On entry `state` is A^T v of the step after the segment, on exit that of its first step;
    `passed` the cotangent from the layer above, on exit that for the one below. Other arguments are
    those of `propagate_rows`.
    """
    first, n, row0, row1 = place.variable, place.n_variables, rows.first, rows.stop
    n_block = a.shape[0]
    zero, one = new.dtype.type(0), new.dtype.type(1)
    to_h = maps[row0:row1, : place.n_recurrent]
    to_x = maps[row0:row1, place.first_input :]
    for step in range(d.shape[1] - 1, -1, -1):
        t = place.start + step
        for r in range(row0, row1):
            b, k = r // n_block, r % n_block
            copy(a[k, b, t], new, first, n)
            add(state[r], new, first, n)
            if not place.full_state:
                copy(new, v[k, b, t], first, n)
            if place.has_above:
                for j in range(new.shape[1]):
                    new[first, j] += passed[t, r, j]
            if place.full_state:
                copy(new, v[k, b, t], first, n)
            clear(state[r])
            clear(maps[r])
            combine(lists.carry, d[b, step], new, state[r])
            combine(lists.gains, d[b, step], new, maps[r])
        if place.has_below:
            product(gemm, to_x, weights.input, passed[t, row0:row1], zero)
        if t == 0:
            continue
        if place.source >= 0:
            product(gemm, to_h, weights.recurrent, state[row0:row1, place.source], one)
        else:
            product(gemm, to_h, weights.recurrent, features[row0:row1], zero)
            for r in range(row0, row1):
                combine(lists.slopes, d[r // n_block, step], features[r], state[r])


@compiled
def pass_rows(gemm, weight, v, d, terms, maps, start, below, rows, up):
    """v_l[t] += B[t] v_(l-1)[t] over the steps of a segment, in place; weight is U^T.

    If not `up`, v_(l-1)[t] += B[t]^T v_l[t]; weight is U. The segment's first step is `start`,
    `below` the first variable of the layer below; maps (CHUNK, gate, hidden) is the task's
    workspace.
    """
    n_block, zero, one = v.shape[0], maps.dtype.type(0), maps.dtype.type(1)
    for r in range(rows.first, rows.stop):
        b, k = r // n_block, r % n_block
        for first in range(0, d.shape[1], CHUNK):
            n = min(CHUNK, d.shape[1] - first)
            here = v[k, b, start + first : start + first + n]
            if up:
                product(gemm, here[:, below], weight, maps[:n], zero)
            for j in range(n):
                if up:
                    combine(terms, d[b, first + j], maps[j], here[j])
                else:
                    clear(maps[j])
                    combine(terms, d[b, first + j], here[j], maps[j])
            if not up:
                product(gemm, maps[:n], weight, here[:, below], one)


@part
def rows_of(chunk, n_steps, size):
    """Trial, first step and number of steps of a chunk of at most `size` rows."""
    per_trial = -(-n_steps // size)
    first = chunk % per_trial * size
    return chunk // per_trial, first, min(size, n_steps - first)


@compiled
def gather(gemm, d, factors, q, sums, terms, runs, y, start, vectors, chunks):
    """Add Z^T (D q), summed over the task's rows, to `sums`: the cotangent of the weights.

    `terms` sum the parts' D q; `factors` are the Z (trial, time, rank), and `runs` (factor, first
    part, last part + 1, whether it is the first factor of these parts). The segment's first step is
    `start`; y (row of a chunk, part, hidden) is workspace, and `sums` has for each factor (vector,
    rank, part * hidden). A chunk of the diagonals serves all vectors.
    """
    one, width = y.dtype.type(1), y.shape[2]
    for chunk in range(chunks.first, chunks.stop):
        b, first, n = rows_of(chunk, d.shape[1], len(y))
        t = start + first
        for k in range(vectors.first, vectors.stop):
            for j in range(n):
                combine(terms, d[b, first + j], q[k, b, t + j], y[j])
            for run in range(len(runs)):
                f, part0, part1 = runs[run, 0], runs[run, 1], runs[run, 2]
                into = sums[f][k, :, part0 * width : part1 * width]
                z, cotangent = factors[f][b, t : t + n], y[:n, part0:part1]
                product(gemm, z, cotangent, into, one, transpose_a=True)


@compiled
def spread(gemm, d, factors, into, sums, terms, runs, y, start, vectors, chunks):
    """Write the sum over parts of D (Z sums[part]) into the task's rows; the same arguments."""
    zero, one, width = y.dtype.type(0), y.dtype.type(1), y.shape[2]
    for chunk in range(chunks.first, chunks.stop):
        b, first, n = rows_of(chunk, d.shape[1], len(y))
        t = start + first
        for k in range(vectors.first, vectors.stop):
            for run in range(len(runs)):
                f, part0, part1 = runs[run, 0], runs[run, 1], runs[run, 2]
                beta = zero if runs[run, 3] else one
                w = sums[f][k, :, part0 * width : part1 * width]
                product(gemm, factors[f][b, t : t + n], w, y[:n, part0:part1], beta)
            for j in range(n):
                combine(terms, d[b, first + j], y[j], into[k, b, t + j])
