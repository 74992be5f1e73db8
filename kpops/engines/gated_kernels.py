"""The loops of the compiled gated engine.

Shapes: q, a, v, into (block, trial, time, unit); d (diagonal, trial, step of the segment, hidden);
state (variable, row, hidden), features (row, hidden), maps (row, gates * hidden), where row number
``b * n_block + k`` is trial b of vector k. `carry`, `recurrent` and `slopes` are the lists of
:class:`kpops.engines.gates.Pattern`; `gemm` is the address of a matrix product. A kernel touches
only its own rows, or its own units of its own vector.
"""

from __future__ import annotations

import numba
import numpy as np

from kpops.engines.blas import product, transposed_product

# Fused multiply-add changes the last bit only and saves an instruction in three.
compiled = numba.njit(nogil=True, cache=True, fastmath={"contract"})

CHUNK = 128
"""Rows of (trial, time) that single steps take at a time."""


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
def propagate_rows(
    gemm, weights, q, v, passed, d, carry, gains, slopes, state, features, maps, where, rows
):
    """v[t] = q[t] + A[t] v[t-1] + B[t] passed[t] over the steps of a segment.

    `weights` are W^T and U^T. `rows` are the first row of the task and the one behind its last;
    `where` is (first step of the segment, first unit of the layer, whether a layer below passes
    something up, whether a layer above takes it, whether all of the state or only what it has
    gained beside q; column of `maps` where input maps begin).
    On entry `state` is v at the step before the segment, on exit at its last step; `passed` (time,
    row, hidden) what the layer below has gained, or on exit what this layer has.
    """
    weight, input_weight = weights
    start, offset, takes, gives, entire, column = where
    row0, row1 = rows
    n_block = q.shape[0]
    hidden, n_maps = weight.shape
    zero, one = maps.dtype.type(0), maps.dtype.type(1)
    new = np.empty(state.shape[0] * hidden, maps.dtype)
    for step in range(d.shape[2]):
        t = start + step
        from_h = maps[row0:row1, :n_maps]
        if t == 0:
            from_h[:] = zero
        elif len(slopes) == 1 and slopes[0, 1] < 0:
            product(gemm, state[slopes[0, 0], row0:row1], weight, from_h, zero)
        else:
            for r in range(row0, row1):
                features[r] = zero
                for w, p in slopes:
                    add_product(features[r], d[p, r // n_block, step], state[w, r])
            product(gemm, features[row0:row1], weight, from_h, zero)
        if takes:
            from_x = maps[row0:row1, column : column + input_weight.shape[1]]
            beta = one if column == 0 else zero
            product(gemm, passed[t, row0:row1], input_weight, from_x, beta)
        for r in range(row0, row1):
            b, k = r // n_block, r % n_block
            new[:] = q[k, b, t, offset : offset + new.size]
            if t > 0 or takes:
                for i, w, p in carry:
                    add_product(new[i * hidden : (i + 1) * hidden], d[p, b, step], state[w, r])
                for i, g, p in gains:
                    add_product(
                        new[i * hidden : (i + 1) * hidden],
                        d[p, b, step],
                        maps[r, g * hidden : (g + 1) * hidden],
                    )
            for i in range(state.shape[0]):
                state[i, r] = new[i * hidden : (i + 1) * hidden]
            v[k, b, t, offset : offset + new.size] = new
            if gives:
                passed[t, r] = new[:hidden]
                if not entire:
                    passed[t, r] -= q[k, b, t, offset : offset + hidden]


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
    start, offset, takes, gives, entire, column = where
    row0, row1 = rows
    n_block = a.shape[0]
    n_maps, hidden = weight.shape
    zero, one = maps.dtype.type(0), maps.dtype.type(1)
    new = np.empty(state.shape[0] * hidden, maps.dtype)
    for step in range(d.shape[2] - 1, -1, -1):
        t = start + step
        for r in range(row0, row1):
            b, k = r // n_block, r % n_block
            new[:] = a[k, b, t, offset : offset + new.size]
            for i in range(state.shape[0]):
                for j in range(hidden):
                    new[i * hidden + j] += state[i, r, j]
                    state[i, r, j] = zero
            if gives and not entire:
                v[k, b, t, offset : offset + new.size] = new
            if gives:
                for j in range(hidden):
                    new[j] += passed[t, r, j]
            if entire or not gives:
                v[k, b, t, offset : offset + new.size] = new
            if t > 0 or takes:
                maps[r] = zero
                for i, w, p in carry:
                    add_product(state[w, r], d[p, b, step], new[i * hidden : (i + 1) * hidden])
                for i, g, p in gains:
                    add_product(
                        maps[r, g * hidden : (g + 1) * hidden],
                        d[p, b, step],
                        new[i * hidden : (i + 1) * hidden],
                    )
        if takes:
            from_x = maps[row0:row1, column : column + input_weight.shape[0]]
            product(gemm, from_x, input_weight, passed[t, row0:row1], zero)
        if t > 0:
            from_h = maps[row0:row1, :n_maps]
            if len(slopes) == 1 and slopes[0, 1] < 0:
                product(gemm, from_h, weight, state[slopes[0, 0], row0:row1], one)
            else:
                product(gemm, from_h, weight, features[row0:row1], zero)
                for r in range(row0, row1):
                    for w, p in slopes:
                        add_product(state[w, r], d[p, r // n_block, step], features[r])


@compiled
def pass_up_rows(gemm, weight, v, d, inputs, maps, where, rows):
    """v_l[t] += B[t] v_(l-1)[t] over the steps of a segment, in place; weight is U^T.

    `where` is (first step of the segment, first unit of the layer, first unit of the one below);
    maps (CHUNK, gates * hidden) is the task's room to work.
    """
    start, offset, below = where
    n_block, hidden = v.shape[0], d.shape[3]
    zero = maps.dtype.type(0)
    for r in range(rows[0], rows[1]):
        b, k = r // n_block, r % n_block
        for first in range(0, d.shape[2], CHUNK):
            n = min(CHUNK, d.shape[2] - first)
            here = v[k, b, start + first : start + first + n]
            product(gemm, here[:, below : below + hidden], weight, maps[:n], zero)
            for j in range(n):
                for i, g, p in inputs:
                    into = here[j, offset + i * hidden : offset + (i + 1) * hidden]
                    add_product(into, d[p, b, first + j], maps[j, g * hidden : (g + 1) * hidden])


@compiled
def pass_down_rows(gemm, weight, a, d, inputs, maps, where, rows):
    """a_(l-1)[t] += B[t]^T a_l[t]; weight is U, other arguments as of `pass_up_rows`."""
    start, offset, below = where
    n_block, hidden = a.shape[0], d.shape[3]
    zero, one = maps.dtype.type(0), maps.dtype.type(1)
    for r in range(rows[0], rows[1]):
        b, k = r // n_block, r % n_block
        for first in range(0, d.shape[2], CHUNK):
            n = min(CHUNK, d.shape[2] - first)
            here = a[k, b, start + first : start + first + n]
            for j in range(n):
                maps[j] = zero
                for i, g, p in inputs:
                    asked = here[j, offset + i * hidden : offset + (i + 1) * hidden]
                    add_product(maps[j, g * hidden : (g + 1) * hidden], d[p, b, first + j], asked)
            product(gemm, maps[:n], weight, here[:, below : below + hidden], one)


@compiled
def gather(gemm, d, factors, q, sums, gains, runs, y, where):
    """Add Z^T (D q), summed over the task's rows, to `sums`: what units ask of the weights.

    `gains` holds (part, variable, diagonal, whether it is the variable's first), sorted by part;
    `factors` the Z (trial, time, rank), and `runs` (factor, first part, last part + 1, whether it
    is the first factor of these parts). `where` is (first step of the segment, first unit of the
    layer, then the bounds of the task's vectors and of its chunks of rows); y (rows of a chunk,
    part * hidden) is room to work, and `sums` has for each factor (vector, rank, part * hidden).
    A chunk of the diagonals serves all vectors.
    """
    start, offset, k0, k1, chunk0, chunk1 = where
    width, one = d.shape[3], y.dtype.type(1)
    of_trial = -(-d.shape[2] // len(y))
    for chunk in range(chunk0, chunk1):
        b, first = chunk // of_trial, chunk % of_trial * len(y)
        n = min(len(y), d.shape[2] - first)
        t = start + first
        for k in range(k0, k1):
            for j in range(n):
                last = -1
                for part, i, p, _ in gains:
                    vector = q[k, b, t + j, offset + i * width : offset + (i + 1) * width]
                    into = y[j, part * width : (part + 1) * width]
                    if part == last:
                        add_product(into, d[p, b, first + j], vector)
                    else:
                        set_product(into, d[p, b, first + j], vector)
                    last = part
            for f, part0, part1, _ in runs:
                columns = slice(part0 * width, part1 * width)
                z, total = factors[f][b, t : t + n], sums[f][k]
                transposed_product(gemm, z, y[:n, columns], total[:, columns], one)


@compiled
def spread(gemm, d, factors, into, sums, gains, runs, y, where):
    """Into = sum over parts of D (Z sums[part]) at the task's rows; arguments as of `gather`."""
    start, offset, k0, k1, chunk0, chunk1 = where
    width, zero, one = d.shape[3], y.dtype.type(0), y.dtype.type(1)
    of_trial = -(-d.shape[2] // len(y))
    for chunk in range(chunk0, chunk1):
        b, first = chunk // of_trial, chunk % of_trial * len(y)
        n = min(len(y), d.shape[2] - first)
        t = start + first
        for k in range(k0, k1):
            for f, part0, part1, begins in runs:
                columns = slice(part0 * width, part1 * width)
                z, total = factors[f][b, t : t + n], sums[f][k]
                product(gemm, z, total[:, columns], y[:n, columns], zero if begins else one)
            for j in range(n):
                for part, i, p, begins in gains:
                    result = into[k, b, t + j, offset + i * width : offset + (i + 1) * width]
                    back = y[j, part * width : (part + 1) * width]
                    if begins:
                        set_product(result, d[p, b, first + j], back)
                    else:
                        add_product(result, d[p, b, first + j], back)
