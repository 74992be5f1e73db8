"""Points of a model as a labelled Dataset, with their stability."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from kpops.arrays import to_numpy
from kpops.dynamics import search_points
from kpops.dynamics.stability import modes, stability
from kpops.labels import Space
from kpops.models.recurrence import Recurrence

_POINT, _MODE, _VECTOR = ("point",), ("point", "mode"), ("point", "mode", "unit")


def labelled(
    recurrence: Recurrence,
    x: Tensor,
    points: search_points.Found,
    jacobians: Tensor,
    count: np.ndarray,
    start_distance: Tensor,
) -> xr.Dataset:
    """Label points at the input x (feature,), and add eigenvalues, eigenvectors and stability."""
    n_points, n_units = points.states.shape
    sizes = {"point": n_points, "mode": n_units, "unit": n_units, "feature": len(x)}
    space = Space(tuple(sizes), tuple(sizes.values()), _coords(recurrence, sizes))
    eigen = modes(jacobians)
    judged = stability(jacobians, eigen.values)
    kind = np.array(search_points.KINDS, dtype=object)[to_numpy(points.kind)]
    converged = points.kind != search_points.NEITHER
    variables: dict[str, tuple[tuple[str, ...], Any, str, str]] = {
        "state": (("point", "unit"), points.states, "state h", "1"),
        "input": (("feature",), x, "constant input x", "1"),
        "speed": (_POINT, points.speed, "speed |f(h) - h|", "1/step"),
        "kind": (_POINT, kind, "fixed point, slow point or neither", "1"),
        "converged": (_POINT, converged, "whether it is a fixed or a slow point", "1"),
        "basin_count": (_POINT, count, "number of starts that led there", "1"),
        "start_distance": (_POINT, start_distance, "distance to a start over spread", "1"),
        "outlier": (_POINT, start_distance > 1, "whether it is far from all starts", "1"),
        "n_unstable": (_POINT, judged.n_unstable, "number of unstable directions", "1"),
        "is_stable": (_POINT, judged.is_stable, "whether all directions are stable", "1"),
        "spectral_radius": (_POINT, judged.spectral_radius, "spectral radius of A", "1"),
        "eigenvector_condition": (_POINT, eigen.condition, "condition of the eigenvectors", "1"),
        "time_constant": (_MODE, judged.time_constant, "time constant", "step"),
        **_parts("eigenvalue", _MODE, eigen.values, "eigenvalue"),
        **_parts("right", _VECTOR, eigen.right, "right eigenvector"),
        **_parts("left", _VECTOR, eigen.left, "left eigenvector"),
    }
    return xr.Dataset({name: _variable(space, *parts) for name, parts in variables.items()})


def _coords(recurrence: Recurrence, sizes: dict[str, int]) -> dict[str, Any]:
    first = {"mode": 1}
    coords = {d: ((d,), np.arange(n) + first.get(d, 0)) for d, n in sizes.items()}
    of_units = recurrence.unit_coords(sizes["unit"])
    return coords | {name: (("unit",), values) for name, values in of_units.items()}


def _parts(
    name: str, dims: tuple[str, ...], values: Tensor, long_name: str
) -> dict[str, tuple[tuple[str, ...], Any, str, str]]:
    """Real and imaginary part, since netCDF has no complex numbers."""
    return {
        f"{name}_real": (dims, values.real, f"{long_name}, real part", "1"),
        f"{name}_imag": (dims, values.imag, f"{long_name}, imaginary part", "1"),
    }


def _variable(
    space: Space, dims: tuple[str, ...], values: Any, long_name: str, units: str
) -> xr.DataArray:
    array = to_numpy(values) if isinstance(values, Tensor) else values
    labelled = space.keep(dims).label(np.array(array), long_name=long_name)
    return labelled.assign_attrs(units=units)
