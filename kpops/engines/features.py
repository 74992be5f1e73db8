"""Thin factors of the features, which make K cheap.

K of a gated layer is, unit by unit, ``sum_g D_g (u u^T) D_g``, where u are the features that the
weights of gate g multiply. Only their Gram matrix over (trial, time) enters, so the features may be
replaced by any Z with ``Z Z^T = u u^T``; with the eigenvectors V of ``u^T u``, ``Z = u V_r`` has as
many columns as the Gram matrix has eigenvalues above rounding.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_CHUNK = 4096  # rows converted to float64 at a time


def numerical_rank(features: list[Tensor]) -> int:
    """Number of columns that :func:`thin_factor` would have."""
    if len(features[0]) <= sum(f.shape[1] for f in features):
        u = torch.cat([f.double() for f in features], dim=1)
        values = torch.linalg.eigvalsh(u @ u.mT)
    else:
        values = torch.linalg.eigvalsh(_gram(features))
    return int(_above(values, torch.finfo(features[0].dtype).eps).sum())


def thin_factor(features: list[Tensor]) -> Tensor:
    """Z with ``Z Z^T`` the Gram matrix of the rows of the features, side by side.

    Parameters
    ----------
    features : list of Tensor
        Each of shape (row, feature).

    Returns
    -------
    Tensor, shape (row, rank)
        In the dtype of the features. Eigenvalues of the Gram matrix below eps times the largest are
        dropped, with eps that of the dtype: what they would add to K is lost in its rounding.
    """
    n_rows, width = len(features[0]), sum(f.shape[1] for f in features)
    eps = torch.finfo(features[0].dtype).eps
    if n_rows <= width:
        u = torch.cat([f.double() for f in features], dim=1)
        values, vectors = torch.linalg.eigh(u @ u.mT)
        keep = _above(values, eps)
        return (vectors[:, keep] * values[keep].sqrt()).to(features[0].dtype).contiguous()
    values, vectors = torch.linalg.eigh(_gram(features))
    vectors = vectors[:, _above(values, eps)]
    z = features[0].new_empty(n_rows, vectors.shape[1])
    for rows, u in _in_float64(features):
        z[rows] = u @ vectors
    return z


def _gram(features: list[Tensor]) -> Tensor:
    width = sum(f.shape[1] for f in features)
    gram = features[0].new_zeros(width, width, dtype=torch.float64)
    for _, u in _in_float64(features):
        gram.addmm_(u.mT, u)
    return gram


def _in_float64(features: list[Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """The features side by side, some rows at a time."""
    for start in range(0, len(features[0]), _CHUNK):
        rows = slice(start, start + _CHUNK)
        yield rows, torch.cat([f[rows].double() for f in features], dim=1)


def _above(values: Tensor, eps: float) -> Tensor:
    return values > eps * values[-1]
