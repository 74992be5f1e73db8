"""From numbers to a labelled Dataset: dtype, labels, provenance."""

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


def mode_variables(variables: Mapping[str, tuple[Any, str]]) -> dict[str, xr.DataArray]:
    """Label per-mode numbers, tensors or arrays; name to (values, long_name)."""
    values = {n: to_numpy(v) if isinstance(v, Tensor) else v for n, (v, _) in variables.items()}
    k = len(next(iter(values.values())))
    modes = {"mode": _numbered(k)}
    return {
        name: xr.DataArray(
            values[name], dims="mode", coords=modes, attrs={"long_name": text, "units": "1"}
        )
        for name, (_, text) in variables.items()
    }


def _numbered(k: int) -> tuple[str, np.ndarray, dict[str, str]]:
    return "mode", np.arange(1, k + 1), {"long_name": "mode", "units": "1"}


def modes_of(block: Tensor, space: Space, long_name: str) -> xr.DataArray:
    """Label a block of modes (mode, *dims)."""
    modes = {"mode": _numbered(len(block))}
    return space.label(
        to_numpy(block), block_dims=("mode",), block_coords=modes, long_name=long_name
    )


def modes_dataset(
    op: TrajectoryOperator, found: LeadingModes, value: str, long_name: str, **settings: Any
) -> xr.Dataset:
    """Values, residuals and verdicts of modes, to which their functions are to be added."""
    values = undone(found.values, found.unit, op, "spectrum")
    return xr.Dataset(
        mode_variables(
            {
                value: (values, long_name),
                "residual": (found.residual, "relative residual"),
                "converged": (found.converged, "whether the residual meets the tolerance"),
                "cluster": (found.cluster, "modes not told apart"),
            }
        ),
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
    """What a result is of, as scalar coordinates: concatenation keeps these, and no attributes.

    Those of the user are among them, where all spaces of the operators agree on them.
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
    """Flat attributes of a result: where the operator is from, its dtype, the settings as JSON."""
    return {
        **op.attrs,
        "dtype": str(op.torch_dtype).removeprefix("torch."),
        "configuration": json.dumps(settings, sort_keys=True),
    }


def undone(values: Any, unit: float, op: TrajectoryOperator, what: str) -> np.ndarray:
    """Values times `unit`, in the dtype of the operator if it holds them, else in float64.

    Raises
    ------
    ValueError
        If float64 cannot hold them.
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
    """Refuse options that make no sense; the budget."""
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
    """Attributes of a result."""
    attrs = {
        **configuration(op, what=what, **settings),
        "method": answer.method,
        "chosen": answer.chosen,
        "num_matvecs": float(answer.num_matvecs),
        "a_priori": float(answer.a_priori),
    }
    if answer.converged is not None:
        attrs["converged"] = int(answer.converged)
    return attrs


def scalar_dataset(
    op: TrajectoryOperator, what: str, answer: Estimate, long_name: str, settings: dict[str, Any]
) -> xr.Dataset:
    """An estimate and its standard error, in the dtype of the operator if it holds them."""
    estimate, stderr = undone([answer.estimate, answer.stderr], answer.unit, op, long_name)
    return xr.Dataset(
        {
            "estimate": ((), estimate, {"long_name": long_name, "units": "1"}),
            "stderr": ((), stderr, {"long_name": "standard error", "units": "1"}),
        },
        coords=identity(op),
        attrs=provenance(op, what, answer, settings),
    )
