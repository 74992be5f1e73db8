"""What measures return of single checkpoints, as Datasets of one shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr

from kpops.kinds import described

_EXPECTED = "expected a Dataset, a DataArray with a name, or a mapping of names to values"

_KINDS = {"data_vars": "variables", "coords": "coordinates"}


def as_dataset(result: Any) -> xr.Dataset:
    """Dataset of what a measure has returned."""
    if isinstance(result, xr.DataArray):
        result = result.to_dataset(name=result.name or "measure")
    if not isinstance(result, xr.Dataset):
        if not isinstance(result, Mapping):
            forgotten = ", is there a return missing?" if result is None else ""
            raise TypeError(f"measure returned {described(result)}, {_EXPECTED}{forgotten}")
        result = _from_mapping({_name(name): _variable(name, v) for name, v in result.items()})
    if not result.data_vars:
        raise ValueError("measure returned no variable: name at least one")
    if "step" in {*result.variables, *result.dims}:
        raise ValueError(
            "measure returned a variable or dim step, which is that of training: rename"
        )
    return result


def _from_mapping(values: Mapping[str, Any]) -> xr.Dataset:
    """Dataset of DataArrays and others; what holds of one of them only becomes its attribute."""
    labelled = {name: v for name, v in values.items() if isinstance(v, xr.DataArray)}
    xr.align(*labelled.values(), join="exact")  # or a Dataset would fill up with NaN
    scalars = {c for v in labelled.values() for c in v.coords if not v[c].dims}
    of_one = [c for c in scalars if not _is_of_all(c, list(values.values()))]
    own = {}
    for name, v in labelled.items():
        lost = [c for c in of_one if c in v.coords and not v[c].dims]
        said = {str(c): v[c].item() for c in lost}
        plain = {c: x for c, x in said.items() if isinstance(x, str | int | float)}
        own[name] = v.drop_vars(lost).assign_attrs(plain)
    return xr.Dataset({**values, **own})


def _is_of_all(coordinate: Any, values: list[Any]) -> bool:
    if not all(isinstance(v, xr.DataArray) and coordinate in v.coords for v in values):
        return False
    first, *others = (v.coords[coordinate].variable for v in values)
    return all(first.equals(other) for other in others)


def refuse_other_shape(result: xr.Dataset, before: Mapping[int, xr.Dataset]) -> None:
    """Refuse what cannot stand beside the results of the steps before."""
    if not before:
        return
    step, first = next(iter(before.items()))
    for kind in ("data_vars", "coords"):
        mine, theirs = (sorted(map(str, getattr(d, kind))) for d in (result, first))
        if mine != theirs:
            raise ValueError(
                f"measure returned the {_KINDS[kind]} {mine}, at step {step} {theirs}: return the "
                "same of every checkpoint"
            )
    for name, variable in result.variables.items():
        sizes, wanted = dict(variable.sizes), dict(first[name].sizes)
        if sizes != wanted:
            raise ValueError(
                f"measure returned {name} of sizes {sizes}, at step {step} {wanted}: return as "
                "many of every checkpoint, padded with NaN if need be"
            )
    for dim in result.dims:
        if dim in result.coords and not result[dim].equals(first[dim]):
            raise ValueError(
                f"measure returned other labels of {dim} than at step {step}: label the dim alike "
                "at every checkpoint, and return what differs as a variable"
            )


def join(results: Mapping[int, xr.Dataset]) -> xr.Dataset | None:
    """One Dataset with the dim step, None of nothing."""
    if not results:
        return None
    steps = sorted(results)
    joined = xr.concat(
        [results[step] for step in steps],
        dim="step",
        combine_attrs="drop_conflicts",
        join="exact",
        data_vars="all",
        coords="different",  # a coordinate that moves over training is kept for every step
        compat="equals",
    )
    attrs = {"long_name": "training iteration", "units": "1"}
    return joined.assign_coords(step=("step", np.array(steps), attrs))


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"measure returned a value under the name {name!r}: use a string")
    return name


def _variable(name: str, value: Any) -> Any:
    if isinstance(value, xr.DataArray):
        return value
    if isinstance(value, xr.Dataset):
        raise _no_numbers(name, value)
    if _is_xarrays_own(value):  # (dims, values) or (dims, values, attrs)
        return value
    try:
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
        array = np.asarray(array)
    except ValueError as error:
        raise ValueError(f"measure returned {name}, which is no array: {error}") from error
    except TypeError as error:  # what refuses to become an array
        raise _no_numbers(name, value) from error
    if array.dtype.kind == "U":
        array = array.astype(object)  # which files take
    if array.dtype.kind not in "biufcOMm" or any(not isinstance(x, str) for x in _objects(array)):
        raise _no_numbers(name, value)
    return tuple(f"{name}_dim_{axis}" for axis in range(array.ndim)), array


def _no_numbers(name: str, value: Any) -> TypeError:
    one = f", such as result.{next(iter(value), name)}" if isinstance(value, xr.Dataset) else ""
    return TypeError(f"measure returned {name}, {described(value)}: return numbers or arrays{one}")


def _is_xarrays_own(value: Any) -> bool:
    if not (isinstance(value, tuple) and 2 <= len(value) <= 3):
        return False
    dims = (value[0],) if isinstance(value[0], str) else value[0]
    named = isinstance(dims, tuple | list) and all(isinstance(d, str) for d in dims)
    return named and np.ndim(value[1]) == len(dims)


def _objects(array: np.ndarray) -> list[Any]:
    return array.ravel().tolist() if array.dtype == object else []
