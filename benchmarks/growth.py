"""How the cost of a product grows with trials, time steps and hidden units.

kpops chooses the engine. A slope of one in the log-log plane is linear growth; the arithmetic of P
grows linearly with trials and steps and quadratically with units.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

import kpops
from benchmarks.cases import Case, Grid
from benchmarks.timing import median, take_turns

_OPERATORS = ("P", "flow")


def measure(grid: Grid, say: Callable[[str], None]) -> dict[str, Any]:
    """Times along the three axes, and the slopes by least squares."""
    axes = {
        "trials": [replace(grid.base, trials=n) for n in grid.growth_trials],
        "steps": [replace(grid.base, steps=n) for n in grid.growth_steps],
        "hidden": [replace(grid.base, hidden=n) for n in grid.growth_hidden],
    }
    points = []
    for axis, cases in axes.items():
        for case in cases:
            say(f"growth: {axis} = {getattr(case, axis)}")
            points += point(axis, case, grid)
            gc.collect()
    return {"points": points, "slopes": slopes(points, grid)}


def point(axis: str, case: Case, grid: Grid) -> list[dict[str, Any]]:
    """All products on one case."""
    lin = kpops.linearize(case.module(), case.drive())
    operators = {name: getattr(lin, name) for name in _OPERATORS}
    q = case.block(max(grid.growth_blocks))
    acts = {
        (name, size): partial(operator.__matmul__, q[:size])
        for name, operator in operators.items()
        for size in grid.growth_blocks
    }
    for act in acts.values():
        act()
    return [
        {
            "axis": axis,
            "at": getattr(case, axis),
            "operator": name,
            "block": size,
            "engine": lin.engine.name,
            "ms_per_vector": 1e3 * median(times) / size,
        }
        for (name, size), times in take_turns(acts, case.device, grid.limits).items()
    ]


def slopes(points: list[dict[str, Any]], grid: Grid) -> list[dict[str, Any]]:
    """Exponents of growth, one for each axis, operator and block."""
    found = []
    for axis in ("trials", "steps", "hidden"):
        for operator in _OPERATORS:
            for block in grid.growth_blocks:
                curve = [
                    (p["at"], p["ms_per_vector"])
                    for p in points
                    if (p["axis"], p["operator"], p["block"]) == (axis, operator, block)
                    and (axis != "hidden" or p["at"] >= grid.hidden_from)
                ]
                x, y = np.log(np.array(curve)).T
                slope = float(np.polyfit(x, y, 1)[0])
                found.append({"axis": axis, "operator": operator, "block": block, "slope": slope})
    return found
