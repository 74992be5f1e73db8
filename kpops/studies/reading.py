"""A store as one lazily read Dataset, where what is not done is missing."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import psutil
import xarray as xr
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from kpops.studies.axes import Axes, Position, coordinate
from kpops.studies.form import Form, Variable
from kpops.studies.store import PointStore

Plan = Sequence[Sequence[int]]
"""For every axis, positions in the store of its values, in the order of the result."""


class _Stored(BackendArray):
    """A variable of the store at the points of a plan, where what is not done is missing."""

    def __init__(
        self, array: Any, plan: Plan, done: np.ndarray, variable: Variable, sizes: Mapping[str, int]
    ) -> None:
        self.array, self.done, self.fill = array, done, variable.fill
        inner = [range(sizes[dim]) for dim in variable.dims]
        self.places = [np.array(places, int) for places in (*plan, *inner)]
        self.shape = tuple(map(len, self.places))
        self.dtype = np.dtype(object if variable.dtype == "string" else variable.dtype)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> Any:
        rows = [np.atleast_1d(np.arange(n)[k]) for n, k in zip(self.shape, key, strict=True)]
        chosen = tuple(places[row] for places, row in zip(self.places, rows, strict=True))
        if all(map(len, chosen)):
            values = np.asarray(self.array.oindex[chosen]).astype(self.dtype, copy=False)
        else:  # which Zarr refuses
            values = np.empty(tuple(map(len, chosen)), self.dtype)
        values[~self.done[np.ix_(*rows[: self.done.ndim])]] = self.fill
        single = tuple(0 if isinstance(k, int | np.integer) else slice(None) for k in key)
        return values[single]


class _Backend(BackendEntrypoint):
    """Lets xarray open a store, with its caches around the lazy arrays."""

    def open_dataset(self, filename_or_obj: Any, *, drop_variables: Any = None) -> xr.Dataset:
        """Return the Dataset that another function has made of lazy arrays."""
        return filename_or_obj


def open_store(store: PointStore, plan: Plan | None = None) -> xr.Dataset:
    """All points of a store, or those of a plan, as one Dataset.

    Its leading dims are the axes. Variables are read when their values are used. What is not done,
    and what lies behind the end of a shorter point, is NaN, ``""`` for strings and False for
    booleans; the coordinate ``done`` marks the points, ``<dim>_length`` the lengths along a dim
    where they differ.
    """
    statuses = store.statuses()  # first: what is done by now fits into the form and the axes
    axes, form = store.axes, store.form
    plan = _whole(axes) if plan is None else plan
    states = _table(plan, statuses)
    done = np.array([s is not None and s["state"] == "done" for s in states.flat])
    done = done.reshape(states.shape)
    names = list(axes)
    coords = _coords(axes, plan)
    marks = {"done": (names, done, {"long_name": "whether the point is done", "units": "1"})}
    if form is None:
        return xr.Dataset(coords={**coords, **marks})
    group, variables = store.group(), dict[str, Any]()
    for name, variable in form.variables.items():
        lazy = _Stored(group[name], plan, done, variable, form.sizes)
        content = indexing.LazilyIndexedArray(lazy)
        target = coords if variable.coordinate else variables
        target[name] = xr.Variable([*names, *variable.dims], content, form.attributes[name])
    for name, label in form.labels.items():
        coords[name] = (label.dim, label.array(), label.attributes)
    lazily = xr.open_dataset(xr.Dataset(variables, coords), engine=_Backend)
    known = lazily.assign_coords(marks).assign(_lengths(names, form, states, done))
    return known.assign_attrs(form.attributes[""])


def read_point(store: PointStore, position: Position) -> xr.Dataset | None:
    """Result at one point, loaded and as long as it is, or None if it is not done."""
    status = store.status(position)
    if status is None or status["state"] != "done":
        return None
    one = open_store(store, [[place] for place in position])
    own = {dim: slice(n) for dim, n in status["lengths"].items()}
    drop = [name for name in (f"{dim}_length" for dim in own) if name in one]
    inside = dict.fromkeys(store.axes, 0)
    return one.drop_vars([*drop, "done"]).isel({**inside, **own}).drop_vars(list(inside)).load()


def status_of(store: PointStore, plan: Plan | None = None) -> xr.Dataset:
    """State of every point: a Dataset over the axes.

    A process that is no longer there, as far as this host knows, is not running.
    """
    statuses, axes = store.statuses(), store.axes
    plan = _whole(axes) if plan is None else plan
    states = _table(plan, statuses)
    here = socket.gethostname()

    def gather(read: Any, dtype: Any) -> np.ndarray:
        return np.array([read(s or {}) for s in states.flat], dtype).reshape(states.shape)

    def since(status: Mapping[str, Any]) -> np.datetime64:
        is_lost = status.get("host") == here and not psutil.pid_exists(status["pid"])
        if status.get("state") != "running" or is_lost:
            return np.datetime64("NaT")
        moment = datetime.fromtimestamp(status["since"], UTC).replace(tzinfo=None)
        return np.datetime64(moment, "ns")

    read: dict[str, tuple[Any, Any, dict[str, str]]] = {
        "done": (lambda s: s.get("state") == "done", bool, {"units": "1"}),
        "failed": (lambda s: s.get("state") == "failed", bool, {"units": "1"}),
        "running_since": (since, "datetime64[ns]", {"long_name": "begun by a process, UTC"}),
        "seconds": (lambda s: s.get("seconds", np.nan), float, {"units": "s"}),
        "host": (lambda s: s.get("host", ""), object, {}),
        "error": (lambda s: s.get("error", ""), object, {"long_name": "traceback"}),
    }
    variables = {n: (list(axes), gather(f, kind), a) for n, (f, kind, a) in read.items()}
    return xr.Dataset(variables, _coords(axes, plan))


def _whole(axes: Axes) -> Plan:
    return [range(len(values)) for values in axes.values()]


def _table(plan: Plan, statuses: Mapping[Position, Any]) -> np.ndarray:
    """Statuses at the points of a plan, as an array of objects."""
    table = np.empty(tuple(map(len, plan)), object)
    row_of = [{place: row for row, place in enumerate(places)} for places in plan]
    for position, status in statuses.items():
        rows = tuple(rows.get(place) for rows, place in zip(row_of, position, strict=True))
        if None not in rows:
            table[rows] = status
    return table


def _coords(axes: Axes, plan: Plan) -> dict[str, Any]:
    chosen = zip(axes.items(), plan, strict=True)
    return {name: coordinate([values[i] for i in places]) for (name, values), places in chosen}


def _lengths(names: list[str], form: Form, states: np.ndarray, done: np.ndarray) -> dict[str, Any]:
    """Lengths of the points along the dims where they differ; 0 where nothing is done."""
    found = {}
    for dim, size in form.sizes.items():
        own = [
            status["lengths"][dim] if d else 0
            for status, d in zip(states.flat, done.flat, strict=True)
        ]
        lengths = np.reshape(own, done.shape)
        if (lengths[done] != size).any():
            note = {"long_name": f"length of the point along {dim}", "units": "1"}
            found[f"{dim}_length"] = (names, lengths, note)
    return found
