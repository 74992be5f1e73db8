"""A store of results at points along named axes: one Zarr group that survives a kill.

The values of the axes, the form of the results and the sizes of their dims are attributes of the
group, which one process changes at a time, under a lock. Every variable has chunks of one point, so
no two points share a chunk. A point writes its data first and its status last; the status is one
chunk, which a rename puts in place. So a kill at any moment leaves a point done or not done. In a
repository of Icechunk a change is a transaction: a point, or what else would need the lock.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import xarray as xr

from kpops.kinds import described
from kpops.studies.axes import Axes, Position, Value, coordinate, joined
from kpops.studies.errors import StudyError
from kpops.studies.folder import Folder
from kpops.studies.form import Form, form_of, standardized
from kpops.studies.icechunk_store import InRepository

OURS = "kpops_store"  # the attribute of the group that holds all that is not data


class PointStore:
    """Results of points along named axes.

    A point is known by its position: the index of its value on every axis, in the order of the
    store, where values that came later stand behind.

    Parameters
    ----------
    store : str, path or icechunk.Repository
        The folder of the Zarr group, or what holds it.
    """

    def __init__(self, store: Any) -> None:
        icechunk = sys.modules.get("icechunk")  # or there is no repository
        if icechunk is not None and isinstance(store, icechunk.Repository):
            self._place: Folder | InRepository = InRepository(store)
        elif isinstance(store, str | os.PathLike):
            self._place = Folder(store)
        else:
            raise TypeError(
                f"store is {described(store)}: pass the path of a folder, or an icechunk.Repository"
            )

    def __str__(self) -> str:
        return str(self._place)

    def exists(self) -> bool:
        """Whether there is a store; refuses a place that holds something else."""
        attributes = self._place.attributes()
        if attributes is not None and OURS not in attributes:
            raise ValueError(f"'{self}' holds no study of kpops: choose another place")
        return attributes is not None

    def create(self, axes: Axes, configuration: Mapping[str, Any]) -> bool:
        """Make the store, unless another process is faster; returns whether it is new."""

        def fill(group: Any) -> None:
            _write_axes(group, axes)
            group.create_array(
                "status",
                shape=tuple(map(len, axes.values())),
                chunks=(1,) * len(axes),
                dtype=str,
                compressors=None,
                dimension_names=list(axes),
                attributes={"long_name": "state of each point, as JSON"},
            )

        state = {"axes": axes, "configuration": dict(configuration), "form": None}
        return self._place.create({OURS: json.dumps(state)}, fill) or not self.exists()

    @property
    def axes(self) -> Axes:
        """Values of every axis, in the order of the store."""
        return self._state()["axes"]

    @property
    def configuration(self) -> dict[str, Any]:
        """What the owner keeps beside the axes: plain Python."""
        return self._state()["configuration"]

    def grow(self, axes: Axes, **configuration: Any) -> Axes:
        """Add the new values of `axes`, set entries of the configuration, and return all values."""

        def grown() -> dict[str, Any]:
            state = self._state()
            entries = {**state["configuration"], **configuration}
            return {**state, "axes": joined(state["axes"], axes), "configuration": entries}

        if grown() != self._state():
            self._place.change(lambda: self._grow(grown))
        return self.axes

    def _grow(self, grown: Callable[[], dict[str, Any]]) -> None:
        with self._alone() as group:
            before, state = self._state()["axes"], grown()
            if state["axes"] != before:
                _resize(group, {name: len(values) for name, values in state["axes"].items()})
                _write_axes(group, state["axes"])
            self._set(group, state)

    @property
    def form(self) -> Form | None:
        """Form of the results, None before the first."""
        read = self._state()["form"]
        return None if read is None else Form.from_json(read)

    def statuses(self) -> dict[Position, dict[str, Any]]:
        """Status of every point that has begun."""
        return dict(self._place.statuses(len(self.axes)))

    def status(self, position: Position) -> dict[str, Any] | None:
        """Status of a point, None if it has not begun."""
        return self._place.status(position)

    def is_done(self, position: Position) -> bool:
        """Whether the result of a point is there."""
        return (self.status(position) or {}).get("state") == "done"

    def begin(self, position: Position) -> None:
        """Note that this process computes a point."""
        self._set_status(position, {"state": "running", **_here(), "since": time.time()})

    def forget(self, position: Position) -> None:
        """Note that a point is not begun, after Ctrl-C."""
        self._set_status(position, None)

    def fail(self, position: Position, error: str, seconds: float) -> None:
        """Note that a point failed."""
        status = {"state": "failed", **_here(), "seconds": seconds, "error": error}
        self._set_status(position, status)

    def finish(
        self, position: Position, result: xr.Dataset, seconds: float, point: Mapping[str, Value]
    ) -> None:
        """Write the result of a point that is not done, and at last that it is.

        Raises
        ------
        ValueError, TypeError
            If the result has another form than the points before, or one that no store holds.
        StudyError
            If the store cannot be written: a full disk, a quota, no permission.
        """
        ours = standardized(result, point)
        self._place.change(lambda: self._write(position, ours, seconds))

    def _write(self, position: Position, result: xr.Dataset, seconds: float) -> None:
        if self.is_done(position):  # by another run meanwhile
            return
        ours = form_of(result)
        form = self._agree(ours)
        for name, variable in form.variables.items():
            sizes = [form.sizes[dim] for dim in variable.dims]
            values = result[name].values
            full = np.full(sizes, variable.fill, values.dtype)  # over what a killed one left
            full[tuple(map(slice, values.shape))] = values
            # The array itself may be longer by now, by another process.
            region = (*position, *map(slice, sizes))
            self._place.array(name)[region] = full if variable.dims else full.item()
        status = {"state": "done", **_here(), "seconds": seconds, "lengths": ours.sizes}
        self._replace_status(position, status)

    def prepare(self, result: xr.Dataset) -> None:
        """Make the form of the store from the result of any point, or compare it with that."""
        ours = form_of(standardized(result, {name: v[0] for name, v in self.axes.items()}))
        self._place.change(lambda: self._agree(ours))

    def _agree(self, ours: Form) -> Form:
        form = self.form
        if form is not None and form.covers(ours):
            return form
        with self._alone() as group:
            state = self._state()
            if state["form"] is None:
                form = ours
                _make_template(group, state["axes"], form)
            else:
                before = Form.from_json(state["form"])
                form = before.with_point(ours)
                _extend(group, before, form)
            self._set(group, {**state, "form": form.as_json()})
        return form

    def _set_status(self, position: Position, status: dict[str, Any] | None) -> None:
        self._place.change(lambda: self._replace_status(position, status))

    def _replace_status(self, position: Position, status: dict[str, Any] | None) -> None:
        if not self.is_done(position):  # by another run, whose result is whole
            self._place.set_status(position, status)

    def _state(self) -> dict[str, Any]:
        attributes = self._place.attributes() or {}
        if OURS not in attributes:
            raise StudyError(f"'{self}' holds no study, or no longer")
        return json.loads(attributes[OURS])

    def group(self) -> Any:
        """The Zarr group, which holds the data."""
        return self._place.group()

    def _set(self, group: Any, state: dict[str, Any]) -> None:
        group.update_attributes({OURS: json.dumps(state)})

    @contextmanager
    def _alone(self) -> Iterator[Any]:
        """The group, which no other process changes meanwhile; all arrays as the state tells."""
        with self._place.alone():
            state, group = self._state(), self.group()
            form = state["form"] and Form.from_json(state["form"])
            if not form:  # a process may have been killed before it had set it
                for name in set(group.array_keys()) - {*state["axes"], "status"}:
                    del group[name]
            sizes = {name: len(values) for name, values in state["axes"].items()}
            _resize(group, {**(form.sizes if form else {}), **sizes})
            yield group


def _here() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _write_axes(group: Any, axes: Axes) -> None:
    for name, values in axes.items():
        _write_labels(group, name, coordinate(values))


def _write_labels(group: Any, dim: str, values: np.ndarray, **options: Any) -> None:
    """Write a coordinate, for other readers of Zarr; we read it in the attributes."""
    array = group.create_array(
        options.pop("name", dim),
        shape=values.shape,
        chunks=(max(1, len(values)),),
        dtype=str if values.dtype == object else values.dtype,
        dimension_names=[dim],
        overwrite=True,
        **options,
    )
    array[:] = values


def _resize(group: Any, sizes: Mapping[str, int]) -> None:
    """Make all arrays as long along their dims as told."""
    for _, array in group.arrays():
        dims = array.metadata.dimension_names
        shape = tuple(sizes.get(dim, n) for dim, n in zip(dims, array.shape, strict=True))
        if shape != array.shape:
            array.resize(shape)


def _make_template(group: Any, axes: Axes, form: Form) -> None:
    for name, variable in form.variables.items():
        group.create_array(
            name,
            shape=(*map(len, axes.values()), *(form.sizes[dim] for dim in variable.dims)),
            chunks=((1,) * len(axes) + variable.chunk(form.sizes)),
            dtype=str if variable.dtype == "string" else variable.dtype,
            fill_value=variable.fill,
            dimension_names=[*axes, *variable.dims],
            attributes=form.attributes[name],
        )
    for name, label in form.labels.items():
        _write_labels(group, label.dim, label.array(), name=name, attributes=label.attributes)


def _extend(group: Any, before: Form, form: Form) -> None:
    for name, label in form.labels.items():
        if label != before.labels[name]:
            _write_labels(group, label.dim, label.array(), name=name, attributes=label.attributes)
    for name in form.variables:
        if form.attributes[name] != before.attributes[name]:
            group[name].attrs.put(form.attributes[name])
    _resize(group, form.sizes)
