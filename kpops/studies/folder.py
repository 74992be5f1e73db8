"""A Zarr group in a folder: what a store does to its files."""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from kpops.studies.axes import Position
from kpops.studies.errors import unwritable

T = TypeVar("T")
_HEAD = struct.Struct("<II")
"""Before the bytes of a string in its chunk: one string, and its length. We write and read these
chunks ourselves, in a twentieth of the time that Zarr takes for so little."""
_PATIENCE = 300.0
"""Seconds to wait for another process that changes the store, which takes milliseconds."""


class Folder:
    """The group of a store as files, which are changed one by one, each by a rename.

    Parameters
    ----------
    path : str or path
        The folder of the Zarr group.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()

    def __str__(self) -> str:
        return str(self.path)

    def attributes(self) -> dict[str, Any] | None:
        """Attributes of the group, None if there is nothing yet."""
        try:
            return json.loads((self.path / "zarr.json").read_bytes()).get("attributes", {})
        except (FileNotFoundError, NotADirectoryError):
            is_empty = self.path.is_dir() and not any(self.path.iterdir())
            return None if is_empty or not self.path.exists() else {}

    def create(self, attributes: Mapping[str, Any], fill: Callable[[Any], None]) -> bool:
        """Make the group and fill it, unless there is something; returns whether it is new."""
        import zarr

        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.{time.time_ns()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fill(zarr.create_group(temporary, attributes=dict(attributes)))
            os.rename(temporary, self.path)  # which fails if there is a folder with content
        except OSError as error:
            if self.attributes() is not None:
                return False
            raise unwritable(self, error.strerror or error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return True

    def change(self, act: Callable[[], T]) -> T:
        """Call what changes the group, and tell if it cannot be changed."""
        try:
            return act()
        except OSError as error:
            raise unwritable(self, error.strerror or error) from error

    def alone(self) -> AbstractContextManager[Any]:
        """A context in which no other process changes more than its own points."""
        return FileLock(self.path / "status" / ".lock", _PATIENCE)

    def group(self) -> Any:
        """The Zarr group, which holds the data."""
        import zarr

        return zarr.open_group(self.path, mode="r+")

    def array(self, name: str) -> Any:
        """An array to write into, opened once for each state of its file in this process."""
        file = self.path / name / "zarr.json"
        state = file.stat()
        return _opened(str(file.parent), state.st_ino, state.st_mtime_ns)

    def statuses(self, depth: int) -> Iterator[tuple[Position, dict[str, Any]]]:
        """Positions and statuses of the points that have begun."""
        for position, path in _chunks(str(self.path / "status" / "c"), depth):
            read = _status_in(path)
            if read is not None:
                yield position, read

    def status(self, position: Position) -> dict[str, Any] | None:
        """Status of a point, None if it has not begun."""
        return _status_in(str(self._status_file(position)))

    def set_status(self, position: Position, status: dict[str, Any] | None) -> None:
        """Replace the status of a point, at once."""
        file = self._status_file(position)
        if status is None:
            file.unlink(missing_ok=True)
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(status).encode()
        temporary = file.with_name(f"{file.name}.{os.getpid()}.partial")
        temporary.write_bytes(_HEAD.pack(1, len(text)) + text)
        temporary.replace(file)

    def _status_file(self, position: Position) -> Path:
        return self.path.joinpath("status", "c", *map(str, position))


@lru_cache(maxsize=256)
def _opened(path: str, *state: int) -> Any:
    import zarr

    return zarr.open_array(path, mode="r+")


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
