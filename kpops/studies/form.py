"""The form of the results of a study: variables, dims, dtypes and labels, equal at all points."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xarray as xr

from kpops.studies.axes import RESERVED, Value

_LARGEST_CHUNK = 2**26  # bytes


@dataclass(frozen=True)
class Variable:
    """Inner dims and dtype of a variable that every point writes."""

    dims: tuple[str, ...]
    dtype: str
    coordinate: bool = False

    @property
    def fill(self) -> Any:
        """What stands at unfinished points and behind the end of shorter ones."""
        return fill_of(self.dtype)

    def chunk(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Whole along the inner dims, unless that is large."""
        chunk = [max(1, sizes[dim]) for dim in self.dims]
        itemsize = 16 if self.dtype == "string" else np.dtype(self.dtype).itemsize
        while np.prod(chunk, dtype=float) * itemsize > _LARGEST_CHUNK:
            longest = int(np.argmax(chunk))
            chunk[longest] = -(-chunk[longest] // 2)
        return tuple(chunk)


@dataclass(frozen=True)
class Labels:
    """A coordinate along one inner dim, which all points share."""

    dim: str
    dtype: str
    values: list[Any]
    attributes: dict[str, Any]

    def array(self) -> np.ndarray:
        """The values as an array that files can hold."""
        return np.array(self.values, object if self.dtype == "string" else self.dtype)


@dataclass(frozen=True)
class Form:
    """Variables of a point, coordinates along its inner dims, sizes of these, and attributes.

    The attributes are those of the Dataset, under ``""``, and of the variables.
    """

    variables: dict[str, Variable]
    labels: dict[str, Labels]
    sizes: dict[str, int]
    attributes: dict[str, dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """Plain Python that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, read: Mapping[str, Any]) -> Form:
        """Form from what :meth:`as_json` gave."""
        variables = {
            name: Variable(tuple(v["dims"]), v["dtype"], v["coordinate"])
            for name, v in read["variables"].items()
        }
        labels = {name: Labels(**label) for name, label in read["labels"].items()}
        return cls(variables, labels, read["sizes"], read["attributes"])

    def covers(self, other: Form) -> bool:
        """Whether the result of another point fits in without any change."""
        return self == self.with_point(other)

    def with_point(self, other: Form) -> Form:
        """The form into which another point fits, too; raises if there is none.

        Dims become as long as the longest, attributes that differ are dropped.
        """
        refuse_other_form(other, self)
        sizes = {dim: max(n, other.sizes[dim]) for dim, n in self.sizes.items()}
        longer = {
            name: other.labels[name] if sizes[label.dim] > self.sizes[label.dim] else label
            for name, label in self.labels.items()
        }
        labels = {
            name: Labels(label.dim, label.dtype, label.values, shared)
            for name, label in longer.items()
            for shared in [_common(self.labels[name].attributes, other.labels[name].attributes)]
        }
        attributes = {
            name: _common(mine, other.attributes[name]) for name, mine in self.attributes.items()
        }
        return Form(self.variables, labels, sizes, attributes)


def fill_of(dtype: str) -> Any:
    """NaN for numbers, "" for strings, False for booleans."""
    if dtype == "string":
        return ""
    kind = np.dtype(dtype).type
    return kind(0) if kind is np.bool_ else kind(np.nan)


def standardized(result: xr.Dataset, point: Mapping[str, Value]) -> xr.Dataset:
    """A point's result in the dtypes of a store, without the coordinates of the point itself.

    Integers become float64, where a missing one is NaN. Coordinates along one dim, which all points
    share, keep their dtype.
    """
    for axis, value in point.items():
        own = result.coords.get(axis)
        if own is not None and not own.dims and own.item() == value:
            result = result.drop_vars(axis)
    lengths = {f"{dim}_length" for dim in result.dims}
    taken = {*point, *RESERVED, *lengths} & {*map(str, result.variables), *map(str, result.dims)}
    if taken:
        raise ValueError(
            f"measure returned a variable or dim {min(taken)}, a name that the study uses: rename "
            "it"
        )
    variables, coords = dict[str, Any](), dict[str, Any]()
    for name, variable in result.variables.items():
        if not isinstance(name, str) or not name or "/" in name or name[0] in "._":
            raise ValueError(f"measure returned a variable {name!r}: choose a plain name")
        if getattr(result.indexes.get(name), "nlevels", 1) > 1:
            raise TypeError(f"measure returned a MultiIndex {name}: return .reset_index({name!r})")
        is_coordinate = name in result.coords
        values = _standard(name, variable.values, keeps=is_coordinate and variable.ndim == 1)
        target = coords if is_coordinate else variables
        target[name] = (variable.dims, values, variable.attrs)
    return xr.Dataset(variables, coords, result.attrs)


def _standard(name: str, values: np.ndarray, keeps: bool) -> np.ndarray:
    """Values in a dtype that the store has."""
    if values.dtype.kind in "iufc":
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype.kind in "OUT":
        strings = values.astype(object)
        if all(isinstance(entry, str) for entry in strings.flat):
            return strings
    elif values.dtype.kind in "iu" and not keeps:
        promoted = values.astype(np.float64)
        if np.abs(promoted).max(initial=0) > 2**53:
            raise ValueError(
                f"measure returned {name} with integers beyond 2**53, which float64 would round: "
                "return them as strings"
            )
        return promoted
    elif values.dtype.kind in ("biu" if keeps else "bc") or values.dtype in (
        "float16",
        "float32",
        "float64",
    ):
        return values
    raise TypeError(
        f"measure returned {name} of dtype {values.dtype}: return real or complex numbers, "
        "booleans or strings"
    )


def form_of(result: xr.Dataset) -> Form:
    """Form of a standardized result."""
    variables, labels = {}, {}
    for name, variable in result.variables.items():
        dtype = "string" if variable.dtype == object else str(variable.dtype)
        dims, is_coordinate = tuple(map(str, variable.dims)), name in result.coords
        if is_coordinate and len(dims) == 1:
            plain = variable.values.tolist()
            labels[str(name)] = Labels(dims[0], dtype, plain, _plain(variable.attrs))
        else:
            variables[str(name)] = Variable(dims, dtype, is_coordinate)
    attributes = {name: _plain(result[name].attrs) for name in variables}
    sizes = {str(dim): n for dim, n in result.sizes.items()}
    return Form(variables, labels, sizes, {"": _plain(result.attrs), **attributes})


def _plain(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes as JSON holds them."""
    plain = {str(k): v.tolist() if hasattr(v, "tolist") else v for k, v in attributes.items()}
    return json.loads(json.dumps(plain, default=str))


def _common(these: Mapping[str, Any], those: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in these.items() if key in those and those[key] == value}


def refuse_other_form(ours: Form, theirs: Form) -> None:
    """Refuse what cannot stand beside the points before; lengths may differ."""
    remedy = "return the same at every point"
    for noun, mine, wanted in (
        ("variables", ours.variables, theirs.variables),
        ("coordinates", ours.labels, theirs.labels),
    ):
        if sorted(mine) != sorted(wanted):
            raise ValueError(
                f"measure returned the {noun} {sorted(mine)}, at the points before "
                f"{sorted(wanted)}: {remedy}"
            )
    for name, variable in ours.variables.items():
        before = theirs.variables[name]
        if variable != before:
            raise ValueError(
                f"measure returned {name} {_written(variable)}, at the points before "
                f"{_written(before)}: {remedy}"
            )
    for name, label in ours.labels.items():
        _refuse_other_labels(name, label, theirs.labels[name])


def _written(variable: Variable) -> str:
    kind = "as a coordinate " if variable.coordinate else ""
    return f"{kind}with dims {variable.dims} in {variable.dtype}"


def _refuse_other_labels(name: str, ours: Labels, theirs: Labels) -> None:
    """Refuse labels that differ on the part that two points share."""
    if ours.dim != theirs.dim:
        raise ValueError(
            f"measure returned the coordinate {name} along {ours.dim}, at the points before along "
            f"{theirs.dim}: return the same at every point"
        )
    if ours.dtype != theirs.dtype and ours.values and theirs.values:
        raise ValueError(
            f"measure returned the coordinate {name} in {ours.dtype}, at the points before in "
            f"{theirs.dtype}: return the same at every point"
        )
    for place, (mine, before) in enumerate(zip(ours.values, theirs.values, strict=False)):
        if mine != before and (mine == mine or before == before):  # nan equals nan
            raise ValueError(
                f"measure returned {name} with {mine!r} at place {place} of {ours.dim}, at the "
                f"points before {before!r}: give a dim the same coordinates at every point, and "
                f"return what differs as a variable, such as by .assign(own_{name}="
                f"result.{name}.variable).drop_vars({name!r})"
            )
