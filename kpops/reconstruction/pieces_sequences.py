"""Cyclic sequences of regions: a word of patterns that stands for all its rotations."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

Sequence = tuple[bytes, ...]
"""Packed patterns of the regions in turn; of all rotations, the smallest."""


def canonical(pattern: np.ndarray) -> tuple[Sequence, int]:
    """Sequence of patterns (phase, relu), and the phase at which it begins."""
    packed = [row.tobytes() for row in np.packbits(pattern, axis=1)]
    rotations = [(*packed[i:], *packed[:i]) for i in range(len(packed))]
    first = min(range(len(packed)), key=rotations.__getitem__)
    return rotations[first], first


def pattern_of(sequence: Sequence, n_relus: int) -> np.ndarray:
    """Patterns (phase, relu) of a sequence."""
    if n_relus == 0:
        return np.zeros((len(sequence), 0), bool)
    packed = np.array([list(region) for region in sequence], np.uint8)
    return np.unpackbits(packed, axis=1, count=n_relus).astype(bool)


def is_primitive(sequence: Sequence) -> bool:
    """Whether a sequence is no repetition of a shorter one."""
    n = len(sequence)
    shorter = (d for d in range(1, n) if n % d == 0)
    return not any(sequence[:d] * (n // d) == sequence for d in shorter)


def every(n_relus: int, period: int) -> list[Sequence]:
    """All primitive sequences of so many regions."""
    bits = np.arange(2**n_relus)[:, None] >> np.arange(n_relus)[::-1] & 1
    regions = [row.tobytes() for row in np.packbits(bits.astype(bool), axis=1)]
    return [tuple(regions[i] for i in word) for word in _lyndon(len(regions), period)]


def _lyndon(n_symbols: int, length: int) -> Iterator[list[int]]:
    """Words that are smaller than all their rotations, in order (Duval 1988).

    Each follows from the one before: repeat that to the full length, drop the largest symbols at
    its end, and raise what is then last. The shorter ones on the way are stepping stones.
    """
    word = [-1]
    while word:
        word[-1] += 1
        if len(word) == length:
            yield list(word)
        word = [word[i % len(word)] for i in range(length)]
        while word and word[-1] == n_symbols - 1:
            word.pop()
