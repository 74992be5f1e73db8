"""Scales that leave the dtype: squares are taken of numbers near one, and results are rescaled.

The squares, products and sums of a finite operator may exceed its dtype, or vanish. So an operator
``A = u B`` is split into a power of two u, which costs no digit, and B of about one. Everything is
computed from B, sums in float64, and what depends on u, as ``||A||_F^2 = u^2 ||B||_F^2``, is
multiplied at the end. A result that the dtype cannot hold is given in float64. One that float64
cannot hold is refused.

``A = R R*`` may itself leave the dtype where R does not: weak inputs make K of 1e-50. It is then
taken as ``u^2 (R / u) (R / u)*``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kpops.engines.random_vectors import RandomVectors
from kpops.linalg.vectors import VectorSpace
from kpops.operators.base import Scaled, TrajectoryOperator
from kpops.operators.dense import dense_blocks

# Operators within this factor of one stay as they are: so do the squares of their squares.
_NEAR = 2.0**20


def power_of_two(largest: float, dtype: torch.dtype, what: str = "the operator") -> float:
    """The power of two at or below a magnitude, which must be finite; 1 for 0."""
    if not math.isfinite(largest):
        name = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"a product with {what} is not finite in {name}: check the weights and the scale; "
            "if they are meant, take op * 1e-20, say, or dtype=torch.float64"
        )
    return 2.0 ** math.floor(math.log2(largest)) if largest > 0 else 1.0


def normalized(op: TrajectoryOperator, rng: Any = 0) -> tuple[TrajectoryOperator, float]:
    """B and u with ``op = u B``, B of about one, from the image of one random vector.

    Raises a ValueError if images are not finite, or so small that the dtype has lost their digits.
    """
    inside, outside = (VectorSpace.of(op, space) for space in (op.domain, op.codomain))
    start = inside.normal(RandomVectors(rng), 1)
    image = op.apply(start.reshape(1, *op.domain.shape))
    largest = outside.largest(image)
    lost = _is_lost(largest, image.dtype)
    if lost and op.root is not None:
        root, unit = normalized(op.root)
        return _named(root @ root.H, op), unit * unit
    unit = power_of_two(largest, image.dtype, repr(op))
    if lost and largest:
        raise ValueError(
            f"{op!r} is smaller than {np.finfo(op.dtype).tiny:.2g}, where {op.dtype} loses digits: "
            "take a larger scale, or dtype=torch.float64"
        )
    if 1 / _NEAR <= unit <= _NEAR:
        return op, 1.0
    return _named(Scaled(op, 1 / unit), op), unit


def _named(scaled: TrajectoryOperator, op: TrajectoryOperator) -> TrajectoryOperator:
    """Name it as the user does, in messages and results."""
    scaled.symbol, scaled.attrs = op.symbol, op.attrs
    return scaled


def normalized_blocks(
    op: TrajectoryOperator,
) -> tuple[Float[Tensor, "problem row column"], float]:
    """Dense blocks D and u with ``op = u D``, D of about one; see :func:`dense_blocks`."""
    dense, unit = dense_blocks(op), 1.0
    space = VectorSpace.of(op, op.codomain)
    largest = space.largest(dense)
    if _is_lost(largest, dense.dtype) and op.root is not None:
        root, unit = normalized(op.root)
        dense, unit = dense_blocks(root @ root.H), unit * unit
        largest = space.largest(dense)
    size = power_of_two(largest, dense.dtype, repr(op))
    return dense / size, unit * size


def _is_lost(largest: float, dtype: torch.dtype) -> bool:
    """Whether the largest of some values is zero, not finite, or has lost digits."""
    info = torch.finfo(dtype)
    return not info.tiny <= largest <= info.max


def raised(unit: float, power: float) -> float:
    """``unit ** power``, infinite or zero where float64 cannot hold it."""
    try:
        return unit**power
    except OverflowError:
        return math.inf
