"""What the compiled loops take beside vectors and diagonals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Weights(NamedTuple):
    """W and U of a layer, or both transposed; U is empty for the first layer."""

    recurrent: np.ndarray
    input: np.ndarray


class Lists(NamedTuple):
    """Which diagonals stand where, as in :class:`kpops.engines.gated.gates.Pattern`."""

    carry: np.ndarray  # (v, w, position)
    gains: np.ndarray  # (v, map, position)
    slopes: np.ndarray  # (w, position), or (w, -1) for the identity


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
    column: int  # where the input maps begin
