"""Blocks of vectors, applied in pieces that fit into memory."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from kpops.engines.memory import free_bytes
from kpops.operators.shapes import InCodomain, InDomain

_ALWAYS_FITS = 2**28
"""Bytes that a matvec may take without a look at the free memory, which takes time."""


def apply_chunked(
    act: Callable[[Tensor], Tensor],
    block: InDomain,
    needed: int,
    results: int,
) -> InCodomain:
    """Apply `act` to as many vectors of a block at a time as memory allows.

    For each vector, argument and result take `results` bytes, and the action `needed` beside.
    """
    if needed * len(block) <= _ALWAYS_FITS:
        return act(block)
    room = free_bytes(block.device) // 2 - results * len(block)
    size = max(1, room // needed)
    if size >= len(block):
        return act(block)
    # Pieces of one size, the last of which begins early: a recorded loop has a fixed shape.
    size = math.ceil(len(block) / math.ceil(len(block) / size))
    whole: Tensor | None = None
    for start in range(0, len(block), size):
        first = min(start, len(block) - size)
        part = slice(first, first + size)
        piece = act(block[part])
        if whole is None:
            whole = piece.new_empty(len(block), *piece.shape[1:])
        whole[part] = piece
    assert whole is not None
    return whole
