"""The committed files: written whole, selected by their configuration. Without PyTorch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

FOLDER = Path(__file__).parent / "results"
PLAN = "plan.json"
LOSS_BLOCK = 25
"""Iterations over which the losses of minibatches are averaged."""

Configuration = Mapping[str, Any]


def attributes(long_name: str, units: str = "1") -> dict[str, str]:
    """Attributes of a variable."""
    return {"long_name": long_name, "units": units}


def write(result: xr.Dataset, path: Path) -> None:
    """Write a file that is either complete or absent."""
    temporary = path.with_suffix(".tmp")
    packed = {
        name: {"zlib": True, "complevel": 9}
        for name, values in result.data_vars.items()
        if values.size > 64 and values.dtype.kind == "f"
    }
    result.to_netcdf(temporary, engine="h5netcdf", encoding=packed)
    os.replace(temporary, path)


def read(path: Path) -> xr.Dataset:
    """Read a file into memory."""
    return xr.load_dataset(path, engine="h5netcdf")


def network_of(result: xr.Dataset) -> dict[str, Any]:
    """The network of a result, and how it was trained."""
    return json.loads(result.attrs["configuration"])["network"]


def is_of(path: Path, configuration: Configuration) -> bool:
    """Whether a file exists and has exactly this network."""
    return path.exists() and network_of(read(path)) == dict(configuration)


def write_plan(folder: Path, planned: Mapping[str, Configuration]) -> None:
    """Write the list of all networks of the page."""
    (folder / PLAN).write_text(json.dumps(planned, indent=1, sort_keys=True) + "\n")


@dataclass(frozen=True)
class Results:
    """The results that exist, and those that should.

    Attributes
    ----------
    planned : dict of str to dict
        The networks of the page.
    found : dict of str to Dataset
        Those that are measured.
    """

    planned: dict[str, dict[str, Any]]
    found: dict[str, xr.Dataset]

    def of(self, **wanted: Any) -> Results:
        """The networks whose configuration has the wanted values."""
        planned = {
            name: network
            for name, network in self.planned.items()
            if all(key in network and network[key] == value for key, value in wanted.items())
        }
        return Results(planned, {k: v for k, v in self.found.items() if k in planned})

    def __iter__(self) -> Iterator[xr.Dataset]:
        return iter(self.found.values())

    def __len__(self) -> int:
        return len(self.found)

    def __add__(self, other: Results) -> Results:
        return Results(self.planned | other.planned, self.found | other.found)

    def missing(self) -> list[str]:
        """Names of the networks that are not measured."""
        return [name for name in self.planned if name not in self.found]

    def values(self, key: str) -> list[Any]:
        """Values of the planned networks, in increasing order."""
        return sorted({network[key] for network in self.planned.values() if key in network})


def load(folder: Path) -> Results:
    """Read all planned results that `folder` has."""
    planned = json.loads((folder / PLAN).read_text())
    paths = {name: folder / f"{name}.nc" for name in planned}
    return Results(planned, {name: read(path) for name, path in paths.items() if path.exists()})


def loss_blocks(losses: np.ndarray, radius: float) -> xr.Dataset:
    """Losses of a training, averaged over blocks of iterations, and the initial spectral radius."""
    ends = np.arange(0, len(losses), LOSS_BLOCK)
    sums = np.add.reduceat(losses.astype(float), ends)
    counts = np.diff([*ends, len(losses)])
    text = "first iteration of the block"
    return xr.Dataset(
        {
            "loss": (
                "iteration",
                (sums / counts).astype(np.float32),
                attributes(f"loss of minibatches, mean of {LOSS_BLOCK} iterations"),
            ),
            "last_iteration": ((), len(losses) - 1, attributes("updates until the end")),
            "initial_spectral_radius": (
                (),
                radius,
                attributes("spectral radius of the recurrent weights before training"),
            ),
        },
        coords={"iteration": ("iteration", ends, attributes(text))},
    )


def iterations_to(result: xr.Dataset, threshold: float) -> float:
    """Iterations until the mean loss of a block is at most a threshold; infinite if never."""
    below = np.flatnonzero(result.loss.values <= threshold)
    return float(result.iteration.values[below[0]]) if below.size else np.inf
