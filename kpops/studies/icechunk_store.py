"""A Zarr group in a repository of Icechunk, which changes it by transactions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock

from kpops.studies.axes import Position
from kpops.studies.errors import StudyError, unwritable

T = TypeVar("T")
_BRANCH = "main"
_TRIES = 100
"""How often a transaction is begun anew. Each time another one has come through, and few meet."""


class InRepository:
    """The group of a store at the root of a repository, which is changed in one commit at a time.

    A transaction that only adds points is put behind those of others. One that meets the same
    point, or a change of the form or of the axes, is begun anew from what is there by then.

    Parameters
    ----------
    repository : icechunk.Repository
        It pickles, so that other processes open the same storage.
    """

    def __init__(self, repository: Any) -> None:
        self._repository = repository
        self._session: Any = None

    def __str__(self) -> str:
        return str(self._repository.storage)

    def attributes(self) -> dict[str, Any] | None:
        """Attributes of the group, None if there is nothing yet."""
        try:
            return dict(self.group().attrs)
        except FileNotFoundError:
            return None

    def create(self, attributes: Mapping[str, Any], fill: Callable[[Any], None]) -> bool:
        """Make the group and fill it, unless there is something; returns whether it is new."""

        def make() -> bool:
            import zarr

            if self.attributes() is not None:
                return False
            fill(zarr.create_group(self._session.store, attributes=dict(attributes)))
            return True

        return self.change(make)

    def change(self, act: Callable[[], T]) -> T:
        """Call what changes the group in a transaction, and anew as long as others are faster."""
        import icechunk

        try:
            for _ in range(_TRIES):
                self._session = self._repository.writable_session(_BRANCH)
                try:
                    result = act()
                    if self._session.has_uncommitted_changes:
                        with self._turn():
                            self._session.commit("kpops", rebase_with=icechunk.ConflictDetector())
                    return result
                except (icechunk.ConflictError, icechunk.RebaseFailedError):
                    continue
                finally:
                    self._session = None
        except (icechunk.IcechunkError, OSError) as error:
            raise unwritable(self, error) from error
        raise StudyError(
            f"'{self}' was changed by others in each of {_TRIES} tries to change it: run again, "
            "with fewer workers"
        )

    def _turn(self) -> AbstractContextManager[Any]:
        """A lock where Icechunk has none: commits into a local folder lose each other."""
        if "LocalFileSystem" not in str(self):
            return nullcontext()
        return FileLock(Path(str(self).partition("(path=")[2].removesuffix("))"), "kpops.lock"))

    def alone(self) -> AbstractContextManager[Any]:
        """Nothing: no other process is seen in a transaction."""
        return nullcontext()

    def group(self) -> Any:
        """The Zarr group: in the transaction, or as it is now, to read."""
        import zarr

        return zarr.open_group(**self._view())

    def array(self, name: str) -> Any:
        """An array to write into, in the transaction."""
        import zarr

        return zarr.open_array(path=name, **self._view())

    def _view(self) -> dict[str, Any]:
        import icechunk

        if self._session is not None:
            return {"store": self._session.store, "mode": "r+"}
        try:
            return {"store": self._repository.readonly_session(_BRANCH).store, "mode": "r"}
        except icechunk.IcechunkError as error:
            raise StudyError(f"cannot read '{self}': {error}") from error

    def statuses(self, depth: int) -> Iterator[tuple[Position, dict[str, Any]]]:
        """Positions and statuses of the points that have begun."""
        for position, text in np.ndenumerate(self.array("status")[:]):
            if text:
                yield position, json.loads(text)

    def status(self, position: Position) -> dict[str, Any] | None:
        """Status of a point, None if it has not begun."""
        text = np.asarray(self.array("status")[position]).item()
        return json.loads(text) if text else None

    def set_status(self, position: Position, status: dict[str, Any] | None) -> None:
        """Replace the status of a point."""
        self.array("status")[position] = "" if status is None else json.dumps(status)
