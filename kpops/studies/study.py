"""The same measure at every point of a grid, with a store that survives."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from itertools import product
from typing import Any, Literal

import numpy as np
import xarray as xr

from kpops import work
from kpops.kinds import described, has_argument
from kpops.scalars import check_count
from kpops.studies import running
from kpops.studies.axes import Position, Value, read_axes, written
from kpops.studies.errors import StudyError
from kpops.studies.identity import describe, find
from kpops.studies.reading import open_store, status_of
from kpops.studies.results import Measure, as_dataset
from kpops.studies.store import PointStore
from kpops.studies.workers import Point, compute


class FailedPointsWarning(UserWarning):
    """The measure of a study raised at some points."""


class Study:
    """A measure at every point of a grid, on any executor, in a store from which it resumes.

    Parameters
    ----------
    store : path or icechunk.Repository
        A folder, by habit called ``.zarr``, which is made if it is not there; or a repository of
        Icechunk, at the root of its branch ``main``.
    measure : callable
        ``measure(g=..., seed=..., ...)`` gets the values of a point by the names of the axes, and
        ``rng``, a :class:`numpy.random.Generator`, if it has that parameter. It returns a Dataset,
        a DataArray with a name, or a mapping of names to numbers, arrays or DataArrays, of the same
        variables, dims and dtypes at every point. Only the lengths of dims may differ. If it is
        left out, it is the one whose place the store knows.
    rng : int, optional
        Seed of all points; by default that of the store, or a fresh one. The generator of a point
        depends on it and on the values of the point alone.
    template : Dataset, DataArray or mapping, optional
        A result of `measure` at any point, which sets the form of the store; by default the first
        finished point does.
    changed : {"refuse", "keep"}
        What to do if `measure` is not the function that the store was made with: refuse, or go on
        and keep what is done. Compared are its source without comments, its defaults and what it
        encloses, which it must leave as it is; not the functions that it calls.
    **axes : sequences
        Name and values of each axis: numbers, strings or booleans. New values of an axis of the
        store are added to it. Values that are left out stay in the store and are no part of this
        study. If no axis is given, they are those of the store.

    Raises
    ------
    ValueError
        If the store is of another study, or an axis repeats a value.
    TypeError
        If an argument has the wrong type.
    StudyError
        If the store cannot be written.

    See Also
    --------
    kpops.over_training : the same for the checkpoints of one training.

    Notes
    -----
    The store is one Zarr group. Every variable has the axes as its leading dims, with chunks of one
    point, so that no two processes write the same chunk. A point writes its data first and its
    status last, so a kill at any moment leaves it done or not done.

    Write nothing of your own into it: ``to_zarr(store, mode="a")`` of xarray would remove the
    attributes of the group, which hold the axes and the state of the study.

    Integers are kept as float64, so that missing ones are NaN; strings and booleans that are
    missing are ``""`` and False.

    Examples
    --------
    >>> import tempfile, kpops
    >>> def measure(g, seed, rng):
    ...     return {"radius": g * rng.uniform(0.9, 1.1)}
    >>> store = tempfile.mkdtemp(suffix=".zarr")
    >>> study = kpops.Study(store, measure, rng=0, g=[0.5, 1.0], seed=range(3))
    >>> study.run(progress=False)
    >>> study.open().radius.sizes
    Frozen({'g': 2, 'seed': 3})

    More seeds keep what is done:

    >>> study = kpops.Study(store, measure, g=[0.5, 1.0], seed=range(4))
    >>> study.missing
    [3, 7]
    """

    def __init__(
        self,
        store: Any,
        measure: Measure | None = None,
        /,
        *,
        rng: int | None = None,
        template: Any = None,
        changed: Literal["refuse", "keep"] = "refuse",
        **axes: Any,
    ) -> None:
        self._store = PointStore(store)
        if measure is not None and not callable(measure):
            raise TypeError(f"measure is {described(measure)}: pass a function")
        if changed not in ("refuse", "keep"):
            raise ValueError(f"changed={changed!r}: choose 'refuse' or 'keep'")
        if rng is not None:
            check_count("rng", rng, 0)
        planned = read_axes(axes)
        if measure is not None and planned:
            _check_arguments(measure, planned)
        self._measure = measure
        if not self._store.exists():
            if measure is None or not planned:
                raise ValueError(f"'{self._store}' is no study yet: pass a measure and its axes")
            seed = int(np.random.default_rng().integers(2**63)) if rng is None else int(rng)
            whole = {name: list(range(len(values))) for name, values in planned.items()}
            configuration = {"seed": seed, "measure": describe(measure), "plan": whole}
            self._store.create(planned, configuration)
        self._join(planned, None if rng is None else int(rng), changed)
        if template is not None:
            self._store.prepare(as_dataset(template))

    def _join(self, planned: dict[str, list[Value]], rng: int | None, changed: str) -> None:
        """Compare this study with that of the store, and add what is new."""
        stored = self._store.configuration
        if "plan" not in stored:
            raise ValueError(
                f"'{self._store}' holds measures over training: read it by "
                "kpops.over_training(..., store=), or pass another store"
            )
        self._refuse_others(planned, rng, stored["seed"])
        measure, changes = self._measure, {}
        if measure is not None:
            changes = self._recorded(describe(measure), stored["measure"], changed)
        axes = self._store.grow(planned, **changes)
        plan = stored["plan"]
        if planned:
            places = {n: {value: i for i, value in enumerate(v)} for n, v in axes.items()}
            plan = {name: [places[name][value] for value in planned[name]] for name in axes}
            self._store.grow({}, plan=plan)
        self._seed, self._plan = stored["seed"], [plan[name] for name in axes]
        self._values = {name: [axes[name][place] for place in plan[name]] for name in axes}

    def _recorded(
        self, ours: dict[str, Any], before: dict[str, Any], changed: str
    ) -> dict[str, Any]:
        """What the store is to know of the measure."""
        if ours["hash"] != before["hash"]:
            if changed == "refuse":
                raise ValueError(
                    f"'{self._store}' holds results of measure {before['name']} (source "
                    f"{before['hash']}), this one is {ours['name']} (source {ours['hash']}): pass "
                    "another store, or changed='keep' to keep what is done"
                )
            return {"measure": {**ours, "before": [*before.get("before", []), before["hash"]]}}
        return {"measure": {**before, "where": ours["where"] or before["where"]}}

    def _refuse_others(self, planned: Mapping[str, Any], rng: int | None, seed: int) -> None:
        stored = self._store.axes
        where = f"'{self._store}' belongs to another study:"
        if planned and sorted(planned) != sorted(stored):
            raise ValueError(
                f"{where} its axes are {sorted(stored)}, here {sorted(planned)}. Pass another store"
            )
        if rng is not None and rng != seed:
            raise ValueError(
                f"{where} its seed is {seed}, here rng={rng}. Pass another store, or leave rng out"
            )

    def run(
        self,
        executor: Any = None,
        *,
        threads: int = 1,
        retry_failed: bool = False,
        progress: bool = True,
    ) -> None:
        """Compute the points that are not done.

        A point at which the measure raises is recorded with its traceback, and does not stop the
        others. Ctrl-C cancels what has not begun. What is done is kept in any case.

        Parameters
        ----------
        executor : executor, optional
            Anything with ``submit``: a ProcessPoolExecutor of :mod:`concurrent.futures` or loky,
            ``client.get_executor()`` of Dask, an executor of submitit. Its processes must be
            spawned, and a worker computes one point at a time. Default: this process.
        threads : int
            Threads of torch, BLAS and Numba in each worker. In this process they stay as they are.
            A worker in which Numba has begun keeps to the number that it then had, or fewer.
        retry_failed : bool
            Compute the points that failed again, too.
        progress : bool
            Show a progress bar.

        Raises
        ------
        StudyError
            If processes died, with the points that they computed, or the store cannot be written;
            if this is called while another process imports the script that calls it.
        TypeError, ValueError
            If the executor runs points on threads or in forks, or cannot pickle the measure.

        Warns
        -----
        FailedPointsWarning
            If the measure raised at some points.
        """
        running.refuse_import()
        check_count("threads", threads, 1)
        points = self._unfinished(retry_failed)
        if executor is not None:
            running.check_executor(executor, self._measured())
        if not points:
            return
        if executor is None:
            running.run_here(points, progress)
        else:
            running.run_on(executor, points, threads, progress)
        self._warn_of_failures(points)

    def run_one(self, index: int) -> None:
        """Compute one point in this process, also if it failed before; for job arrays.

        ``python -m kpops.studies STORE INDEX`` does the same from a shell, for a measure that is
        defined by ``def`` in a module or a script, and exits with 1 if the measure raises. Without
        an index it prints what is missing. It knows the axes as they were last given to a Study of
        that store.

        Parameters
        ----------
        index : int
            Number of the point from 0, where the last axis varies fastest, as in :meth:`point`.

        Raises
        ------
        StudyError
            If the measure raises, with its traceback.
        """
        point = self._point(index)
        if compute(point) == "failed":
            error = (self._store.status(point.position) or {}).get("error", "")
            raise StudyError(f"point {index} ({written(point.values)}) failed:\n{error}")

    def status(self) -> xr.Dataset:
        """State of every point.

        Returns
        -------
        Dataset
            Over the axes: ``done``, ``failed``, ``running_since`` (UTC, NaT if it is not running),
            ``seconds``, ``host``, and ``error``, the traceback of a failure.
        """
        return status_of(self._store, self._plan)

    def open(self) -> xr.Dataset:
        """All results as one Dataset, whose variables are read when their values are used.

        Returns
        -------
        Dataset
            The variables of the measure, with the axes as leading dims, and in the attribute
            ``study`` the seed and the measure. What is not done, or lies
            behind the end of a shorter point, is NaN (``""`` for strings, False for booleans); the
            coordinate ``done`` marks the points, and ``<dim>_length`` holds their lengths along a
            dim where these differ.
        """
        configuration = self._store.configuration
        text = json.dumps({"seed": self._seed, "measure": configuration["measure"]})
        return open_store(self._store, self._plan).assign_attrs(study=text)

    @property
    def missing(self) -> list[int]:
        """Indices of the points that are not done."""
        statuses = self._store.statuses()
        places = enumerate(product(*self._plan))
        return [i for i, p in places if statuses.get(p, {}).get("state") != "done"]

    def point(self, index: int) -> dict[str, Value]:
        """Values of the axes at a point."""
        return dict(self._point(index, needs_measure=False).values)

    def __len__(self) -> int:
        return int(np.prod([len(places) for places in self._plan]))

    def __repr__(self) -> str:
        states = [status["state"] for status in self._planned_statuses().values()]
        axes = ", ".join(f"{name}: {len(values)}" for name, values in self._values.items())
        done, failed = states.count("done"), states.count("failed")
        return (
            f"<kpops.Study '{self._store}' ({axes}): {done} of {len(self)} points done, "
            f"{failed} failed>"
        )

    def _planned_statuses(self) -> dict[Position, dict[str, Any]]:
        planned = [set(places) for places in self._plan]
        return {
            position: status
            for position, status in self._store.statuses().items()
            if all(place in places for place, places in zip(position, planned, strict=True))
        }

    def _measured(self) -> Measure:
        """The measure, imported from where the store knows it if need be."""
        if self._measure is None:
            described_there = self._store.configuration["measure"]
            if described_there["where"] is None:
                raise StudyError(
                    f"'{self._store}' does not know where measure {described_there['name']} "
                    "is defined: define it with def in a module or script, or construct the Study "
                    "with it and call run_one"
                )
            found = find(described_there["where"])
            if describe(found)["hash"] != described_there["hash"]:
                raise ValueError(
                    f"'{self._store}' holds results of measure {described_there['name']}, "
                    "which has changed since: construct the Study with it and changed='keep', or "
                    "with another store"
                )
            self._measure = found
        return self._measure

    def _point(self, index: int, needs_measure: bool = True) -> Point:
        check_count("index", index, 0, len(self) - 1)
        rows = np.unravel_index(index, [len(places) for places in self._plan])
        return self._at([int(row) for row in rows], needs_measure)

    def _at(self, rows: list[int], needs_measure: bool = True) -> Point:
        chosen = zip(self._values.items(), rows, strict=True)
        values = {name: values[row] for (name, values), row in chosen}
        position = tuple(places[row] for places, row in zip(self._plan, rows, strict=True))
        measure = self._measured() if needs_measure else as_dataset
        return Point(self._store, position, values, measure, self._seed)

    def _unfinished(self, retry_failed: bool) -> list[Point]:
        statuses = self._store.statuses()
        kept = {"done"} if retry_failed else {"done", "failed"}
        points = (self._at(list(rows)) for rows in product(*map(range, map(len, self._plan))))
        return [p for p in points if statuses.get(p.position, {}).get("state") not in kept]

    def _warn_of_failures(self, points: list[Point]) -> None:
        statuses = self._store.statuses()
        failed = [p for p in points if statuses.get(p.position, {}).get("state") == "failed"]
        if failed:
            last = statuses[failed[0].position]["error"].strip().splitlines()[-1]
            work.warn(
                f"measure failed at {len(failed)} of {len(points)} points, first at "
                f"{written(failed[0].values)}: {last}. The tracebacks are in status().error; "
                "run(retry_failed=True) computes these points again",
                FailedPointsWarning,
            )


def _check_arguments(measure: Measure, axes: Mapping[str, Any]) -> None:
    """Refuse a measure that does not take the axes by their names."""
    arguments = {**dict.fromkeys(axes), **({"rng": None} if has_argument(measure, "rng") else {})}
    try:
        inspect.signature(measure).bind(**arguments)
    except TypeError as error:
        raise TypeError(
            f"measure cannot be called with {', '.join(arguments)} ({error}): give it one "
            "parameter for each axis, of the same name"
        ) from None
    except ValueError:  # a builtin has no signature
        return
