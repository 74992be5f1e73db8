"""The studies that measure the networks of the page, and one labelled file for each network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import xarray as xr

import kpops
from reproduction import alignments, ranks, results, trained
from reproduction.trained import Training, finished, of_paper


class Entry(NamedTuple):
    """A file of results: its name, what it depends on, and the study that makes it."""

    name: str
    configuration: dict[str, str | int | float | None]
    study: str


def plan(trainings: Sequence[Training] | None = None) -> Iterator[Entry]:
    """All files of the page, or only those of some trained networks."""
    for training in of_paper() if trainings is None else trainings:
        study = "alignments" if training.task == "four_tasks" else "ranks"
        yield Entry(training.name, asdict(training), study)


def run(
    entries: Sequence[Entry],
    *,
    again: bool = False,
    executor: Any = None,
    folder: Path = results.FOLDER,
) -> None:
    """Make the files that are missing or out of date, and report those that cannot be made yet.

    Parameters
    ----------
    entries : sequence of Entry
        The files to make.
    again : bool
        Also make those that exist.
    executor : executor, optional
        As for :meth:`kpops.Study.run`. Default: this process.
    folder : path
        Where the files go.
    """
    wanted = []
    for entry in entries:
        if not again and results.is_of(folder / f"{entry.name}.nc", entry.configuration):
            print(f"{entry.name:36} measured before", flush=True)
        elif finished(Training(**entry.configuration)) is None:
            print(f"{entry.name:36} not trained yet", flush=True)
        else:
            wanted.append(entry)
    for study, measure in MEASURES.items():
        names = {_axis_value(e.configuration): e.name for e in wanted if e.study == study}
        if names:
            _run_study(study, measure, names, executor, folder)


def _run_study(
    name: str,
    measure: Callable[..., xr.Dataset],
    names: Mapping[str, str],
    executor: Any,
    folder: Path,
) -> None:
    """Measure networks, given by their configurations, and write a file under the name of each.

    The store holds what is done until all is done and written, so that a run goes on where it was,
    and the next one begins anew.
    """
    store = trained.networks.CACHE.with_name("studies") / f"{name}.zarr"
    study = kpops.Study(store, measure, network=list(names))
    try:
        study.run(executor, retry_failed=True)
    finally:
        found, status = study.open(), study.status()
        for network, file in names.items():
            if found.done.sel(network=network):
                path = folder / f"{file}.nc"
                results.write(_result(found.sel(network=network)), path)
                seconds, size = float(status.seconds.sel(network=network)), path.stat().st_size
                print(f"{file:36} {seconds:4.0f} s, {size / 1024:3.0f} KiB", flush=True)
    if not study.missing:
        shutil.rmtree(store)


def _axis_value(configuration: Mapping[str, Any]) -> str:
    """A network as a value of an axis: with another training it is another point."""
    return json.dumps(configuration, sort_keys=True)


def _point(
    measure: Callable[[Any], xr.Dataset], read: Callable[..., Any], network: str
) -> xr.Dataset:
    """Result of a network, in a form that all networks of a study share.

    The saved steps and the attributes differ from network to network, so they are variables.
    """
    configuration = json.loads(network)
    result = measure(read(**configuration))
    settings = {**json.loads(result.attrs["configuration"]), "network": configuration}
    attrs = {**result.attrs, "configuration": json.dumps(settings, sort_keys=True)}
    steps = result.assign(saved_step=result.step.variable).drop_vars("step")
    return steps.drop_attrs(deep=False).assign(attributes=json.dumps(attrs))


def _result(point: xr.Dataset) -> xr.Dataset:
    """The result that :func:`_point` took apart."""
    lengths = [name for name in point.variables if str(name).endswith("_length")]
    own = {str(name).removesuffix("_length"): slice(int(point[name])) for name in lengths}
    point = point.isel(own).drop_vars(["network", "done", *lengths])
    result = point.assign_coords(step=point.saved_step.variable).drop_vars("saved_step")
    integers = [name for name in ("step", "last_iteration") if name in result.variables]
    result = result.assign({name: result[name].astype(int) for name in integers})
    attrs = json.loads(result.attributes.item())
    return result.drop_vars("attributes").drop_attrs(deep=False).assign_attrs(attrs)


def _trained(**configuration: Any) -> trained.Trained | None:
    return finished(Training(**configuration))


MEASURES = {
    "ranks": partial(_point, ranks.measure, _trained),
    "alignments": partial(_point, alignments.measure, _trained),
}
"""The measure of each study, whose one axis is the configurations of networks."""
