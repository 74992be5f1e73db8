"""The loops of the compiled gated engine.

Shapes: q, a, v, into (block, trial, time, variable of the stack, hidden); d (trial, step of the
segment, diagonal, hidden); state (row, variable, hidden), features (row, hidden), maps (row, gate,
hidden), where row number ``b * n_block + k`` is trial b of vector k. `carry`, `gains`, `inputs` and
`slopes` are lists as of :class:`kpops.engines.gated.gates.Pattern`; `gemm` is the address of a
matrix product. A kernel touches only its own rows, or its own vectors.
"""

from __future__ import annotations

import numba
import numpy as np

from kpops.engines.cpu.blas import product, transposed_product

# Fused multiply-add changes the last bit only and saves an instruction in three.
compiled = numba.njit(nogil=True, cache=True, fastmath={"contract"})

CHUNK = 128
"""Rows of (trial, time) that the passage between layers takes at a time."""


@compiled
def add_product(into, a, b):
    """Into += a * b, element by element."""
    for i in range(into.size):
        into[i] += a[i] * b[i]


@compiled
def set_product(into, a, b):
    """Into = a * b."""
    for i in range(into.size):
        into[i] = a[i] * b[i]


@compiled
def add(into, a):
    """Into += a."""
    for i in range(into.size):
        into[i] += a[i]


@compiled
def side_by_side(maps):
    """(row, gate, hidden) as (row, gate * hidden), which is what the weights make and take."""
    return maps.reshape(maps.shape[0], maps.shape[1] * maps.shape[2])


@compiled
def propagate_rows(
    gemm, weights, q, v, passed, d, carry, gains, slopes, state, features, maps, where, rows
):
    """v[t] = q[t] + A[t] v[t-1] + B[t] passed[t] over the steps of a segment.

    `weights` are W^T and U^T. `rows` are the first row of the task and the one behind its last;
    `where` is (first step of the segment, first variable of the layer, whether a layer below passes
    something up, whether a layer above takes it, whether the full state or only its increment
    beside q; column at which the input maps begin). On entry `state` is v at the step before the
    segment, on exit at its last step; `passed` (time, row, hidden) what the layer below has passed
    on, or on exit what this layer has.
    """
    weight, input_weight = weights
    start, offset, has_below, has_above, full_state, column = where
    row0, row1 = rows
    n_block = q.shape[0]
    zero, one = maps.dtype.type(0), maps.dtype.type(1)
    from_h = side_by_side(maps)[row0:row1, : weight.shape[1]]
    from_x = side_by_side(maps)[row0:row1, column : column + input_weight.shape[1]]
    new = np.empty(state.shape[1:], maps.dtype)
    for step in range(d.shape[1]):
        t = start + step
        if t == 0:
            from_h[:] = zero
        elif len(slopes) == 1 and slopes[0, 1] < 0:
            product(gemm, state[row0:row1, slopes[0, 0]], weight, from_h, zero)
        else:
            for r in range(row0, row1):
                features[r] = zero
                for w, p in slopes:
                    add_product(features[r], d[r // n_block, step, p], state[r, w])
            product(gemm, features[row0:row1], weight, from_h, zero)
        if has_below:
            product(gemm, passed[t, row0:row1], input_weight, from_x, zero if column else one)
        for r in range(row0, row1):
            b, k = r // n_block, r % n_block
            for i in range(len(new)):
                new[i] = q[k, b, t, offset + i]
            if t > 0 or has_below:
                for i, w, p in carry:
                    add_product(new[i], d[b, step, p], state[r, w])
                for i, g, p in gains:
                    add_product(new[i], d[b, step, p], maps[r, g])
            for i in range(len(new)):
                state[r, i] = new[i]
                v[k, b, t, offset + i] = new[i]
            if has_above:
                passed[t, r] = new[0]
                if not full_state:
                    passed[t, r] -= q[k, b, t, offset]


@compiled
def backpropagate_rows(
    gemm, weights, a, v, passed, d, carry, gains, slopes, state, features, maps, where, rows
):
    """v[t] = a[t] + A[t+1]^T (v[t+1] + passed[t+1]) over the steps of a segment, backwards.

    `weights` are W and U. On entry `state` is A^T v of the step after the segment, on exit that of
    its first step; `passed` what the layer above asks, on exit what this layer asks of the one
    below. Other arguments as of `propagate_rows`.
    """
    weight, input_weight = weights
    start, offset, has_below, has_above, full_state, column = where
    row0, row1 = rows
    n_block = a.shape[0]
    zero, one = maps.dtype.type(0), maps.dtype.type(1)
    to_h = side_by_side(maps)[row0:row1, : len(weight)]
    to_x = side_by_side(maps)[row0:row1, column : column + len(input_weight)]
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
            if has_above:
                add(new[0], passed[t, r])
                if full_state:
                    v[k, b, t, offset] = new[0]
            state[r] = zero
            maps[r] = zero
            for i, w, p in carry:
                add_product(state[r, w], d[b, step, p], new[i])
            for i, g, p in gains:
                add_product(maps[r, g], d[b, step, p], new[i])
        if has_below:
            product(gemm, to_x, input_weight, passed[t, row0:row1], zero)
        if t == 0:
            continue
        if len(slopes) == 1 and slopes[0, 1] < 0:
            product(gemm, to_h, weight, state[row0:row1, slopes[0, 0]], one)
        else:
            product(gemm, to_h, weight, features[row0:row1], zero)
            for r in range(row0, row1):
                for w, p in slopes:
                    add_product(state[r, w], d[r // n_block, step, p], features[r])


@compiled
def pass_up_rows(gemm, weight, v, d, inputs, maps, where, rows):
    """v_l[t] += B[t] v_(l-1)[t] over the steps of a segment, in place; weight is U^T.

    `where` is (first step of the segment, first variable of the layer, that of the one below);
    maps (CHUNK, gate, hidden) is the task's room to work.
    """
    start, offset, below = where
    n_block, zero = v.shape[0], maps.dtype.type(0)
    for r in range(rows[0], rows[1]):
        b, k = r // n_block, r % n_block
        for first in range(0, d.shape[1], CHUNK):
            n = min(CHUNK, d.shape[1] - first)
            here = v[k, b, start + first : start + first + n]
            product(gemm, here[:, below], weight, side_by_side(maps)[:n], zero)
            for j in range(n):
                for i, g, p in inputs:
                    add_product(here[j, offset + i], d[b, first + j, p], maps[j, g])


@compiled
def pass_down_rows(gemm, weight, a, d, inputs, maps, where, rows):
    """a_(l-1)[t] += B[t]^T a_l[t]; weight is U, other arguments as of `pass_up_rows`."""
    start, offset, below = where
    n_block, zero, one = a.shape[0], maps.dtype.type(0), maps.dtype.type(1)
    for r in range(rows[0], rows[1]):
        b, k = r // n_block, r % n_block
        for first in range(0, d.shape[1], CHUNK):
            n = min(CHUNK, d.shape[1] - first)
            here = a[k, b, start + first : start + first + n]
            for j in range(n):
                maps[j] = zero
                for i, g, p in inputs:
                    add_product(maps[j, g], d[b, first + j, p], here[j, offset + i])
            product(gemm, side_by_side(maps)[:n], weight, here[:, below], one)


@compiled
def gather(gemm, d, factors, q, sums, gains, runs, y, where):
    """Add Z^T (D q), summed over the task's rows, to `sums`: what units ask of the weights.

    `gains` holds (part, variable, diagonal, whether it is the variable's first), sorted by part;
    `factors` the Z (trial, time, rank), and `runs` (factor, first part, last part + 1, whether it
    is the first factor of these parts). `where` is (first step of the segment, first variable of
    the layer, then the bounds of the task's vectors and of its chunks of rows); y (row of a chunk,
    part, hidden) is room to work, and `sums` has for each factor (vector, rank, part * hidden).
    A chunk of the diagonals serves all vectors.
    """
    start, offset, k0, k1, chunk0, chunk1 = where
    one, width = y.dtype.type(1), d.shape[3]
    of_trial = -(-d.shape[1] // len(y))
    for chunk in range(chunk0, chunk1):
        b, first = chunk // of_trial, chunk % of_trial * len(y)
        n = min(len(y), d.shape[1] - first)
        t = start + first
        for k in range(k0, k1):
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
                transposed_product(gemm, z, cotangent, sums[f][k][:, columns], one)


@compiled
def spread(gemm, d, factors, into, sums, gains, runs, y, where):
    """Into = sum over parts of D (Z sums[part]) at the task's rows; arguments as of `gather`."""
    start, offset, k0, k1, chunk0, chunk1 = where
    zero, one, width = y.dtype.type(0), y.dtype.type(1), d.shape[3]
    of_trial = -(-d.shape[1] // len(y))
    for chunk in range(chunk0, chunk1):
        b, first = chunk // of_trial, chunk % of_trial * len(y)
        n = min(len(y), d.shape[1] - first)
        t = start + first
        for k in range(k0, k1):
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
