"""The gates of known cells, and runs of them, compiled for the CPU.

A loop over time in torch takes longer to call its operations than to compute them. The formulas are
those of :mod:`kpops.models.torch_rnn` and :class:`kpops.models.LeakyCell`.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from kpops.engines.cpu.blas import product
from kpops.engines.cpu.gated_kernels import OPTIONS, add, copy

# A division by zero that raises would keep the loops over units from vector operations.
_OPTIONS: dict[str, Any] = {**OPTIONS, "error_model": "numpy"}
compiled = numba.njit(**_OPTIONS)
part = numba.njit(**{**_OPTIONS, "no_cpython_wrapper": True})

RATE, CURRENT, GRU, LSTM = range(4)

_PER_LOG_2 = 1 / math.log(2)
_LOG_2_HIGH, _LOG_2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_TO_WHOLE = 1.5 * 2.0**52  # a number beside it is rounded, and stands in the lowest bits


@part
def _exponential(y):
    """(a, m) with ``exp(y) = a (1 + m)`` to rounding, a a power of 2, for y from -700 to 0.

    With ``y = n log 2 + r`` they are 2^n and expm1(r). As ``|r| <= log(2) / 2``, 13 terms of its
    series reach float64. There are no branches, so units fill a core's vector operations.
    """
    shifted = y * _PER_LOG_2 + _TO_WHOLE
    n = shifted - _TO_WHOLE
    r = (y - n * _LOG_2_HIGH) - n * _LOG_2_LOW
    m = 1 / 6227020800
    m = m * r + 1 / 479001600
    m = m * r + 1 / 39916800
    m = m * r + 1 / 3628800
    m = m * r + 1 / 362880
    m = m * r + 1 / 40320
    m = m * r + 1 / 5040
    m = m * r + 1 / 720
    m = m * r + 1 / 120
    m = m * r + 1 / 24
    m = m * r + 1 / 6
    m = m * r + 1 / 2
    power = np.int64((np.float64(shifted).view(np.int64) + 1023) << 52).view(np.float64)
    return power, m * r * r + r


@part
def tanh(x):
    """Hyperbolic tangent: ``-m / (2 + m)`` with ``m = expm1(-2 |x|)``, and the sign of x."""
    size = np.float64(x if x >= 0 else -x)
    power, m = _exponential(-2 * (20.0 if size > 20 else size))  # where it is 1; NaN stays
    m = power * m + (power - 1)
    result = -m / (2 + m)
    return result if x >= 0 else -result


@part
def sigmoid(x):
    """Logistic function: ``1 / (1 + e)`` or ``e / (1 + e)`` with ``e = exp(-|x|)``."""
    size = np.float64(x if x >= 0 else -x)
    power, m = _exponential(-(700.0 if size > 700 else size))
    e = power + power * m
    return (1.0 if x >= 0 else e) / (1 + e)


# The gates of one trial: from the maps x and h (gate, hidden) the state s (variable, hidden), in
# place, and the diagonals d (role, hidden), in the order of `ROLES`.


@part
def _activate(relu, u, slope):
    """The activation of u, in place, and its derivative."""
    if relu:
        for j in range(u.size):
            slope[j] = 1 if u[j] > 0 else 0
            u[j] = 0 if u[j] < 0 else u[j]
    else:
        for j in range(u.size):
            y = tanh(u[j])
            u[j] = y
            slope[j] = 1 - y * y


@part
def _leaky(relu, alpha, current, x, h, s, d):
    add(x, h, 0, 1)
    if not current:
        _activate(relu, h[0], d[1])
    for j in range(s.shape[1]):
        d[0, j] = 1 - alpha
        d[1, j] = alpha if current else alpha * d[1, j]
    if alpha == 1:
        copy(h, s, 0, 1)
        return
    for j in range(s.shape[1]):
        s[0, j] += alpha * (h[0, j] - s[0, j])


@part
def _gru(x, h, s, d):
    for j in range(s.shape[1]):
        reset, update = sigmoid(x[0, j] + h[0, j]), sigmoid(x[1, j] + h[1, j])
        new = tanh(x[2, j] + reset * h[2, j])
        moved = s[0, j] - new
        slope = (1 - update) * (1 - new * new)
        d[0, j], d[1, j] = update, slope * h[2, j] * reset * (1 - reset)
        d[2, j], d[3, j], d[4, j] = moved * update * (1 - update), slope * reset, slope
        s[0, j] = new + update * moved


@part
def _lstm(x, h, s, d):
    # In short loops, since LLVM makes no vector operations of too many arrays.
    for j in range(s.shape[1]):
        h[2, j] = tanh(x[2, j] + h[2, j])
    for g in (0, 1, 3):
        for j in range(s.shape[1]):
            h[g, j] = sigmoid(x[g, j] + h[g, j])
    into, kept, new, out = h[0], h[1], h[2], h[3]
    for j in range(s.shape[1]):
        d[1, j], d[6, j] = kept[j], new[j] * into[j] * (1 - into[j])
        d[7, j], d[8, j] = s[1, j] * kept[j] * (1 - kept[j]), into[j] * (1 - new[j] * new[j])
    for j in range(s.shape[1]):
        s[1, j] = kept[j] * s[1, j] + into[j] * new[j]
    for j in range(s.shape[1]):
        s[0, j] = tanh(s[1, j])
    for j in range(s.shape[1]):
        d[0, j] = out[j] * (1 - s[0, j] * s[0, j])
        d[5, j] = s[0, j] * out[j] * (1 - out[j])
        s[0, j] *= out[j]
    for i, g in ((2, 6), (3, 7), (4, 8), (0, 1)):
        for j in range(s.shape[1]):
            d[i, j] = d[0, j] * d[g, j]


@compiled
def run_trials(gemm, kind, relu, alpha, weight, bias, from_x, room, states, d, variable, trials):
    """Run a layer through all steps of some trials, from the state in `room`.

    weight: W^T; bias (gate, hidden); from_x (trial, time, gate, hidden) the input maps. It writes
    the states (trial, time, variable of the stack, hidden), of which the layer's begin at
    `variable`, and the diagonals d (trial, time, role, hidden). `room` is the state (trial,
    variable, hidden), and workspace for the features (trial, 1, hidden) and the recurrent maps
    (trial, gate, hidden).
    """
    state, features, from_h = room
    first, stop = trials.first, trials.stop
    one = bias.dtype.type(1)
    for t in range(from_x.shape[1]):
        for b in range(first, stop):
            copy(bias, from_h[b], 0, len(bias))
            if kind == CURRENT:
                copy(state[b], features[b], 0, 1)
                _activate(relu, features[b, 0], d[b, t, 2])
        if kind == CURRENT:
            product(gemm, features[first:stop], weight, from_h[first:stop], one)
        else:
            product(gemm, state[first:stop, 0], weight, from_h[first:stop], one)
        for b in range(first, stop):
            if kind == GRU:
                _gru(from_x[b, t], from_h[b], state[b], d[b, t])
            elif kind == LSTM:
                _lstm(from_x[b, t], from_h[b], state[b], d[b, t])
            else:
                _leaky(relu, alpha, kind == CURRENT, from_x[b, t], from_h[b], state[b], d[b, t])
            copy(state[b], states[b, t, variable:], 0, state.shape[1])
