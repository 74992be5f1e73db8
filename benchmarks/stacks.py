"""Stacks of layers: their products, and the plain matrix products that these need at least.

For H units, g gates and R = trials x steps rows, P and P* take every layer through its recurrent
weights, and every layer but the first through the weights of its inputs from the layer below:
2 L - 1 products (R x H) (H x gH). K correlates the features of each layer, its own state, its
inputs and two ones, with the rows of its gates, and goes back: two products (R x f) (f x gH) with
f = H + inputs + 2, the inputs being those of the task or the H units below.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import kpops
from benchmarks.cases import FEATURES, OPERATORS, Case, Grid
from benchmarks.contenders import Contender, Product, build, engine
from benchmarks.floor import FLOOR, floor, floor_at_rank
from benchmarks.products import Table

Record = dict[str, Any]


def measure(grid: Grid, say: Callable[[str], None]) -> list[Record]:
    """Measure every stack of the grid."""
    trials, steps = grid.stack_runs
    records = []
    for kind, layers, hidden in grid.stacks:
        size = {"layers": layers, "hidden": hidden, "trials": trials, "steps": steps}
        records += of_case(replace(grid.base, kind=kind, **size), grid, say)
        gc.collect()
    return records


def of_case(case: Case, grid: Grid, say: Callable[[str], None]) -> list[Record]:
    """Times with the engine that kpops chooses, also as multiples of the floor."""
    chosen = kpops.linearize(case.module(), case.drive()).engine.name
    ours = build(f"kpops {chosen}", partial(engine, case, chosen), case)
    least = build(FLOOR, partial(floor_of_stack, case), case)
    table = Table(case, replace(grid, blocks=grid.layer_blocks), [ours, least])
    records = []
    for block in grid.layer_blocks:
        say(f"stacks: {case.name}, block of {block}")
        cells = [record for operator in OPERATORS for record in table.cell(operator, block)]
        ms = {(r["contender"], r["operator"]): r["ms_per_vector"] for r in cells}
        for operator, parts in PARTS.items():
            floor_ms = sum(ms[FLOOR, part] for part in parts)
            records.append(
                {
                    "model": case.kind,
                    "layers": case.layers,
                    "hidden": case.hidden,
                    "trials": case.trials,
                    "steps": case.steps,
                    "engine": chosen,
                    "operator": operator,
                    "block": block,
                    "ms_per_vector": ms[ours.name, operator],
                    "floor_ms_per_vector": floor_ms,
                    "floor_flops": floor_flops(case, operator),
                    "times_the_floor": ms[ours.name, operator] / floor_ms,
                }
            )
    return records


PARTS = {"P": ("P",), "P*": ("P*",), "K": ("K",), "flow": ("P*", "K", "P")}
"""The products whose floors add up to the floor of an operator."""


def floor_of_stack(case: Case) -> Contender:
    """The matrix products of all layers, one after the other."""
    layer, above = replace(case, layers=1), case.layers - 1
    first = floor(layer).products
    between = floor_at_rank(layer, _features(case, 1)).products["K"]
    products = {
        "P": _in_turn([first["P"]] * (1 + 2 * above)),
        "P*": _in_turn([first["P*"]] * (1 + 2 * above)),
        "K": _in_turn([first["K"], *[between] * above]),
    }
    return Contender(FLOOR, products, temporaries=2, floor=True)


def floor_flops(case: Case, operator: str) -> int:
    """Operations of the floor for one vector; a multiplication and an addition count as two."""
    weights = case.gates * case.hidden
    through = 2 * case.rows * case.hidden * weights * (2 * case.layers - 1)
    n_features = sum(_features(case, layer) for layer in range(case.layers))
    of_parts = {"P": through, "P*": through, "K": 4 * case.rows * n_features * weights}
    return sum(of_parts[part] for part in PARTS[operator])


def _features(case: Case, layer: int) -> int:
    """What the gates of a layer read: its state, its inputs, and a one for each bias."""
    return case.hidden + (case.hidden if layer else FEATURES) + 2


def _in_turn(products: list[Product]) -> Product:
    return lambda q: [product(q) for product in products][-1]
