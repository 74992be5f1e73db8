"""Stability of points: eigenvalues and eigenvectors of state Jacobians, as a labelled Dataset."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops.arrays import to_numpy
from kpops.dynamics.search_points import KINDS, NEITHER, Found
from kpops.labels import Space
from kpops.linalg.rounding import noise_floor
from kpops.models.recurrence import Recurrence


class Modes(NamedTuple):
    """Eigenvalues (point, mode) by falling magnitude, and biorthonormal eigenvectors.

    Of a conjugate pair, the value with the positive imaginary part comes first. `right` (point,
    mode, unit) has ``A r_i = lambda_i r_i``, unit norm and a positive largest entry. `left` has
    ``l_i A = lambda_i l_i`` with ``l_i . r_j = delta_ij``, nothing conjugated; NaN where the right
    ones are linearly dependent to rounding. `condition` (point,) is the product of both Frobenius
    norms: S if A is normal, infinite if A has fewer than S eigenvectors.
    """

    values: Tensor
    right: Tensor
    left: Tensor
    condition: Tensor


class Stability(NamedTuple):
    """Stability of points.

    Numbers of magnitudes above 1 (point,), whether all are below 1, the largest one, and
    ``-1 / log |lambda|`` in steps, (point, mode).
    """

    n_unstable: Tensor
    is_stable: Tensor
    spectral_radius: Tensor
    time_constant: Tensor


def modes(jacobians: Tensor) -> Modes:
    """Eigenvalues and biorthonormal eigenvectors of every matrix (point, unit, unit)."""
    values, columns = torch.linalg.eig(jacobians)
    order = by_magnitude(values)
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


def eigenvectors(A: Tensor, value: complex) -> tuple[Tensor, Tensor]:
    """Left and right eigenvector of a simple eigenvalue of a matrix, normalised as in Modes.

    Unlike those, they need no other eigenvector of A. They are complex if the value is; the left
    one is infinite or NaN if the eigenvalue has no eigenvector of its own.
    """
    shift = torch.eye(len(A)).to(A) * (value if value.imag else value.real)
    rows, _, columns = torch.linalg.svd(A - shift)
    left, right = rows[:, -1].conj(), columns[-1].conj()
    largest = right[right.abs().argmax()]
    right = right * (largest.abs() / largest)
    return left / (left @ right), right


def by_magnitude(values: Tensor) -> Tensor:
    """Order of eigenvalues (point, mode): by falling magnitude, then by falling imaginary part."""
    order = values.imag.argsort(dim=1, descending=True, stable=True)
    falling = values.abs().gather(1, order).argsort(dim=1, descending=True, stable=True)
    return order.gather(1, falling)


def stability(jacobians: Tensor, values: Tensor) -> Stability:
    """Stability of points with these Jacobians and eigenvalues.

    A magnitude within 64 rounding units of the norm of A from 1 is neither above nor below.
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


def labelled(
    recurrence: Recurrence,
    x: Tensor,
    points: Found,
    jacobians: Tensor,
    count: np.ndarray,
    start_distance: Tensor,
) -> xr.Dataset:
    """Label points at the input x (feature,), with eigenvalues, eigenvectors and stability."""
    n_points, n_units = points.states.shape
    sizes = {"point": n_points, "mode": n_units, "unit": n_units, "feature": len(x)}
    coords: dict[str, Any] = {d: ((d,), np.arange(n) + (d == "mode")) for d, n in sizes.items()}
    of_units = recurrence.unit_coords(n_units)
    coords |= {name: (("unit",), values) for name, values in of_units.items()}
    space = Space(tuple(sizes), tuple(sizes.values()), coords)
    eigen = modes(jacobians)
    judged = stability(jacobians, eigen.values)
    kind = np.array(KINDS, dtype=object)[to_numpy(points.kind)]
    converged = points.kind != NEITHER
    variables: dict[str, tuple[str, Any, str, str]] = {
        "state": ("point unit", points.states, "state h", "1"),
        "input": ("feature", x, "constant input x", "1"),
        "speed": ("point", points.speed, "speed |f(h) - h|", "1/step"),
        "kind": ("point", kind, "fixed point, slow point or neither", "1"),
        "converged": ("point", converged, "whether it is a fixed or a slow point", "1"),
        "basin_count": ("point", count, "number of starts that led there", "1"),
        "start_distance": ("point", start_distance, "distance to a start over spread", "1"),
        "outlier": ("point", start_distance > 1, "whether it is far from all starts", "1"),
        "n_unstable": ("point", judged.n_unstable, "number of unstable directions", "1"),
        "is_stable": ("point", judged.is_stable, "whether all directions are stable", "1"),
        "spectral_radius": ("point", judged.spectral_radius, "spectral radius of A", "1"),
        "eigenvector_condition": ("point", eigen.condition, "condition of the eigenvectors", "1"),
        "time_constant": ("point mode", judged.time_constant, "time constant", "step"),
        **_parts("eigenvalue", "point mode", eigen.values, "eigenvalue"),
        **_parts("right", "point mode unit", eigen.right, "right eigenvector"),
        **_parts("left", "point mode unit", eigen.left, "left eigenvector"),
    }
    result = {}
    for name, (dims, values, long_name, units) in variables.items():
        array = np.array(to_numpy(values) if isinstance(values, Tensor) else values)
        label = space.keep(tuple(dims.split())).label(array, long_name=long_name)
        result[name] = label.assign_attrs(units=units)
    return xr.Dataset(result)


def _parts(
    name: str, dims: str, values: Tensor, long_name: str
) -> dict[str, tuple[str, Any, str, str]]:
    """Real and imaginary part, since netCDF has no complex numbers."""
    return {
        f"{name}_real": (dims, values.real, f"{long_name}, real part", "1"),
        f"{name}_imag": (dims, values.imag, f"{long_name}, imaginary part", "1"),
    }


def _norm(matrices: Tensor) -> Tensor:
    return matrices.flatten(1).norm(dim=1)
