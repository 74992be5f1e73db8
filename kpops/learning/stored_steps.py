"""Results of an analysis at training steps, in a store from which it goes on.

The store is that of a study with the single axis ``step``. What its Datasets lack, which those in
memory have, is added when they are read: integers, and coordinates that all steps share.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from kpops.learning.analysis import Analysis, fingerprint_of_weights
from kpops.learning.required import labelled
from kpops.learning.resumption import differences
from kpops.learning.step_results import failure
from kpops.studies import running
from kpops.studies.reading import open_store, read_point
from kpops.studies.store import PointStore
from kpops.studies.workers import Point, compute

Single = Sequence[tuple[int, Mapping[str, Any]]]
"""One checkpoint, which is read when it is measured."""
_INTEGERS, _WEIGHTS = "kpops_integers", "weights_fingerprint"


@dataclass(frozen=True)
class _AtStep:
    """The measure of a point: an analysis at one checkpoint, in any process."""

    analysis: Analysis
    checkpoint: Single
    previous: xr.Dataset | None = None

    def __call__(self, step: int) -> xr.Dataset:
        ((_, state),) = self.checkpoint
        result = self.analysis(state, self.previous)
        if _WEIGHTS in result.variables:
            raise ValueError(f"measure returned {_WEIGHTS}, a name that the store uses: rename it")
        integers = {
            str(name): str(variable.dtype)
            for name, variable in result.variables.items()
            if variable.dtype.kind in "iu" and not (name in result.coords and variable.ndim == 1)
        }
        return result.assign({_WEIGHTS: fingerprint_of_weights(state)}).assign_attrs(
            {_INTEGERS: json.dumps(integers)}
        )


class StoredSteps:
    """Results of one analysis, each at a training step."""

    def __init__(self, store: Any, analysis: Analysis) -> None:
        self.analysis, self._store = analysis, PointStore(store)
        # Through JSON, so that it compares equal to what is read.
        self._analysis = json.loads(json.dumps(analysis.describe()))
        self._places: dict[int, int] = {}
        if self._store.exists():
            self._refuse_others()
            self._places = _places(self._store)

    def add(self, steps: Iterable[int]) -> None:
        """Make place for steps that are new."""
        new = sorted({*steps} - {*self._places})
        if not new:
            return
        if not self._store.exists():
            self._store.create({"step": [*new]}, {"over_training": self._analysis})
            self._refuse_others()  # if another process was faster
        self._store.grow({"step": [*new]})
        self._places = _places(self._store)

    def done(self) -> list[int]:
        """Steps that are done, increasing."""
        statuses = self._store.statuses() if self._places else {}
        return sorted(
            step
            for step, place in self._places.items()
            if statuses.get((place,), {}).get("state") == "done"
        )

    def measure(self, step: int, checkpoint: Single) -> str | None:
        """Measure at a step in this process; returns the traceback if it failed."""
        previous = None
        if self.analysis.remembers:
            done = self.done()
            if any(other > step for other in done):
                raise ValueError(
                    f"measure takes the result before, and step {step} comes before step "
                    f"{max(done)}, which is done in '{self._store}': pass another store"
                )
            previous = self._read(done[-1]) if done else None
        compute(self._point(step, checkpoint, previous))
        return self._error(step)

    def measure_on(
        self, executor: Any, checkpoints: Mapping[int, Single], threads: int, progress: bool
    ) -> None:
        """Measure at the steps in the processes of an executor."""
        if not checkpoints:
            return
        points = [self._point(step, one, None) for step, one in checkpoints.items()]
        running.run_on(executor, points, threads, progress)

    def result(self, steps: Iterable[int]) -> xr.Dataset | None:
        """What is done at these steps, as :func:`kpops.over_training` returns it, or None."""
        chosen = sorted({*steps} & {*self.done()})
        if not chosen:
            return None
        result = open_store(self._store, [[self._places[step] for step in chosen]]).load()
        result = _as_in_memory(result.drop_vars("done"))
        for name in result.coords:
            if "step" in result[name].dims and name != "step":
                first = result[name].isel(step=0, drop=True)
                if result[name].variable.equals(first.variable.set_dims(dict(result[name].sizes))):
                    result = result.assign_coords({name: first.variable})
        return result.assign_coords(step=labelled("step", np.array(chosen), "training iteration"))

    def refuse_failures(self, steps: Iterable[int]) -> None:
        """Raise a MeasureError if the measure failed at some of the steps."""
        failed = {step: error for step in steps if (error := self._error(step))}
        if failed:
            kept = (
                f". The other results are kept in '{self._store}'; the same call tries this again"
            )
            raise failure(failed, self.result(steps), kept)

    def refuse_other_weights(self, step: int, state: Mapping[str, Any]) -> None:
        """Refuse the checkpoint of another training at a step that is done."""
        place = self._places[step]
        theirs = open_store(self._store, [[place]])[_WEIGHTS].item()
        if theirs != fingerprint_of_weights(state):
            raise ValueError(
                f"'{self._store}' was computed at other weights at step {step}: it belongs to "
                "another training; pass another store"
            )

    @contextmanager
    def keeping(self, steps: Iterable[int]) -> Iterator[None]:
        """Give what is finished to a KeyboardInterrupt."""
        try:
            yield
        except KeyboardInterrupt as interrupt:
            interrupt.finished = self.result(steps)  # type: ignore[attr-defined]
            raise

    def _point(self, step: int, checkpoint: Single, previous: xr.Dataset | None) -> Point:
        measure = _AtStep(self.analysis, checkpoint, previous)
        return Point(self._store, (self._places[step],), {"step": step}, measure, seed=0)

    def _error(self, step: int) -> str | None:
        status = self._store.status((self._places[step],)) or {}
        return status["error"] if status.get("state") == "failed" else None

    def _read(self, step: int) -> xr.Dataset | None:
        result = read_point(self._store, (self._places[step],))
        return None if result is None else _as_in_memory(result)

    def _refuse_others(self) -> None:
        theirs = self._store.configuration.get("over_training")
        if theirs is None:
            raise ValueError(
                f"'{self._store}' holds a kpops.Study, not measures over training: pass "
                "another store"
            )
        different = differences(theirs, self._analysis)
        if different:
            raise ValueError(
                f"'{self._store}' holds results of another analysis: {different}. Pass the "
                "same, or another store"
            )


def _places(store: PointStore) -> dict[int, int]:
    return {int(step): place for place, step in enumerate(store.axes["step"])}


def _as_in_memory(result: xr.Dataset) -> xr.Dataset:
    """Integers again, where none is missing, and nothing that the store needs alone."""
    integers = json.loads(result.attrs.pop(_INTEGERS, "{}"))
    for name, dtype in integers.items():
        if not result[name].isnull().any():
            result[name] = result[name].astype(dtype)
    return result.drop_vars(_WEIGHTS)
