"""One labelled file for each network, made once, and again if its training has changed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import xarray as xr

from reproduction import alignments, ranks, results, state_change
from reproduction.trained import Training, finished, of_paper


class Entry(NamedTuple):
    """A file of results: its name, what it depends on, and how to make it."""

    name: str
    configuration: dict[str, str | int | float | None]
    make: Callable[[], xr.Dataset | None]  # None while the network is not trained


def plan(trainings: Sequence[Training] | None = None) -> Iterator[Entry]:
    """All files of the page, or only those of some trained networks."""
    if trainings is None:
        for model in state_change.MODELS:
            yield Entry(model.name, asdict(model), partial(state_change.measure, model))
    for training in of_paper() if trainings is None else trainings:
        yield Entry(training.name, asdict(training), partial(_of_trained, training))


def run(names: Sequence[str] = (), *, again: bool = False, folder: Path = results.FOLDER) -> None:
    """Make the files that are missing or out of date, and report those that cannot be made yet.

    Parameters
    ----------
    names : sequence of str
        Beginnings of the names of the files to make; all files if empty.
    again : bool
        Also make those that exist.
    folder : path
        Where the files go, beside the list of all that should exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = list(plan())
    results.write_plan(folder, {entry.name: entry.configuration for entry in entries})
    for entry in entries:
        if not names or entry.name.startswith(tuple(names)):
            print(f"{entry.name:36} {make(entry, folder, again=again)}", flush=True)


def make(entry: Entry, folder: Path, *, again: bool = False) -> str:
    """Make one file if it is missing or out of date, and return what was done in words."""
    path = folder / f"{entry.name}.nc"
    if not again and results.is_of(path, entry.configuration):
        return "measured before"
    start = time.perf_counter()
    result = entry.make()
    if result is None:
        return "not trained yet"
    settings = {**json.loads(result.attrs["configuration"]), "network": entry.configuration}
    result.attrs["configuration"] = json.dumps(settings, sort_keys=True)
    results.write(result, path)
    return f"{time.perf_counter() - start:4.0f} s, {path.stat().st_size / 1024:3.0f} KiB"


def _of_trained(training: Training) -> xr.Dataset | None:
    network = finished(training)
    if network is None:
        return None
    return (alignments if training.task == "four_tasks" else ranks).measure(network)
