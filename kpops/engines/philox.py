"""Philox4x32-10: random words that are a function of a key and a counter alone.

Salmon, Moraes, Dror and Shaw (2011), Parallel random numbers: as easy as 1, 2, 3, SC11. Ten rounds
multiply two words by constants. The upper halves of the products scramble the other two words, and
the lower halves replace them.
"""

from __future__ import annotations

from typing import Any

WORD = 2**32 - 1
"""The largest word, which masks the lower half of a product."""


def encrypt(key: Any, counter: Any) -> Any:
    """Four random words of 32 bits, from two words of a key and four of a counter.

    On tensors of int64, on any device, and compiled by Numba for numbers: both keep the lower 64
    bits of a product.
    """
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        p, q = x0 * 0xD2511F53, x2 * 0xCD9E8D57
        # The upper halves of x1 and x3 are masked where they are used next.
        x0, x1 = ((q >> 32) ^ x1 ^ k0) & WORD, q
        x2, x3 = ((p >> 32) ^ x3 ^ k1) & WORD, p
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return x0, x1 & WORD, x2, x3 & WORD
