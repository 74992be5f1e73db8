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
"""Rows of (trial, time) that K takes at a time."""


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
    gemm,
    weight,
    q,
    v,
    d,
    start,
    offset,
    carry,
    recurrent,
    slopes,
    state,
    features,
    maps,
    rows,
):
    """v[t] = q[t] + A[t] v[t-1] over the steps of a segment; weight is W^T.

    `rows` are the first row of the task and the one behind its last.
    On entry `state` is v at the step before the segment, on exit at its last step.
    """
    row0, row1 = rows
    n_block = q.shape[0]
    hidden = weight.shape[0]
    zero = maps.dtype.type(0)
    new = np.empty(state.shape[0] * hidden, maps.dtype)
    for step in range(d.shape[2]):
        t = start + step
        if t > 0:
            if len(slopes) == 1 and slopes[0, 1] < 0:
                product(gemm, state[slopes[0, 0], row0:row1], weight, maps[row0:row1], zero)
            else:
                for r in range(row0, row1):
                    features[r] = zero
                    for w, p in slopes:
                        add_product(features[r], d[p, r // n_block, step], state[w, r])
                product(gemm, features[row0:row1], weight, maps[row0:row1], zero)
        for r in range(row0, row1):
            b, k = r // n_block, r % n_block
            new[:] = q[k, b, t, offset : offset + new.size]
            if t > 0:
                for i, w, p in carry:
                    add_product(new[i * hidden : (i + 1) * hidden], d[p, b, step], state[w, r])
                for i, g, p in recurrent:
                    add_product(
                        new[i * hidden : (i + 1) * hidden],
                        d[p, b, step],
                        maps[r, g * hidden : (g + 1) * hidden],
                    )
            for i in range(state.shape[0]):
                state[i, r] = new[i * hidden : (i + 1) * hidden]
            v[k, b, t, offset : offset + new.size] = new


@compiled
def backpropagate_rows(
    gemm,
    weight,
    a,
    v,
    d,
    start,
    offset,
    carry,
    recurrent,
    slopes,
    state,
    features,
    maps,
    rows,
):
    """v[t] = a[t] + A[t+1]^T v[t+1] over the steps of a segment, backwards; weight is W.

    On entry `state` is A^T v of the step after the segment, on exit that of its first step.
    """
    row0, row1 = rows
    n_block = a.shape[0]
    hidden = weight.shape[1]
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
            v[k, b, t, offset : offset + new.size] = new
            if t > 0:
                maps[r] = zero
                for i, w, p in carry:
                    add_product(state[w, r], d[p, b, step], new[i * hidden : (i + 1) * hidden])
                for i, g, p in recurrent:
                    add_product(
                        maps[r, g * hidden : (g + 1) * hidden],
                        d[p, b, step],
                        new[i * hidden : (i + 1) * hidden],
                    )
        if t > 0:
            if len(slopes) == 1 and slopes[0, 1] < 0:
                product(gemm, maps[row0:row1], weight, state[slopes[0, 0], row0:row1], one)
            else:
                product(gemm, maps[row0:row1], weight, features[row0:row1], zero)
                for r in range(row0, row1):
                    for w, p in slopes:
                        add_product(state[w, r], d[p, r // n_block, step], features[r])


@compiled
def gather_units(gemm, d, z_h, z_x, q, into, sums_h, sums_x, gains, of_parts, y, where):
    """sums[vector, part] = Z^T (D q), summed over trials and, segment after segment, over time.

    `gains` holds (part, variable, diagonal, whether it is the variable's first), sorted by part;
    `of_parts` which of the two factors z_h and z_x (trial, time, rank) each part has. `where` is
    (first step of the segment, first unit of the layer, then the bounds of the task's hidden units
    and of its vectors); y (CHUNK, units of the task) is room to work. A chunk of the diagonals
    serves all vectors.
    """
    start, offset, u0, u1, k0, k1 = where
    one = y.dtype.type(1)
    for b in range(d.shape[1]):
        for first in range(0, d.shape[2], CHUNK):
            n = min(CHUNK, d.shape[2] - first)
            t = start + first
            beta = y.dtype.type(0) if b == 0 and t == 0 else one
            for k in range(k0, k1):
                last = -1
                for g in range(len(gains)):
                    part, i, p, _ = gains[g]
                    units = offset + i * d.shape[3]
                    for j in range(n):
                        diagonal = d[p, b, first + j, u0:u1]
                        vector = q[k, b, t + j, units + u0 : units + u1]
                        if part == last:
                            add_product(y[j], diagonal, vector)
                        else:
                            set_product(y[j], diagonal, vector)
                    last = part
                    if g + 1 == len(gains) or gains[g + 1, 0] != part:
                        if of_parts[part, 0]:
                            total = sums_h[k, part][:, u0:u1]
                            transposed_product(gemm, z_h[b, t : t + n], y[:n], total, beta)
                        if of_parts[part, 1]:
                            total = sums_x[k, part][:, u0:u1]
                            transposed_product(gemm, z_x[b, t : t + n], y[:n], total, beta)


@compiled
def spread_units(gemm, d, z_h, z_x, q, into, sums_h, sums_x, gains, of_parts, y, where):
    """Into = sum over parts of D (Z sums[vector, part]); arguments as of `gather_units`."""
    start, offset, u0, u1, k0, k1 = where
    zero, one = y.dtype.type(0), y.dtype.type(1)
    for b in range(d.shape[1]):
        for first in range(0, d.shape[2], CHUNK):
            n = min(CHUNK, d.shape[2] - first)
            t = start + first
            for k in range(k0, k1):
                last = -1
                for g in range(len(gains)):
                    part, i, p, begins = gains[g]
                    if part != last:
                        beta = zero
                        if of_parts[part, 0]:
                            total = sums_h[k, part][:, u0:u1]
                            product(gemm, z_h[b, t : t + n], total, y[:n], beta)
                            beta = one
                        if of_parts[part, 1]:
                            total = sums_x[k, part][:, u0:u1]
                            product(gemm, z_x[b, t : t + n], total, y[:n], beta)
                    last = part
                    units = offset + i * d.shape[3]
                    for j in range(n):
                        diagonal = d[p, b, first + j, u0:u1]
                        result = into[k, b, t + j, units + u0 : units + u1]
                        if begins:
                            set_product(result, diagonal, y[j])
                        else:
                            add_product(result, diagonal, y[j])
