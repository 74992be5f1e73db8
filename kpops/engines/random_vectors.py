"""Random vectors, drawn on the device that uses them and the same on every device.

Entry i of vector j is a function of a key, i and j alone, so it does not matter how many vectors
are drawn at a time, and a device that holds some of the entries draws no others.

The random words are those of :mod:`kpops.engines.philox`, the same to the bit everywhere. A counter
is ``(i // n, j)`` where its words make n entries.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kpops.engines import threads
from kpops.engines.memory import room
from kpops.engines.philox import WORD, encrypt
from kpops.scalars import generator

Words = Sequence[Int[Tensor, "vector counter"]]
Rows = Float[Tensor, "vector entry"]

# Entries at a time: temporaries stay in a core's cache, and torch takes so few on one thread; or
# they fill a GPU and 2^28 bytes.
_ON_CPU, _ON_DEVICE = 2**15, 2**24
# Counters on the CPU for which it pays to load Numba, where it is not. The words are the same to
# the bit.
_COMPILED, _KERNELS = 2**15, "kpops.engines.cpu.philox_kernels"


class RandomVectors:
    """A sequence of random vectors, of which each call draws the next.

    Its key is one number drawn from `rng`, a seed or a generator. Vectors have the dtype and the
    device of the tensor `like`; `entries` says which of their entries are drawn.
    """

    def __init__(self, rng: Any) -> None:
        self.key = divmod(int(generator(rng).integers(2**64, dtype=np.uint64)), 2**32)
        self.drawn = 0

    def normal(self, k: int, entries: range, like: Tensor) -> Float[Tensor, "{k} entry"]:
        """Vectors of independent standard normal entries.

        Box and Muller (1958), from uniform numbers of 32 bits, which reach 6.7 standard deviations.
        In float64, then rounded to the dtype; the last bits are those of the device's log, cos and
        sin.
        """
        return _drawn(_box_muller, 4, self.key, self._next(k), entries, like)

    def signs(self, k: int, entries: range, like: Tensor) -> Float[Tensor, "{k} entry"]:
        """Vectors of independent entries 1 and -1."""
        return _drawn(_bits, 128, self.key, self._next(k), entries, like)

    def skip(self, k: int) -> None:
        """Leave out the next vectors."""
        self.drawn += k

    def _next(self, k: int) -> range:
        self.drawn += k
        return range(self.drawn - k, self.drawn)


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
    result = room((len(vectors), len(entries)), like.dtype, like.device)
    on_cpu = like.device.type == "cpu"
    parts = _parts(result, vectors, entries, _ON_CPU if on_cpu else _ON_DEVICE)
    compiled = on_cpu and (result.numel() >= n * _COMPILED or _KERNELS in sys.modules)
    make = _compiled if compiled else _on_tensors

    def draw(i: int) -> None:
        part, rows, columns = parts[i]
        first, stop = columns.start // n, -(-columns.stop // n)
        block = transform(make(key, rows, range(first, stop), like.device))
        start = columns.start - n * first
        # Inference mode belongs to threads: another may not write into its tensors.
        into = torch.from_numpy(part.numpy()) if compiled else part
        into.copy_(block[:, start : start + len(columns)])

    if compiled:
        threads.each(draw, len(parts))
    else:
        with threads.enough_for(0):  # many small operations
            for i in range(len(parts)):
                draw(i)
    return result


def _on_tensors(
    key: tuple[int, int], vectors: range, counters: range, device: torch.device
) -> Words:
    c = torch.arange(counters.start, counters.stop, device=device)
    j = torch.arange(vectors.start, vectors.stop, device=device)[:, None]
    return encrypt(key, (c & WORD, c >> 32, j, 0))


def _compiled(key: tuple[int, int], vectors: range, counters: range, device: torch.device) -> Words:
    from kpops.engines.cpu import philox_kernels

    words = np.empty((4, len(vectors), len(counters)), np.int64)
    philox_kernels.fill(words, *key, vectors.start, counters.start)
    return tuple(map(torch.from_numpy, words))


def _parts(
    result: Rows, vectors: range, entries: range, size: int
) -> list[tuple[Tensor, range, range]]:
    """Views of the result, of at most `size` entries, with their vectors and entries."""
    width = max(1, min(size, len(entries)))
    height = size // width
    return [
        (result[j : j + height, i : i + width], vectors[j : j + height], entries[i : i + width])
        for j in range(0, len(vectors), height)
        for i in range(0, len(entries), width)
    ]
