"""Random vectors, drawn on the device that uses them and the same on every device.

Entry i of vector j is a function of a key, i and j alone, so that a part of a block is drawn
without the rest: some of its vectors, or some entries of all of them. The key is one number from
the user's generator; the next call has another.

The random words are those of :mod:`kpops.engines.philox`, the same to the bit everywhere. A counter
is ``(i // n, j)`` where its words make n entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kpops.engines import threads
from kpops.engines.memory import room
from kpops.engines.philox import WORD, encrypt

Words = Sequence[Int[Tensor, "vector counter"]]
Rows = Float[Tensor, "vector entry"]

# Entries at a time: temporaries stay in a core's cache, or fill a GPU and 2^28 bytes.
_ON_CPU, _ON_DEVICE = 2**16, 2**24
# Normal entries on the CPU for which it pays to load Numba.
_COMPILED = 2**20


def normal(rng: np.random.Generator, vectors: range, entries: range, like: Tensor) -> Rows:
    """Independent standard normal numbers, in the dtype and on the device of `like`.

    Box and Muller (1958), from uniform numbers of 32 bits, which reach 6.7 standard deviations. In
    float64, then rounded to the dtype; the last bits are those of the device's log, cos and sin.
    """
    key = _key(rng)
    if like.device.type == "cpu" and len(vectors) * len(entries) >= _COMPILED:
        return _compiled(key, vectors, entries, like)
    return _drawn(_box_muller, 4, key, vectors, entries, like)


def signs(rng: np.random.Generator, vectors: range, entries: range, like: Tensor) -> Rows:
    """Independent entries 1 and -1, in the dtype and on the device of `like`."""
    return _drawn(_bits, 128, _key(rng), vectors, entries, like)


def _key(rng: np.random.Generator) -> tuple[int, int]:
    return divmod(int(rng.integers(2**64, dtype=np.uint64)), 2**32)


def _box_muller(words: Words) -> Rows:
    numbers = []
    for a, b in (words[:2], words[2:]):
        radius = a.double().add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
        angle = b.double().mul_(2.0**-31 * math.pi)
        numbers += [angle.cos().mul_(radius), angle.sin_().mul_(radius)]
    return torch.stack(numbers, 2).flatten(1)


def _bits(words: Words) -> Int[Tensor, "vector entry"]:
    places = torch.arange(32, device=words[0].device)
    bits = torch.stack(tuple(words), 2)[..., None] >> places
    return bits.bitwise_and_(1).mul_(-2).add_(1).flatten(1)


def _drawn(
    transform: Callable[[Words], Tensor],
    n: int,
    key: tuple[int, int],
    vectors: range,
    entries: range,
    like: Tensor,
) -> Rows:
    """Entries that `transform` makes from the words of each counter, n of them."""
    device = like.device
    result = room((len(vectors), len(entries)), like.dtype, device)
    size = _ON_CPU if device.type == "cpu" else _ON_DEVICE
    with threads.enough_for(size):  # on the CPU, many small operations
        for part, rows, columns in _parts(result, vectors, entries, size):
            first = columns.start // n
            c = torch.arange(first, -(-columns.stop // n), device=device)
            j = torch.arange(rows.start, rows.stop, device=device)[:, None]
            block = transform(encrypt(key, (c & WORD, c >> 32, j, 0)))
            start = columns.start - n * first
            part.copy_(block[:, start : start + len(columns)])
    return result


def _compiled(key: tuple[int, int], vectors: range, entries: range, like: Tensor) -> Rows:
    from kpops.engines.cpu import philox_kernels

    result = room((len(vectors), len(entries)), like.dtype, like.device)
    parts = [
        (part.numpy(), *key, rows.start, columns.start)
        for part, rows, columns in _parts(result, vectors, entries, _ON_CPU)
    ]
    threads.each(lambda i: philox_kernels.fill(*parts[i]), len(parts))
    return result


def _parts(
    result: Rows, vectors: range, entries: range, size: int
) -> list[tuple[Rows, range, range]]:
    """Views of the result, of at most `size` entries, with their vectors and entries."""
    width = max(1, min(size, len(entries)))
    height = size // width
    return [
        (result[j : j + height, i : i + width], vectors[j : j + height], entries[i : i + width])
        for j in range(0, len(vectors), height)
        for i in range(0, len(entries), width)
    ]
