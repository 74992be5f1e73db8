"""Measure the exponents of the table that are missing or belong to other settings.

    python -m kpops.systems [names] [--again]

writes ``exponents.nc`` beside this file after each system, and prints the table.
"""

from __future__ import annotations

import argparse
import math

import torch
import xarray as xr

from kpops.systems.loading import load, names
from kpops.systems.measuring import measure, settings_hash
from kpops.systems.table import FILE, collect, exponents, lines, take

_PARTED = 5.0  # least exponent of growth in the transients of trials and of tangents
_LONGEST = 20_000
_ROWS = 200_000  # states whose growth is counted, about
_FIRST = {"n_trials": 20, "n_steps": 600, "transient": 600}


def _measured(name: str) -> xr.Dataset:
    """Result of a run whose transients are long enough for trials to part and tangents to turn."""
    model = load(name)
    exponent = float(measure(model, **_FIRST, rng=0).exponent[0])
    while True:
        turn = max(300, math.ceil(1.2 * _PARTED / (max(exponent, 0.005) * (model.dt or 1.0))))
        n_trials = max(24, min(400, _ROWS // (2 * turn)))
        if len(model.start) > 8:
            n_trials = 24
        run = {"n_trials": n_trials, "n_steps": 3 * turn, "transient": 2 * turn}
        result = measure(model, **run, rng=0)
        parted = float(result.exponent[0]) * turn * (model.dt or 1.0)
        if parted >= _PARTED:
            return result.assign_attrs(run=run, settings_hash=settings_hash(model))
        if turn > _LONGEST:
            raise RuntimeError(f"{name}: growth by e^{parted:.1f} only in {turn} steps")
        exponent = float(result.exponent[0])


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *names()], help="systems; default: all")
    parser.add_argument("--again", action="store_true", help="also those that are there")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the order of sums, so that the file repeats
    wanted = options.names or names()
    old = exponents() if FILE.exists() else None
    kept = {} if old is None else {name: take(old, name) for name in names()}
    results = {name: row for name, row in kept.items() if row is not None}
    for name in names():
        if name in wanted and (options.again or name not in results):
            results[name] = _measured(name)
            _write(collect(results[n] for n in names() if n in results))
            print(name, lines(collect([results[name]]))[1], flush=True)
    print("\n".join(lines(exponents())))


def _write(table: xr.Dataset) -> None:
    table.to_netcdf(FILE, engine="scipy")  # netCDF 3: a tenth of the overhead of HDF5


if __name__ == "__main__":
    main()
