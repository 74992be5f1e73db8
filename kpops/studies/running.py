"""The points of a study on an executor: submit, wait, and tell what was lost."""

from __future__ import annotations

import concurrent.futures
import pickle
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

from tqdm.auto import tqdm

from kpops.kinds import described
from kpops.studies.axes import Position, written
from kpops.studies.errors import StudyError
from kpops.studies.store import PointStore
from kpops.studies.workers import PROCESS, Point, compute, compute_in_worker

_PAUSE = 0.2
"""Seconds between two looks at futures that cannot be waited for."""


def refuse_import() -> None:
    """Refuse to run a study while another process imports the script that calls this."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals["__name__"] == "__mp_main__":
            raise StudyError(
                f"'{frame.f_code.co_filename}' runs a study while another process imports it to "
                "find its measure: put the call behind if __name__ == '__main__'"
            )
        frame = frame.f_back  # type: ignore[assignment]


def check_executor(executor: Any, measure: Any) -> None:
    """Refuse by name what cannot compute points right."""
    if not hasattr(executor, "submit"):
        raise TypeError(
            f"executor is {described(executor)}, without a method submit: pass an executor of "
            "concurrent.futures or loky, client.get_executor() of Dask, or one of submitit"
        )
    if isinstance(executor, concurrent.futures.ThreadPoolExecutor):
        raise TypeError(
            "executor is a ThreadPoolExecutor: the weights and thread settings of a process are "
            "shared by its threads; pass a ProcessPoolExecutor that spawns, or no executor"
        )
    context = getattr(executor, "_mp_context", None)
    if context is not None and context.get_start_method() == "fork":
        raise ValueError(
            f"executor is {described(executor)} that forks, which breaks the threads of torch: "
            'pass mp_context=multiprocessing.get_context("spawn")'
        )
    if isinstance(executor, concurrent.futures.ProcessPoolExecutor):
        _check_pickles(measure)


def _check_pickles(measure: Any) -> None:
    remedy = "define it with def in a module or script, or use an executor of loky or Dask"
    module, main = getattr(measure, "__module__", None), sys.modules["__main__"]
    is_typed = not hasattr(main, "__file__") and getattr(main, "__spec__", None) is None
    if module == "__main__" and is_typed:
        raise TypeError(f"measure was defined in a session, which other processes lack: {remedy}")
    if module == "__mp_main__":  # read from the store
        raise TypeError("measure is that of another script: start the run in that script")
    try:
        pickle.dumps(measure)
    except Exception as error:
        raise TypeError(f"measure does not pickle ({error}): {remedy}") from error


def run_here(points: Sequence[Point], progress: bool) -> None:
    """Compute the points one by one in this process."""
    for point in tqdm(points, desc="points", disable=not progress):
        compute(point)


def run_on(executor: Any, points: Sequence[Point], threads: int, progress: bool) -> None:
    """Compute the points on an executor; raises a StudyError if it loses some.

    Points that did not end when they were last begun come last, in case they killed their process.
    """
    store = points[0].store
    before = store.statuses()
    hung = {position for position, status in before.items() if status["state"] == "running"}
    ordered = sorted(points, key=lambda point: point.position in hung)
    futures: dict[Any, Point] = {}
    lost: dict[Point, BaseException] = {}
    bar = tqdm(total=len(points), desc="points", disable=not progress)
    try:
        with bar:
            with getattr(executor, "batch", nullcontext)():  # one job array of submitit
                for point in ordered:
                    try:
                        future = executor.submit(compute_in_worker, point, threads, PROCESS)
                    except concurrent.futures.BrokenExecutor as error:
                        lost[point] = error
                        continue
                    futures[future] = point
            for future in _finished(list(futures)):
                try:
                    future.result()
                except (StudyError, KeyboardInterrupt):
                    raise
                except BaseException as error:  # CancelledError is none of Exception
                    lost[futures[future]] = error
                bar.update()
    except BaseException:
        for future in futures:
            future.cancel()
        raise
    if lost:
        raise _lost_points(store, lost, before)


def _finished(futures: list[Any]) -> Iterator[Any]:
    """The futures, each as soon as it is done."""
    if all(isinstance(future, concurrent.futures.Future) for future in futures):
        yield from concurrent.futures.as_completed(futures)
        return
    while futures:
        ready = [future for future in futures if future.done()]
        yield from ready
        futures = [future for future in futures if future not in set(ready)]
        if not ready:
            time.sleep(_PAUSE)


def _lost_points(
    store: PointStore, lost: dict[Point, BaseException], before: dict[Position, Any]
) -> StudyError:
    """The error that names the points whose processes died."""
    statuses, first = store.statuses(), next(iter(lost.values()))
    running = [
        written(point.values)
        for point in lost
        if (status := statuses.get(point.position)) != before.get(point.position)
        and status is not None
        and status["state"] == "running"
    ]
    shown = "; ".join(running[:5]) + (f" and {len(running) - 5} more" if len(running) > 5 else "")
    what = (
        f"Running in them: {shown}. If one of these needs more memory than there is, use fewer "
        "workers"
        if running
        else "None had begun: can the workers import the measure, and does the script start the "
        'run behind if __name__ == "__main__"'
    )
    error = StudyError(
        f"{len(lost)} points are not done, as their processes ended ({type(first).__name__}: "
        f"{first}). {what}. The others are kept in '{store}': run again, with a new executor "
        "if this one is broken"
    )
    error.__cause__ = first
    return error
