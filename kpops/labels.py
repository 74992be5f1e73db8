"""Labelled vector spaces, and the crossing between the arrays of users and blocks of tensors.

Inside kpops every vector is a torch tensor of shape ``(block, *dims)``, on one device and in one
dtype. Users hold NumPy, CuPy or torch arrays, flat or with the dimensions of the space, or labelled
DataArrays. :func:`enter` makes a block of these, and returns the way back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops.arrays import as_cupy, as_tensor, is_cupy, to_numpy
from kpops.distributed.parts import WHOLE, Parts
from kpops.kinds import Shown
from kpops.transfers import on_device


class Coordinate(NamedTuple):
    """Labels along some dimensions, or none; kpops writes attributes that are None."""

    dims: tuple[str, ...]
    values: np.ndarray
    attrs: Mapping[str, Any] | None = None

    def described(self, name: str) -> tuple[tuple[str, ...], np.ndarray, dict[str, Any]]:
        """Dims, values and attributes, as xarray takes them."""
        if self.attrs is not None:
            return self.dims, self.values, dict(self.attrs)
        attrs = {"long_name": name.replace("_", " ")}
        if self.values.dtype.kind in "fiu":
            attrs["units"] = _UNITS.get(name, "1")
        return self.dims, self.values, attrs


Restore = Callable[[Tensor, "Space"], Any]

# Coordinates of other numbers have the unit "1".
_UNITS = {"time": "step", "angle": "rad"}


@dataclass(frozen=True, eq=False)
class Space(Shown):
    """A vector space whose vectors are arrays with named dimensions.

    A flat vector is the C-order of the dimensions.

    Parameters
    ----------
    dims : tuple of str
        Names of the dimensions, for example ``("trial", "time", "unit")``.
    shape : tuple of int
        Their sizes.
    coords : mapping, optional
        Coordinate name to ``(dims, values)``, or ``(dims, values, attrs)`` if they are the user's.
        A coordinate with the name of a dimension labels its positions. Spaces are equal if their
        dimensions and sizes are, and no such labels differ.
    parts : Parts, optional
        How the trials, the first dimension, are spread over processes. Shape and coordinates are
        those of the trials here.

    Examples
    --------
    >>> from kpops.labels import Space
    >>> space = Space(("trial", "time", "unit"), (2, 3, 4))
    >>> space.size
    24
    >>> space
    (trial: 2, time: 3, unit: 4)
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    coords: Mapping[str, Coordinate] = field(default_factory=dict)
    parts: Parts = WHOLE

    def __post_init__(self) -> None:
        object.__setattr__(self, "coords", {k: Coordinate(*c) for k, c in self.coords.items()})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Space):
            return NotImplemented
        ours, theirs = ((s.dims, s.shape, s.parts) for s in (self, other))
        return ours == theirs and not self.misaligned(other)

    __hash__ = None  # type: ignore[assignment]

    def misaligned(self, other: Space) -> list[str]:
        """Return the dimensions whose positions have other labels in `other`."""
        both = [d for d in self.dims if d in self.coords and d in other.coords]
        return [d for d in both if not np.array_equal(self.coords[d][1], other.coords[d][1])]

    @property
    def size(self) -> int:
        """Number of entries of a vector, or of its part on this process."""
        return math.prod(self.shape)

    @property
    def total(self) -> int:
        """Number of entries of a vector on all processes."""
        return sum(self.parts.counts) * self._per_trial if self.parts.many else self.size

    @property
    def entries(self) -> range:
        """Which of the entries of a flat vector are on this process."""
        first = self.parts.offset * self._per_trial if self.parts.many else 0
        return range(first, first + self.size)

    @property
    def _per_trial(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def sizes(self) -> dict[str, int]:
        """Dimension name to size."""
        return dict(zip(self.dims, self.shape, strict=True))

    def __repr__(self) -> str:
        sizes = [f"{d}: {s}" for d, s in self.sizes.items()]
        if self.parts.many:
            sizes[0] += f" of {sum(self.parts.counts)}"
        return "(" + ", ".join(sizes) + ")"

    def keep(self, dims: tuple[str, ...]) -> Space:
        """Return the space of the dimensions in `dims`, in this space's order."""
        unknown = sorted(set(dims) - set(self.dims))
        if unknown or not dims:
            raise ValueError(f"keep={tuple(dims)!r}: choose one or more of the dims {self.dims}")
        kept = tuple(d for d in self.dims if d in dims)
        coords = {k: c for k, c in self.coords.items() if set(c[0]) <= set(kept)}
        parts = self.parts if self.dims[0] in kept else WHOLE
        return Space(kept, tuple(self.sizes[d] for d in kept), coords, parts)

    def take(self, positions: Mapping[str, np.ndarray]) -> Space:
        """Return the space restricted to integer `positions` along some dimensions."""
        shape = tuple(len(positions[d]) if d in positions else s for d, s in self.sizes.items())
        coords = {}
        for name, (dims, values, attrs) in self.coords.items():
            for axis, dim in enumerate(dims):
                if dim in positions:
                    values = np.take(values, positions[dim], axis=axis)
            coords[name] = Coordinate(dims, values, attrs)
        if self.parts.many and self.dims[0] in positions:
            raise ValueError(
                f"{self.dims[0]} is spread over {len(self.parts.counts)} processes, so no part of "
                "it can be selected: select trials of the inputs, before kpops.linearize"
            )
        return Space(self.dims, shape, coords, self.parts)

    def unstacked(self, dim: str) -> Space:
        """Return the space with a dimension taken apart, if it is a grid of some of its labels.

        These are integers that rise in steps of one, such as the positions and channels of a site;
        labels that are the same everywhere become scalars.
        """
        axis, size = self.dims.index(dim), self.sizes[dim]
        ours = {k: c.values for k, c in self.coords.items() if c.dims == (dim,) and k != dim}
        alike = {k: v[0] for k, v in ours.items() if (v == v[0]).all()}
        grid = {k: v for k, v in ours.items() if k not in alike and v.dtype.kind == "i"}
        names = sorted(grid, key=lambda k: -int((grid[k] != grid[k][0]).argmax()))  # slowest first
        labels = [np.unique(grid[k]) for k in names]
        shape = tuple(map(len, labels))
        if len(names) < 2 or math.prod(shape) != size:
            return self
        expected = np.meshgrid(*labels, indexing="ij")
        if any((grid[k] != e.ravel()).any() for k, e in zip(names, expected, strict=True)):
            return self
        coords = {k: c for k, c in self.coords.items() if dim not in c.dims}
        coords |= {k: Coordinate((k,), v) for k, v in zip(names, labels, strict=True)}
        coords |= {k: Coordinate((), np.array(v, dtype=ours[k].dtype)) for k, v in alike.items()}
        dims = (*self.dims[:axis], *names, *self.dims[axis + 1 :])
        sizes = (*self.shape[:axis], *shape, *self.shape[axis + 1 :])
        return Space(dims, sizes, coords, self.parts)

    def label(
        self,
        values: np.ndarray,
        *,
        block_dims: tuple[str, ...] = (),
        block_coords: Mapping[Any, Any] | None = None,
        name: str | None = None,
        long_name: str | None = None,
    ) -> xr.DataArray:
        """Label an array of shape ``(*block, *shape)``."""
        attrs = {} if long_name is None else {"long_name": long_name, "units": "1"}
        if not block_dims and not block_coords:
            # Deep, since who writes into the labels of one result must not change the next.
            result = self._labelled.copy(deep=True, data=values)
            result.name, result.attrs = name, attrs
            return result
        own = {k: c.described(k) for k, c in self.coords.items()}
        coords = {**own, **(block_coords or {})}
        return xr.DataArray(
            values, dims=block_dims + self.dims, coords=coords, name=name, attrs=attrs
        )

    @cached_property
    def _labelled(self) -> xr.DataArray:
        """A vector of zeros, without memory of its own: a copy takes a tenth of new indexes."""
        coords = {k: c.described(k) for k, c in self.coords.items()}
        return xr.DataArray(np.broadcast_to(0.0, self.shape), dims=self.dims, coords=coords)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k != "_labelled"}


def enter(q: Any, space: Space, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Restore]:
    """Bring a user's vector or vectors of `space` to a block ``(k, *space.shape)``.

    `q` is flat ``(n,)``, columns ``(n, k)``, or has the dimensions of the space and an optional
    leading block dimension. A DataArray is read by name, and its other dimensions are of the block.
    A tensor must have the dtype and device of the operator; other arrays are converted, since
    SciPy's solvers may pass float64. ``restore(result, codomain)``, which is returned too, gives a
    result the kind and layout of `q`.
    """
    values = q.data if isinstance(q, xr.DataArray) else q
    if is_cupy(values) and device.type != "cuda":
        raise ValueError(
            f"q is a CuPy array, the operator on {device}: linearise with device='cuda', or pass "
            "cupy.asnumpy(q)"
        )
    if is_cupy(values) and values.device.id != device.index:
        raise ValueError(
            f"q is on cuda:{values.device.id}, the operator on {device}: copy q there, by "
            f"cupy.asarray(q) within cupy.cuda.Device({device.index})"
        )
    if isinstance(q, xr.DataArray):
        return _enter_dataarray(q, space, dtype, device)
    if isinstance(q, Tensor):
        if q.dtype != dtype:
            raise TypeError(f"q is {q.dtype}, the operator computes in {dtype}: use q.to({dtype})")
        if q.device != device:
            raise ValueError(f"q is on {q.device}, the operator on {device}: use q.to('{device}')")
    tensor = as_tensor(q, "q")
    back = _kind_of(q)
    block, layout = _to_block(on_device(tensor, device, dtype), space)
    return block, lambda result, codomain: back(layout(result, codomain))


def _kind_of(q: Any) -> Callable[[Tensor], Any]:
    if isinstance(q, Tensor):
        return lambda tensor: tensor
    return as_cupy if is_cupy(q) else to_numpy


def _to_block(q: Tensor, space: Space) -> tuple[Tensor, Callable[[Tensor, Space], Tensor]]:
    n, shape = space.size, tuple(q.shape)
    if shape == (n,):
        return q.reshape(1, *space.shape), lambda r, out: r.reshape(out.size)
    if len(shape) == 2 and shape[0] == n:  # SciPy's convention: the columns are the vectors
        block = q.T.reshape(-1, *space.shape)
        return block, lambda r, out: r.reshape(len(r), out.size).T
    if len(space.dims) > 1:
        if shape == space.shape:
            return q[None], lambda r, out: r[0]
        if shape[1:] == space.shape:
            return q, lambda r, out: r
    structured = "" if len(space.dims) == 1 else f", {space.shape} or (block, *{space.shape})"
    raise ValueError(
        f"q has shape {shape}, expected ({n},), ({n}, k){structured} for the space {space}"
    )


def by_name(array: xr.DataArray, space: Space, what: str) -> Any:
    """Values of a DataArray in the order of the dimensions of `space`, whose labels must agree."""
    if set(array.dims) != set(space.dims):
        raise ValueError(f"{what} has dims {array.dims}, expected {space.dims}")
    labels = disagreeing(array, space)
    if labels:
        raise ValueError(f"{what} and the inputs disagree on the labels of {labels}: align them")
    return array.transpose(*space.dims).data


def coordinates_of(array: xr.DataArray, dims: tuple[str, ...]) -> dict[str, Coordinate]:
    """Coordinates of a DataArray along some of `dims` or none, as files can hold them.

    The levels of a MultiIndex become coordinates of their own.
    """
    coords = {}
    for name, c in without_multiindex(array).coords.items():
        if set(c.dims) <= set(dims):
            # Zarr has no fixed-width strings yet.
            values = c.values.astype(object) if c.dtype.kind in "UT" else c.values
            coords[str(name)] = Coordinate(tuple(map(str, c.dims)), values, dict(c.attrs))
    return coords


def without_multiindex(array: xr.DataArray) -> xr.DataArray:
    """`array` with the levels of each MultiIndex as plain coordinates."""
    indexes = array.xindexes.items()
    several = [n for n, i in indexes if isinstance(i, xr.indexes.PandasMultiIndex)]
    return array.reset_index([n for n in several if n in array.dims]) if several else array


def disagreeing(array: xr.DataArray, space: Space) -> list[str]:
    """Index coordinates, also levels of a MultiIndex, that have other values in `space`."""
    indexed = set(map(str, array.xindexes)) & set(space.coords)
    theirs = without_multiindex(array).coords.variables
    return sorted(
        n
        for n in indexed & set(map(str, theirs))
        if not np.array_equal(theirs[n].values, space.coords[n].values)
    )


def refuse_other_labels(
    one: Mapping[str, Coordinate],
    two: Mapping[str, Coordinate],
    names: tuple[str, str],
    dims: tuple[str, ...],
) -> None:
    """Refuse the coordinates of two arrays of one shape, by their names, if labels differ.

    Trials or times that have no label in common are of different runs, which may be compared.
    """
    for dim in dims:
        if dim not in one or dim not in two:
            continue
        mine, theirs = one[dim].values, two[dim].values
        numbers = mine.dtype.kind in "fiu" and theirs.dtype.kind in "fiu"
        alike = np.isclose(mine, theirs, rtol=1e-6, equal_nan=True) if numbers else mine == theirs
        if not np.all(alike) and (dim not in _OF_RUNS or np.isin(mine, theirs).any()):
            i = int(np.argmin(alike))
            raise ValueError(
                f"{names[0]} has the {dim} {mine[i]!s} where {names[1]} has {theirs[i]!s}: order "
                f"and name them alike, by .sel({dim}=...), or drop the labels by "
                f".drop_vars({dim!r})"
            )


_OF_RUNS = ("trial", "seed", "time", "step")


def _enter_dataarray(
    q: xr.DataArray, space: Space, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Restore]:
    missing = [d for d in space.dims if d not in q.dims]
    wrong = {d: q.sizes[d] for d in space.dims if d in q.dims and q.sizes[d] != space.sizes[d]}
    if missing or wrong:
        raise ValueError(f"q has dims {dict(q.sizes)}, expected {space}")
    labels = disagreeing(q, space)
    if labels:
        raise ValueError(
            f"q and the operator disagree on the labels of {labels}: align them first, or drop "
            f"q's by q.drop_vars({labels})"
        )
    block_dims = tuple(str(d) for d in q.dims if d not in space.dims)
    order = (*block_dims, *space.dims)
    q = q if q.dims == order else q.transpose(*order)
    kind = _kind_of(q.data)
    block_shape = q.shape[: len(block_dims)]
    of_block = [k for k, c in q.coords.variables.items() if set(c.dims) <= set(block_dims)]
    block_coords = {k: q.coords[k] for k in of_block}
    tensor = on_device(as_tensor(q.data, "q"), device, dtype)

    def restore(result: Tensor, codomain: Space) -> xr.DataArray:
        values = kind(result.reshape(*block_shape, *codomain.shape))
        return codomain.label(values, block_dims=block_dims, block_coords=block_coords)

    return tensor.reshape(-1, *space.shape), restore


def parameter_space(sizes: Mapping[str, int]) -> Space:
    """Space of flat parameter vectors, from the sizes of the parameters.

    The coordinate ``parameter_name`` names the parameter of each entry.
    """
    names = np.repeat(np.array(list(sizes), dtype=object), list(sizes.values()))
    coords = {
        "parameter": Coordinate(("parameter",), np.arange(len(names))),
        "parameter_name": Coordinate(("parameter",), names),
    }
    return Space(("parameter",), (len(names),), coords)
