"""The loops of the compiled gated engine.

Shapes: q, a, v, into (block, trial, time, variable of the stack, hidden); d (trial, step of the
segment, diagonal, hidden); state (row, variable, hidden), features (row, hidden), maps (row, gate,
hidden), where row number ``b * n_block + k`` is trial b of vector k. The tuples of arguments are
those of :mod:`kpops.engines.cpu.arguments`; `gemm` is the address of a matrix product. A kernel
touches only its own rows, or its own vectors.
"""

from __future__ import annotations

import numba
import numpy as np

from kpops.engines.cpu.blas import product

# Fused multiply-add changes the last bit only and saves an instruction in three.
compiled = numba.njit(nogil=True, cache=True, fastmath={"contract"})

CHUNK = 128
"""Rows of (trial, time) that the passage between layers takes at a time."""


@compiled
def add_product(into, a, b):
    """Add a * b to `into`, element by element."""
    for i in range(into.size):
        into[i] += a[i] * b[i]


@compiled
def set_product(into, a, b):
    """Write a * b into `into`."""
    for i in range(into.size):
        into[i] = a[i] * b[i]


@compiled
def add(into, a):
    """Add a to `into`."""
    for i in range(into.size):
        into[i] += a[i]


@compiled
def side_by_side(maps):
    """(row, gate, hidden) as (row, gate * hidden), which is what the weights make and take."""
    return maps.reshape(maps.shape[0], maps.shape[1] * maps.shape[2])


@compiled
def propagate_rows(gemm, weights, q, v, passed, d, lists, state, features, maps, place, rows):
    """v[t] = q[t] + A[t] v[t-1] + B[t] passed[t] over the steps of a segment.

    `weights` are transposed. On entry `state` is v at the step before the segment, on exit at its
    last step; `passed` (time, row, hidden) what the layer below has passed on, or on exit what this
    layer has.
    """
    carry, gains, slopes = lists
    start, offset, column = place.start, place.variable, place.column
    row0, row1 = rows
    n_block = q.shape[0]
    zero, one = maps.dtype.type(0), maps.dtype.type(1)
    from_h = side_by_side(maps)[row0:row1, : weights.recurrent.shape[1]]
    from_x = side_by_side(maps)[row0:row1, column : column + weights.input.shape[1]]
    new = np.empty(state.shape[1:], maps.dtype)
    for step in range(d.shape[1]):
        t = start + step
        if t == 0:
            from_h[:] = zero
        elif len(slopes) == 1 and slopes[0, 1] < 0:
            product(gemm, state[row0:row1, slopes[0, 0]], weights.recurrent, from_h, zero)
        else:
            for r in range(row0, row1):
                features[r] = zero
                for w, p in slopes:
                    add_product(features[r], d[r // n_block, step, p], state[r, w])
            product(gemm, features[row0:row1], weights.recurrent, from_h, zero)
        if place.has_below:
            product(gemm, passed[t, row0:row1], weights.input, from_x, zero if column else one)
        for r in range(row0, row1):
            b, k = r // n_block, r % n_block
            for i in range(len(new)):
                new[i] = q[k, b, t, offset + i]
            if t > 0 or place.has_below:
                for i, w, p in carry:
                    add_product(new[i], d[b, step, p], state[r, w])
                for i, g, p in gains:
                    add_product(new[i], d[b, step, p], maps[r, g])
            for i in range(len(new)):
                state[r, i] = new[i]
                v[k, b, t, offset + i] = new[i]
            if place.has_above:
                passed[t, r] = new[0]
                if not place.full_state:
                    passed[t, r] -= q[k, b, t, offset]


@compiled
def backpropagate_rows(gemm, weights, a, v, passed, d, lists, state, features, maps, place, rows):
    """v[t] = a[t] + A[t+1]^T (v[t+1] + passed[t+1]) over the steps of a segment, backwards.

    On entry `state` is A^T v of the step after the segment, on exit that of its first step;
    `passed` the cotangent from the layer above, on exit that for the one below. Other arguments are
    those of `propagate_rows`.
    """
    carry, gains, slopes = lists
    start, offset, column = place.start, place.variable, place.column
    row0, row1 = rows
    n_block = a.shape[0]
    zero, one = maps.dtype.type(0), maps.dtype.type(1)
    to_h = side_by_side(maps)[row0:row1, : len(weights.recurrent)]
    to_x = side_by_side(maps)[row0:row1, column : column + len(weights.input)]
    new = np.empty(state.shape[1:], maps.dtype)
    for step in range(d.shape[1] - 1, -1, -1):
        t = start + step
        for r in range(row0, row1):
            b, k = r // n_block, r % n_block
            for i in range(len(new)):
                new[i] = a[k, b, t, offset + i]
                add(new[i], state[r, i])
            for i in range(len(new)):
                v[k, b, t, offset + i] = new[i]
            if place.has_above:
                add(new[0], passed[t, r])
                if place.full_state:
                    v[k, b, t, offset] = new[0]
            state[r] = zero
            maps[r] = zero
            for i, w, p in carry:
                add_product(state[r, w], d[b, step, p], new[i])
            for i, g, p in gains:
                add_product(maps[r, g], d[b, step, p], new[i])
        if place.has_below:
            product(gemm, to_x, weights.input, passed[t, row0:row1], zero)
        if t == 0:
            continue
        if len(slopes) == 1 and slopes[0, 1] < 0:
            product(gemm, to_h, weights.recurrent, state[row0:row1, slopes[0, 0]], one)
        else:
            product(gemm, to_h, weights.recurrent, features[row0:row1], zero)
            for r in range(row0, row1):
                for w, p in slopes:
                    add_product(state[r, w], d[r // n_block, step, p], features[r])


@compiled
def pass_rows(gemm, weight, v, d, inputs, maps, start, offset, below, rows, up):
    """v_l[t] += B[t] v_(l-1)[t] over the steps of a segment, in place; weight is U^T.

    If not `up`, v_(l-1)[t] += B[t]^T v_l[t]; weight is U. The segment's first step is `start`,
    `offset` the first variable of the layer and `below` that of the layer below it; maps (CHUNK,
    gate, hidden) is the task's workspace.
    """
    n_block, zero, one = v.shape[0], maps.dtype.type(0), maps.dtype.type(1)
    for r in range(rows.first, rows.stop):
        b, k = r // n_block, r % n_block
        for first in range(0, d.shape[1], CHUNK):
            n = min(CHUNK, d.shape[1] - first)
            here = v[k, b, start + first : start + first + n]
            if up:
                product(gemm, here[:, below], weight, side_by_side(maps)[:n], zero)
            for j in range(n):
                if not up:
                    maps[j] = zero
                for i, g, p in inputs:
                    if up:
                        add_product(here[j, offset + i], d[b, first + j, p], maps[j, g])
                    else:
                        add_product(maps[j, g], d[b, first + j, p], here[j, offset + i])
            if not up:
                product(gemm, side_by_side(maps)[:n], weight, here[:, below], one)


@compiled
def rows_of(chunk, n_steps, size):
    """Trial, first step and number of steps of a chunk of at most `size` rows."""
    per_trial = -(-n_steps // size)
    first = chunk % per_trial * size
    return chunk // per_trial, first, min(size, n_steps - first)


@compiled
def gather(gemm, d, factors, q, sums, gains, runs, y, start, offset, vectors, chunks):
    """Add Z^T (D q), summed over the task's rows, to `sums`: the cotangent of the weights.

    `gains` holds (part, variable, diagonal, whether it is the variable's first), sorted by part;
    `factors` the Z (trial, time, rank), and `runs` (factor, first part, last part + 1, whether it
    is the first factor of these parts). The segment's first step is `start` and the layer's first
    variable `offset`; y (row of a chunk, part, hidden) is workspace, and `sums` has for each factor
    (vector, rank, part * hidden). A chunk of the diagonals serves all vectors.
    """
    one, width = y.dtype.type(1), d.shape[3]
    for chunk in range(chunks.first, chunks.stop):
        b, first, n = rows_of(chunk, d.shape[1], len(y))
        t = start + first
        for k in range(vectors.first, vectors.stop):
            for j in range(n):
                last = -1
                for part, i, p, _ in gains:
                    vector = q[k, b, t + j, offset + i]
                    if part == last:
                        add_product(y[j, part], d[b, first + j, p], vector)
                    else:
                        set_product(y[j, part], d[b, first + j, p], vector)
                    last = part
            for f, part0, part1, _ in runs:
                columns = slice(part0 * width, part1 * width)
                z, cotangent = factors[f][b, t : t + n], side_by_side(y)[:n, columns]
                product(gemm, z, cotangent, sums[f][k][:, columns], one, transpose_a=True)


@compiled
def spread(gemm, d, factors, into, sums, gains, runs, y, start, offset, vectors, chunks):
    """Write the sum over parts of D (Z sums[part]) into the task's rows; the same arguments."""
    zero, one, width = y.dtype.type(0), y.dtype.type(1), d.shape[3]
    for chunk in range(chunks.first, chunks.stop):
        b, first, n = rows_of(chunk, d.shape[1], len(y))
        t = start + first
        for k in range(vectors.first, vectors.stop):
            for f, part0, part1, begins in runs:
                columns = slice(part0 * width, part1 * width)
                z, back = factors[f][b, t : t + n], side_by_side(y)[:n, columns]
                product(gemm, z, sums[f][k][:, columns], back, zero if begins else one)
            for j in range(n):
                for part, i, p, begins in gains:
                    moved = into[k, b, t + j, offset + i]
                    if begins:
                        set_product(moved, d[b, first + j, p], y[j, part])
                    else:
                        add_product(moved, d[b, first + j, p], y[j, part])
