"""Blocks of vectors, taken in as many pieces as memory asks for."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from kpops.engines.memory import free_bytes

_ALWAYS_FITS = 2**28
"""Bytes that a product may take without asking how much memory is free."""


def apply_chunked(
    act: Callable[[Tensor], Tensor], block: Tensor, needed: int, results: int
) -> Tensor:
    """Act on as many vectors of a block at a time as memory allows.

    Parameters
    ----------
    act : callable
        Maps a block to another of as many vectors.
    block : Tensor
        The first axis counts vectors.
    needed : int
        Bytes that the action needs at once for each vector, beside argument and result.
    results : int
        Bytes of argument and result for each vector.

    Returns
    -------
    Tensor
    """
    if needed * len(block) <= _ALWAYS_FITS:  # asking for the free memory takes time, too
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
