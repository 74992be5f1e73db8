"""Turn numbers into a labelled Dataset: dtype, coordinates, attributes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from kpops.arrays import to_numpy
from kpops.labels import Space
from kpops.linalg.budget import Estimate
from kpops.linalg.rounding import noise_floor
from kpops.linalg.search import LeadingModes
from kpops.operators.base import TrajectoryOperator
from kpops.scalars import check_real


def unitless(long_name: str) -> dict[str, str]:
    """Attributes of a variable without units."""
    return {"long_name": long_name, "units": "1"}


def estimates(values: Any, long_name: str) -> dict[str, tuple[tuple[()], Any, dict[str, str]]]:
    """Variables of an estimate and its standard error."""
    estimate, stderr = values
    return {
        "estimate": ((), estimate, unitless(long_name)),
        "stderr": ((), stderr, unitless("standard error")),
    }


def mode_variables(variables: Mapping[str, tuple[Any, str]]) -> dict[str, Any]:
    """Label numbers per mode, tensors or arrays, as many of each; name to (values, long_name).

    The numbers of the modes, which a Dataset takes as coordinate, are among the result.
    """
    result: dict[str, Any] = {}
    for name, (values, long_name) in variables.items():
        array = to_numpy(values) if isinstance(values, Tensor) else values
        result |= {name: ("mode", array, unitless(long_name)), "mode": _numbered(len(array))}
    return result


def _numbered(k: int) -> tuple[str, np.ndarray, dict[str, str]]:
    return "mode", np.arange(1, k + 1), unitless("mode")


def modes_of(block: Tensor, space: Space, long_name: str) -> xr.DataArray:
    """Label a block of modes (mode, *dims)."""
    modes = {"mode": _numbered(len(block))}
    return space.label(
        to_numpy(block), block_dims=("mode",), block_coords=modes, long_name=long_name
    )


def modes_dataset(
    op: TrajectoryOperator,
    found: LeadingModes,
    value: str,
    long_name: str,
    functions: Mapping[str, xr.DataArray],
    **settings: Any,
) -> xr.Dataset:
    """Values, residuals and convergence of modes, beside their functions."""
    values = undone(found.values, found.unit, op, "spectrum")
    per_mode = {
        value: (values, long_name),
        "residual": (found.residual, "relative residual"),
        "converged": (found.converged, "whether the residual meets the tolerance"),
        "cluster": (found.cluster, "modes not told apart"),
    }
    return xr.Dataset(
        {**mode_variables(per_mode), **functions},
        coords=identity(op),
        attrs={
            **configuration(op, method=found.method, **settings),
            "method": found.method,
            "chosen": found.chosen,
            "num_matvecs": found.num_matvecs,
            "noise_floor": noise_floor(op.torch_dtype),
        },
    )


def identity(*ops: TrajectoryOperator, **names: str) -> dict[str, Any]:
    """Scalar coordinates that name the operators, which concatenation keeps, unlike attributes.

    The user's own scalar coordinates are among them if all spaces of the operators agree on them.
    """
    names |= {f"operator{i}" if i > 1 else "operator": op.symbol for i, op in enumerate(ops, 1)}
    scalars = [
        {k: xr.Variable(*c.described(k)) for k, c in space.coords.items() if not c.dims}
        for op in ops
        for space in (op.domain, op.codomain)
    ]
    kept = {
        name: value
        for own in scalars
        for name, value in own.items()
        if all(value.equals(other.get(name, value)) for other in scalars)
    }
    # Object strings, since Zarr has no specified type for NumPy's fixed-length ones.
    return kept | {
        name: ((), np.array(text, dtype=object), {"long_name": name})
        for name, text in names.items()
    }


def configuration(op: TrajectoryOperator, **settings: Any) -> dict[str, Any]:
    """Flat attributes of a result: the operator's provenance and dtype, the settings as JSON."""
    return {
        **op.attrs,
        "dtype": str(op.torch_dtype).removeprefix("torch."),
        "configuration": json.dumps(settings, sort_keys=True, default=np.generic.item),
    }


def undone(values: Any, unit: float, op: TrajectoryOperator, what: str) -> np.ndarray:
    """Values times `unit`, in the operator's dtype if that can hold them, else in float64.

    Raises ValueError if float64 cannot hold them either.
    """
    plain = np.asarray(to_numpy(values) if isinstance(values, Tensor) else values, np.float64)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        array = plain * unit
    before, largest = (np.max(np.abs(a), initial=0, where=~np.isnan(a)) for a in (plain, array))
    if not np.isfinite(largest) or (before > 0 and largest < np.finfo(np.float64).tiny):
        raise ValueError(
            f"the {what} of {op!r} leaves float64: scale the operator, as in op * 1e-100 or "
            "op * 1e100, and the result back"
        )
    own = np.finfo(op.dtype)
    holds = largest == 0 or own.tiny <= largest <= own.max
    return array.astype(op.dtype) if holds else array


def check(method: str, methods: dict[str, int], num_matvecs: int | None, tol: float | None) -> int:
    """Check the options of an estimate and return its budget."""
    if method not in methods:
        raise ValueError(f"method={method!r}: choose one of {', '.join(map(repr, methods))}")
    if tol is not None:
        check_real("tol", tol)
        if not 0 < tol < 1:
            raise ValueError(f"tol={tol!r}: choose a fraction of the estimate, between 0 and 1")
    if num_matvecs is None:
        return 64 if tol is None else 1024
    whole = isinstance(num_matvecs, int | np.integer) and not isinstance(num_matvecs, bool)
    if not whole or num_matvecs < methods[method]:
        raise ValueError(
            f"num_matvecs={num_matvecs!r}: method={method!r} needs an int of at least "
            f"{methods[method]} for a standard error"
        )
    return int(num_matvecs)


def provenance(
    op: TrajectoryOperator, what: str, answer: Estimate, settings: dict[str, Any]
) -> dict[str, Any]:
    """Attributes of an estimate."""
    attrs = {
        **configuration(op, what=what, **settings),
        "method": answer.method,
        "chosen": answer.chosen,
        "num_matvecs": float(answer.num_matvecs),
        "a_priori": float(answer.a_priori),
    }
    return attrs if answer.converged is None else attrs | {"converged": int(answer.converged)}


def scalar_dataset(
    op: TrajectoryOperator, what: str, answer: Estimate, long_name: str, settings: dict[str, Any]
) -> xr.Dataset:
    """An estimate and its standard error."""
    values = undone([answer.estimate, answer.stderr], answer.unit, op, long_name)
    attrs = provenance(op, what, answer, settings)
    return xr.Dataset(estimates(values, long_name), identity(op), attrs)
