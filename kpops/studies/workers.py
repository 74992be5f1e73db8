"""What happens at one point, in this process or in a worker."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Literal

import threadpoolctl
import torch

from kpops.kinds import has_argument
from kpops.studies.axes import Position, Value, generator_of
from kpops.studies.errors import StudyError
from kpops.studies.results import Measure, as_dataset
from kpops.studies.store import PointStore

Outcome = Literal["done", "failed"]
PROCESS = uuid.uuid4().hex
"""Of this process alone: a spawned one draws its own, a forked one or a thread has the same."""
_one_at_a_time = threading.Lock()
_THREADS_OF = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


@dataclass(frozen=True, eq=False)
class Point:
    """A point of a study with all that another process needs to compute it."""

    store: PointStore
    position: Position
    values: Mapping[str, Value]
    measure: Measure
    seed: int


def compute(point: Point) -> Outcome:
    """Measure at a point, unless it is done, and write its result, or its failure, into the store.

    Raises
    ------
    StudyError
        If the store cannot be written.
    """
    store, begun = point.store, time.time()
    if store.is_done(point.position):  # by another run meanwhile
        return "done"
    store.begin(point.position)
    try:
        arguments: dict[str, Any] = dict(point.values)
        if has_argument(point.measure, "rng"):
            arguments["rng"] = generator_of(point.seed, point.values)
        result = as_dataset(point.measure(**arguments))
        store.finish(point.position, result, time.time() - begun, point.values)
    except StudyError:
        with suppress(StudyError):  # it deletes a file, for which a full disk has room
            store.forget(point.position)
        raise
    except (Exception, SystemExit):  # sys.exit() in a script that is called
        store.fail(point.position, traceback.format_exc(), time.time() - begun)
        return "failed"
    except BaseException:
        store.forget(point.position)
        raise
    return "done"


def compute_in_worker(point: Point, threads: int, submitter: str) -> Outcome:
    """Compute a point in a process that was spawned for it, on so many threads.

    Raises
    ------
    StudyError
        If this is the process that submitted the point or a fork of it, if another point is being
        computed here, or if the store cannot be written.
    """
    if submitter == PROCESS:
        raise StudyError(
            "the executor runs points on threads of the submitting process, or in forks of it: use "
            "processes that are spawned, such as ProcessPoolExecutor(mp_context=multiprocessing."
            'get_context("spawn")), or run() without an executor'
        )
    if not _one_at_a_time.acquire(blocking=False):
        raise StudyError(
            "a worker was given two points at once, and a model is not safe on several threads: "
            "give each worker one thread, such as LocalCluster(threads_per_worker=1); "
            "run(threads=...) sets those inside a point"
        )
    try:
        _end_with_parent()
        _share_cores(threads, threading.get_ident())
        return compute(point)
    finally:
        _one_at_a_time.release()


@cache
def _end_with_parent() -> None:
    """End this process with the one that started it, which a kill gives no time to end it."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@lru_cache(maxsize=1)
def _share_cores(threads: int, thread: int) -> None:
    """Let torch, BLAS and Numba use so many threads, unless it was done last for this thread."""
    os.environ.update(dict.fromkeys(_THREADS_OF, str(threads)))  # for what is imported later
    torch.set_num_threads(threads)
    threadpoolctl.threadpool_limits(threads)
    if "numba" in sys.modules:
        numba = sys.modules["numba"]
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    else:  # which refuses another value once it has begun
        os.environ["NUMBA_NUM_THREADS"] = str(threads)
