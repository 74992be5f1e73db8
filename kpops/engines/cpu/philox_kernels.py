"""Standard normal numbers, compiled for the CPU, where operations on tensors take twice as long."""

from __future__ import annotations

import math

import numba

from kpops.engines.philox import WORD, encrypt

_encrypt = numba.njit(nogil=True)(encrypt)
_TYPES = [f"void({dtype}[:, :], int64, int64, int64, int64)" for dtype in ("float32", "float64")]


@numba.njit(_TYPES, nogil=True, cache=True)
def fill(out, key_high, key_low, vector, entry):
    """Fill `out` (vector, entry) from this vector and this entry on."""
    n_vectors, n_entries = out.shape
    for j in range(n_vectors):
        for c in range(entry // 4, (entry + n_entries + 3) // 4):
            words = _encrypt((key_high, key_low), (c & WORD, c >> 32, vector + j, 0))
            for half in range(2):
                radius = math.sqrt(-2 * math.log((words[2 * half] + 0.5) * 2.0**-32))
                angle = words[2 * half + 1] * (2.0**-31 * math.pi)
                i = 4 * c + 2 * half - entry
                if 0 <= i < n_entries:
                    out[j, i] = radius * math.cos(angle)
                if 0 <= i + 1 < n_entries:
                    out[j, i + 1] = radius * math.sin(angle)
