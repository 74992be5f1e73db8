"""What a measure of the user returns, as a Dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr

from kpops.kinds import described

Measure = Callable[..., "xr.Dataset | xr.DataArray | Mapping[str, Any]"]


def as_dataset(result: Any, reserved: Iterable[str] = ()) -> xr.Dataset:
    """Dataset from the result of a measure."""
    if isinstance(result, xr.DataArray):
        result = result.to_dataset(name=result.name or "measure")
    if not isinstance(result, xr.Dataset):
        if not isinstance(result, Mapping):
            forgotten = ", is there a return missing?" if result is None else ""
            raise TypeError(
                f"measure returned {described(result)}, expected a Dataset, a DataArray with a "
                f"name, or a mapping of names to values{forgotten}"
            )
        result = _from_mapping({name: _variable(name, v) for name, v in result.items()})
    if not result.data_vars:
        raise ValueError("measure returned no variable: name at least one")
    for name in sorted({*reserved} & {*result.variables, *result.dims}):
        raise ValueError(f"measure returned a variable or dim {name}, a reserved name: rename it")
    return result


def _from_mapping(values: dict[str, Any]) -> xr.Dataset:
    """Dataset of DataArrays and others; scalar coordinates of only some become their attributes."""
    labelled = {name: v for name, v in values.items() if isinstance(v, xr.DataArray)}
    xr.align(*labelled.values(), join="exact")  # or a Dataset would fill up with NaN

    def is_of_all(coordinate: Any) -> bool:
        if len(labelled) < len(values) or any(
            coordinate not in v.coords for v in labelled.values()
        ):
            return False
        first, *others = (v.coords[coordinate].variable for v in labelled.values())
        return all(first.equals(other) for other in others)

    own = {}
    for name, v in labelled.items():
        lost = [c for c in v.coords if not v[c].dims and not is_of_all(c)]
        items = {str(c): v[c].item() for c in lost}
        plain = {c: x for c, x in items.items() if isinstance(x, str | int | float)}
        own[name] = v.drop_vars(lost).assign_attrs(plain)
    return xr.Dataset({**values, **own})


def _variable(name: Any, value: Any) -> Any:
    """What xarray takes as a variable."""
    if not isinstance(name, str):
        raise TypeError(f"measure returned a value under the name {name!r}: use a string")
    if isinstance(value, xr.DataArray) or _is_xarrays_own(value):
        return value
    one = f", such as result.{next(iter(value), name)}" if isinstance(value, xr.Dataset) else ""
    refusal = TypeError(
        f"measure returned {name}, {described(value)}: return numbers or arrays{one}"
    )
    try:
        array = value.numpy(force=True) if isinstance(value, torch.Tensor) else value
        array = np.asarray(array)
    except ValueError as error:
        raise ValueError(f"measure returned {name}, which is no array: {error}") from error
    except TypeError as error:  # what refuses to become an array
        raise refusal from error
    if array.dtype.kind == "U":
        array = array.astype(object)  # which files can hold
    entries = array.ravel().tolist() if array.dtype == object else []
    if array.dtype.kind not in "biufcOMm" or any(not isinstance(x, str) for x in entries):
        raise refusal
    return tuple(f"{name}_dim_{axis}" for axis in range(array.ndim)), array


def _is_xarrays_own(value: Any) -> bool:
    """Whether it is (dims, values) or (dims, values, attrs)."""
    if not (isinstance(value, tuple) and 2 <= len(value) <= 3):
        return False
    dims = (value[0],) if isinstance(value[0], str) else value[0]
    named = isinstance(dims, tuple | list) and all(isinstance(d, str) for d in dims)
    return named and np.ndim(value[1]) == len(dims)
