"""Run the parts, and write the results to a JSON file after each."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import (
    busy,
    certainty,
    estimators,
    exponents,
    growth,
    large,
    machine,
    memory,
    products,
    scan,
    spectra,
    stacks,
)
from benchmarks.cases import Grid


def judged(grid: Grid, say: Callable[[str], None]) -> dict[str, Any]:
    """Judge solvers on matrices of known spectra, and print the table of outcomes."""
    found = certainty.measure(grid.certainty_cases, say)
    print("\n".join(certainty.outcomes_as_text(found)))
    return found


_MEASURES: dict[str, Callable[[Grid, Callable[[str], None]], Any]] = {
    "large": large.measure,
    "stacks": stacks.measure,
    "scan": scan.measure,
    "spectra": spectra.measure,
    "certainty": judged,
    "estimators": estimators.measure,
    "exponents": exponents.measure,
    "growth": growth.measure,
    "memory": memory.measure,
    "busy": busy.measure,
}
PARTS = ("products", *_MEASURES)
ONLY_ON = {"large": "cuda", "certainty": "cpu"}
"""Parts for one kind of device: too large for a few cores, or small matrices on the host."""
ACCURACY = ("certainty", "estimators")
"""Parts that measure no time, in a file of their own: another machine may have made it."""
RESULTS = Path(__file__).parent / "results"


def run(grid: Grid, out: Path, parts: Sequence[str] = PARTS) -> list[Path]:
    """Measure `parts` on the device of the grid.

    Other parts are kept from an earlier file if that has the same environment, problems and
    inputs.

    Returns
    -------
    list of Path
        The JSON files ``<cpu|cuda>.json`` and ``<cpu|cuda>_accuracy.json`` in the folder `out`, of
        which only those with a measured part are written.
    """
    device = torch.device(grid.base.device).type
    environment = machine.environment(grid.base.device)
    start = {"device": device, "environment": environment, "settings": settings(grid)}
    files = {"": [p for p in PARTS if p not in ACCURACY], "_accuracy": list(ACCURACY)}
    paths = []
    for suffix, own in files.items():
        measured = [p for p in own if p in parts and ONLY_ON.get(p, device) == device]
        if measured:
            paths.append(out / f"{device}{suffix}.json")
            found = start | kept(paths[-1], start, own)
            _measure(grid, paths[-1], found, measured)
    return paths


def _measure(grid: Grid, path: Path, found: dict[str, Any], parts: Sequence[str]) -> None:
    if not set(parts) <= set(ACCURACY):
        say("the machine itself")
        found["machine"] = machine.abilities(grid)
        write(path, found)
    if "products" in parts:
        found["products"] = []
        for case in grid.cases():
            found["products"].append(products.measure(case, grid, found["machine"], say))
            gc.collect()
            write(path, found)
    for part in parts:
        if part != "products":
            found[part] = _MEASURES[part](grid, say)
            gc.collect()
            write(path, found)


def settings(grid: Grid) -> dict[str, Any]:
    """The problems to which the numbers belong."""
    base = grid.base
    return {
        "inputs": base.inputs,
        "model": base.kind,
        "hidden": base.hidden,
        "trials": base.trials,
        "steps": base.steps,
        "dtype": str(base.dtype).removeprefix("torch."),
        "models": list(grid.kinds),
        "sizes": list(grid.hidden),
        "blocks": list(grid.blocks),
        "hidden_from": grid.hidden_from,
        "longest_product_s": grid.limits.longest_call_s,
    }


def kept(path: Path, start: dict[str, Any], parts: Sequence[str]) -> dict[str, Any]:
    """Those `parts` of an earlier run in the same circumstances."""
    if not path.exists():
        return {}
    earlier = json.loads(path.read_text())
    if any(earlier.get(key) != value for key, value in start.items()):
        return {}
    return {part: earlier[part] for part in parts if part in earlier}


def write(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


def say(what: str) -> None:
    """Report progress on stderr, apart from the printed results."""
    print(what, file=sys.stderr, flush=True)
