"""A store of results at points along named axes: one Zarr group that survives a kill.

The values of the axes, the form of the results and the sizes of their dims are attributes of the
group, which one process changes at a time, under a lock. Every variable has chunks of one point, so
no two points share a chunk. A point writes its data first and its status last; the status is one
chunk, which a rename puts in place. So a kill at any moment leaves a point done or not done.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from filelock import FileLock

from kpops.studies.axes import Axes, Position, Value, coordinate, joined
from kpops.studies.form import Form, form_of, standardized

OURS = "kpops_store"  # the attribute of the group that holds all that is not data
_HEAD = struct.Struct("<II")
"""Before the bytes of a string in its chunk: one string, and its length. We write and read these
chunks ourselves, in a twentieth of the time that Zarr takes for so little."""
_PATIENCE = 300.0
"""Seconds to wait for another process that changes the store, which takes milliseconds."""


class StudyError(RuntimeError):
    """A study could not go on: a process died, or its store cannot be read or written.

    What is finished is in the store. :meth:`kpops.Study.run` goes on from there.
    """


class PointStore:
    """Results of points along named axes.

    A point is known by its position: the index of its value on every axis, in the order of the
    store, where values that came later stand behind.

    Parameters
    ----------
    path : str or path
        The folder of the Zarr group.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()

    def exists(self) -> bool:
        """Whether there is a store; refuses a folder of something else."""
        if not self.path.exists():
            return False
        if self.path.is_dir() and not any(self.path.iterdir()):
            return False
        try:
            attributes = self._attributes()
        except (FileNotFoundError, NotADirectoryError):
            attributes = {}
        if OURS not in attributes:
            raise ValueError(f"'{self.path}' holds no study of kpops: choose another path")
        return True

    def create(self, axes: Axes, configuration: Mapping[str, Any]) -> bool:
        """Make the store, unless another process is faster; returns whether it is new."""
        import zarr

        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.{time.time_ns()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            state = {"axes": axes, "configuration": dict(configuration), "form": None}
            group = zarr.create_group(temporary, attributes={OURS: json.dumps(state)})
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
            os.rename(temporary, self.path)  # which fails if there is a folder with content
        except OSError as error:
            if self.path.exists() and self.exists():
                return False
            raise self._unwritable(error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return True

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
            with self._alone() as group:
                before, state = self._state()["axes"], grown()
                if state["axes"] != before:
                    _resize(group, {name: len(values) for name, values in state["axes"].items()})
                    _write_axes(group, state["axes"])
                self._set(group, state)
        return self.axes

    @property
    def form(self) -> Form | None:
        """Form of the results, None before the first."""
        read = self._state()["form"]
        return None if read is None else Form.from_json(read)

    def statuses(self) -> dict[Position, dict[str, Any]]:
        """Status of every point that has begun."""
        found = {}
        for position, path in _chunks(str(self.path / "status" / "c"), len(self.axes)):
            read = _status_in(path)
            if read is not None:
                found[position] = read
        return found

    def status(self, position: Position) -> dict[str, Any] | None:
        """Status of a point, None if it has not begun."""
        return _status_in(str(self._status_file(position)))

    def is_done(self, position: Position) -> bool:
        """Whether the result of a point is there."""
        return (self.status(position) or {}).get("state") == "done"

    def _status_file(self, position: Position) -> Path:
        return self.path.joinpath("status", "c", *map(str, position))

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
        if self.is_done(position):
            return
        result = standardized(result, point)
        ours = form_of(result)
        with self._writing():
            form = self._agree(ours)
            for name, variable in form.variables.items():
                sizes = [form.sizes[dim] for dim in variable.dims]
                values = result[name].values
                full = np.full(sizes, variable.fill, values.dtype)  # over what a killed one left
                full[tuple(map(slice, values.shape))] = values
                # The array itself may be longer by now, by another process.
                region = (*position, *map(slice, sizes))
                self._array(name)[region] = full if variable.dims else full.item()
        status = {"state": "done", **_here(), "seconds": seconds, "lengths": ours.sizes}
        self._set_status(position, status)

    def prepare(self, result: xr.Dataset) -> None:
        """Make the form of the store from the result of any point, or compare it with that."""
        self._agree(form_of(standardized(result, {name: v[0] for name, v in self.axes.items()})))

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
        with self._writing():
            file = self._status_file(position)
            if self.is_done(position):  # by another run, whose result is whole
                return
            if status is None:
                file.unlink(missing_ok=True)
                return
            file.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(status).encode()
            temporary = file.with_name(f"{file.name}.{os.getpid()}.partial")
            temporary.write_bytes(_HEAD.pack(1, len(text)) + text)
            temporary.replace(file)

    def _state(self) -> dict[str, Any]:
        try:
            return json.loads(self._attributes()[OURS])
        except (FileNotFoundError, KeyError) as error:
            raise StudyError(f"'{self.path}' holds no study, or no longer: {error}") from error

    def _attributes(self) -> dict[str, Any]:
        return json.loads((self.path / "zarr.json").read_bytes()).get("attributes", {})

    def group(self) -> Any:
        """The Zarr group, which holds the data."""
        import zarr

        return zarr.open_group(self.path, mode="r+")

    def _array(self, name: str) -> Any:
        """An array to write into, opened once for each state of its file in this process."""
        file = self.path / name / "zarr.json"
        state = file.stat()
        return _opened(str(file.parent), state.st_ino, state.st_mtime_ns)

    def _set(self, group: Any, state: dict[str, Any]) -> None:
        group.update_attributes({OURS: json.dumps(state)})

    @contextmanager
    def _alone(self) -> Iterator[Any]:
        """The group, which no other process changes meanwhile; all arrays as the state tells."""
        with self._writing(), FileLock(self.path / "status" / ".lock", _PATIENCE):
            state, group = self._state(), self.group()
            form = state["form"] and Form.from_json(state["form"])
            if not form:  # a process may have been killed before it had set it
                for name in set(group.array_keys()) - {*state["axes"], "status"}:
                    del group[name]
            sizes = {name: len(values) for name, values in state["axes"].items()}
            _resize(group, {**(form.sizes if form else {}), **sizes})
            yield group

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> StudyError:
        return StudyError(
            f"cannot write into '{self.path}': {error.strerror or error}. The points that are done "
            "are kept: make space or mend the permission, and run again"
        )


@lru_cache(maxsize=256)
def _opened(path: str, *state: int) -> Any:
    import zarr

    return zarr.open_array(path, mode="r+")


def _here() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _status_in(path: str) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as file:
            text = file.read()[_HEAD.size :]
    except FileNotFoundError:
        return None
    return json.loads(text) if text else None


def _chunks(folder: str, depth: int, above: Position = ()) -> Iterator[tuple[Position, str]]:
    """Positions and files of the chunks in a folder."""
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.name.isdigit():  # others are half written
            position = (*above, int(entry.name))
            if depth == 1:
                yield position, entry.path
            else:
                yield from _chunks(entry.path, depth - 1, position)


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
