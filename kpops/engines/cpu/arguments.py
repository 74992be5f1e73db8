"""What the compiled loops take beside vectors and diagonals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from kpops.engines.gated.layer import Layer
from kpops.engines.trajectory import Block


class Weights(NamedTuple):
    """W and U of a layer, or both transposed; U is empty for the first layer."""

    recurrent: np.ndarray
    input: np.ndarray


class Lists(NamedTuple):
    """Which diagonals stand where, as in :class:`kpops.engines.gated.gates.Pattern`.

    Each is a matrix of terms (into, source, diagonal, whether the first there), by
    :func:`terms`; for P*, what P adds to is the source.
    """

    carry: np.ndarray
    gains: np.ndarray
    slopes: np.ndarray


def terms(pairs: Iterable[tuple[int, int, int]], *, swapped: bool, first: bool) -> np.ndarray:
    """Terms d[p] * source[i] of into[v], of all (v, i, p); `swapped`, of into[i] from source[v].

    If `first`, the first term of a sum overwrites what is there.
    """
    found: list[tuple[int, int, int, bool]] = []
    begun = set()
    for v, i, p in pairs:
        into, source = (i, v) if swapped else (v, i)
        found.append((into, source, p, first and into not in begun))
        begun.add(into)
    return np.array(found, dtype=np.int64).reshape(-1, 4)


class Span(NamedTuple):
    """A task's rows, trials, vectors or chunks: its first one, and the one behind its last."""

    first: int
    stop: int


class Place(NamedTuple):
    """A layer in its stack, and a segment in time."""

    start: int  # first step of the segment
    variable: int  # first variable of the layer
    has_below: bool  # a layer below passes something up
    has_above: bool  # a layer above takes it
    full_state: bool  # what is passed is the full state, not only its increment beside q
    n_variables: int  # number of variables of the layer
    n_recurrent: int  # number of recurrent maps
    first_input: int  # which map is the first of the input
    source: int  # the variable that the recurrent maps take, or -1 if they take features


def by_variable(layer: Layer, *blocks: Block) -> tuple[np.ndarray, ...]:
    """Blocks as (block, trial, time, variable of the stack, hidden)."""
    return tuple(q.numpy().reshape(*q.shape[:3], -1, layer.hidden) for q in blocks)
