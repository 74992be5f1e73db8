"""Eigenvalues and eigenvectors of state Jacobians at points, and what they say of stability."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kpops.linalg.rounding import noise_floor


class Modes(NamedTuple):
    """Eigenvalues by falling magnitude, and biorthonormal eigenvectors, one to a row.

    Attributes
    ----------
    values : complex Tensor, shape (point, mode)
        Eigenvalues; of a conjugate pair, that with the positive imaginary part first.
    right : complex Tensor, shape (point, mode, unit)
        ``A r_i = lambda_i r_i``, of unit norm, the largest entry real and positive.
    left : complex Tensor, shape (point, mode, unit)
        ``l_i A = lambda_i l_i`` with ``l_i . r_j = delta_ij``, nothing conjugated. NaN where the
        right ones are, to rounding, linearly dependent.
    condition : Tensor, shape (point,)
        Product of the Frobenius norms of the right and of the left eigenvectors: S where A is
        normal, infinite where A has fewer than S eigenvectors.
    """

    values: Tensor
    right: Tensor
    left: Tensor
    condition: Tensor


class Stability(NamedTuple):
    """What eigenvalues say of the motion near points.

    Attributes
    ----------
    n_unstable : Tensor, shape (point,)
        Number of eigenvalues of magnitude above 1.
    is_stable : Tensor of bool, shape (point,)
        Whether all magnitudes are below 1.
    spectral_radius : Tensor, shape (point,)
        The largest magnitude.
    time_constant : Tensor, shape (point, mode)
        ``-1 / log |lambda|``, in steps.
    """

    n_unstable: Tensor
    is_stable: Tensor
    spectral_radius: Tensor
    time_constant: Tensor


def modes(jacobians: Tensor) -> Modes:
    """Eigenvalues and biorthonormal eigenvectors of every matrix (point, unit, unit)."""
    values, columns = torch.linalg.eig(jacobians)
    order = values.imag.argsort(dim=1, descending=True, stable=True)
    by_magnitude = values.abs().gather(1, order).argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, by_magnitude)
    values = values.gather(1, order)
    columns = columns.gather(2, order[:, None].expand_as(columns))
    largest = columns.gather(1, columns.abs().argmax(dim=1, keepdim=True))
    columns = columns * (largest.abs() / largest)  # LAPACK leaves signs and phases open
    left, info = torch.linalg.inv_ex(columns)
    condition = _norm(columns) * _norm(left)
    independent = (info == 0) & (condition < 1 / noise_floor(jacobians.dtype))
    left = left.masked_fill(~independent[:, None, None], complex(torch.nan, torch.nan))
    condition = condition.masked_fill(~independent, torch.inf)
    return Modes(values, columns.mT, left, condition)


def stability(jacobians: Tensor, values: Tensor) -> Stability:
    """Stability of points with these Jacobians and eigenvalues.

    A magnitude that is 1 to within 64 rounding units of the norm of A counts as neither above nor
    below.
    """
    magnitude = values.abs()
    doubt = noise_floor(jacobians.dtype) * _norm(jacobians).clamp_min(1)
    radius = magnitude[:, 0]
    return Stability(
        n_unstable=(magnitude > 1 + doubt[:, None]).sum(1),
        is_stable=radius < 1 - doubt,
        spectral_radius=radius,
        time_constant=-1 / magnitude.log(),
    )


def _norm(matrices: Tensor) -> Tensor:
    return matrices.flatten(1).norm(dim=1)
