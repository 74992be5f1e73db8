"""Random words, compiled for the CPU, where operations on tensors take three times as long."""

from __future__ import annotations

import numba

from kpops.engines.philox import WORD, encrypt

_encrypt = numba.njit(nogil=True)(encrypt)


@numba.njit("void(int64[:, :, ::1], int64, int64, int64, int64)", nogil=True, cache=True)
def fill(words, key_high, key_low, vector, counter):
    """Fill `words` (4, vector, counter) from this vector and this counter on."""
    _, n_vectors, n_counters = words.shape
    for j in range(n_vectors):
        for i in range(n_counters):
            c = counter + i
            x0, x1, x2, x3 = _encrypt((key_high, key_low), (c & WORD, c >> 32, vector + j, 0))
            words[0, j, i] = x0
            words[1, j, i] = x1
            words[2, j, i] = x2
            words[3, j, i] = x3
