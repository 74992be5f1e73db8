"""Thin factors of the features, which make K cheap.

K of a gated layer is, unit by unit, ``sum_g D_g (u u^T) D_g``, where the rows of u are the features
that the weights of gate g multiply at each (trial, time). Only their Gram matrix enters, so the
features may be replaced by any Z with ``Z Z^T = u u^T`` that has fewer columns: ``Z = u V``, with V
the leading eigenvectors of ``u^T u``.

What is dropped must be small in every row, since the diagonals D may be zero just where the
features are large. So the rows are normalised before the eigenvectors are taken.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from kpops.distributed.parts import WHOLE, Parts
from kpops.engines.random_vectors import RandomVectors
from kpops.engines.threads import enough_for

Features = list[Float[Tensor, "row _"]]
_CHUNK = 4096  # rows converted to float64 at a time


def numerical_rank(features: Features) -> int:
    """Number of columns that :func:`thin_factor` would have."""
    return len(_leading_vectors(features)[0])


def thin_factor(features: Features, parts: Parts = WHOLE) -> Float[Tensor, "row rank"]:
    """Z with ``Z Z^T`` the Gram matrix of the rows of the features, side by side.

    Where the trials are spread over processes, so are the rows, and Z has the same columns on each.

    Of rows of unit length, eigenvalues of the Gram matrix up to 10 eps are dropped, with eps that
    of the dtype (in float64 up to eps times the number of rows, where the eigenvalues themselves
    are rounded): no row loses more in any direction, and a sum over rows rounds away as much.
    """
    n_rows = len(features[0])
    with enough_for(2 * min(n_rows, _CHUNK) * _width(features) ** 2):
        values, vectors = _leading_vectors(features, parts)
        z = features[0].new_empty(n_rows, len(values))
        of_rows = _takes_rows(features, parts)
        if of_rows:  # left singular vectors of the unit rows
            unit = torch.cat([_unit(u) for _, u in _in_float64(features)])
            turn = _turn(unit.mT @ (vectors / values.sqrt()))
        else:
            vectors = vectors @ _turn(vectors)
        for rows, u in _in_float64(features):
            left = _lengths(u) * (vectors[rows] * values.sqrt()) @ turn if of_rows else u @ vectors
            z[rows] = left
    return z


def _turn(vectors: Float64[Tensor, "feature rank"]) -> Float64[Tensor, "rank rank"]:
    """The rotation that brings a basis of a subspace near to fixed directions.

    Signs of eigenvectors, and small or repeated ones as a whole, are decided by rounding; what is
    drawn at random in the space of the columns of Z should not be.
    """
    width, rank = vectors.shape
    source = RandomVectors(0)
    directions = source.normal(rank, range(width), vectors).mT
    left, _, right = torch.linalg.svd(vectors.mT @ torch.linalg.qr(directions)[0])
    return left @ right


def _leading_vectors(
    features: Features, parts: Parts = WHOLE
) -> tuple[Float64[Tensor, " rank"], Float64[Tensor, "smaller rank"]]:
    """Eigenvalues above the cut, and eigenvectors, of the smaller Gram matrix of the unit rows."""
    width, n_rows = _width(features), round(len(features[0]) * parts.of_here)
    cut = max(10 * torch.finfo(features[0].dtype).eps, n_rows * torch.finfo(torch.float64).eps)
    if _takes_rows(features, parts):
        unit = torch.cat([_unit(u) for _, u in _in_float64(features)])
        gram = unit @ unit.mT
    else:
        gram = features[0].new_zeros(width, width, dtype=torch.float64)
        for _, u in _in_float64(features):
            gram.addmm_(_unit(u).mT, _unit(u))
        gram = parts.sum(gram)
    values, vectors = torch.linalg.eigh(gram)
    dropped = int((values <= cut).sum())  # they ascend
    return values[dropped:], vectors[:, dropped:]


def _takes_rows(features: Features, parts: Parts) -> bool:
    """Whether the Gram matrix of the rows is the smaller one, and all rows are here."""
    return len(features[0]) < _width(features) and not parts.many


def _width(features: Features) -> int:
    return sum(f.shape[1] for f in features)


def _lengths(rows: Float[Tensor, "row _"]) -> Float[Tensor, "row 1"]:
    return torch.linalg.vector_norm(rows, dim=1, keepdim=True)


def _unit(rows: Float[Tensor, "row feature"]) -> Float[Tensor, "row feature"]:
    """Rows of unit length; zero rows stay zero."""
    return rows / _lengths(rows).clamp_min(torch.finfo(rows.dtype).tiny)


def _in_float64(features: Features) -> Iterator[tuple[slice, Tensor]]:
    """The features side by side, some rows at a time."""
    for start in range(0, len(features[0]), _CHUNK):
        rows = slice(start, start + _CHUNK)
        yield rows, torch.cat([f[rows].double() for f in features], dim=1)
