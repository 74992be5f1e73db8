"""The propagator of state-space layers: a scan over time, compared with loops over the steps.

On a CPU, kpops' engine ``scan`` is one compiled pass over the diagonals; on a GPU, it is the scan
in torch. The latter is timed on a CPU as well, beside a loop in torch over the same diagonals. The
engine ``jacobian`` goes step by step over stored S x S matrices. A layer that couples its units has
only loops.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import FEATURES, Case, Grid
from benchmarks.contenders import Contender, UnavailableError, build, engine
from benchmarks.products import Table
from kpops.engines import jacobian, scan
from kpops.models import (
    DiagonalRecurrence,
    DiagonalSSM,
    LinearTimeVarying,
    SelectiveSSM,
    as_recurrence,
)

MODELS: dict[str, Callable[[int], nn.Module]] = {
    "DiagonalSSM": lambda units: DiagonalSSM(FEATURES, units // 2, rng=0),  # complex: two each
    "SelectiveSSM": lambda units: SelectiveSSM(units // 4, 4, rng=0),
    "LinearTimeVarying": lambda units: LinearTimeVarying(FEATURES, units, rng=0),
}
ENGINES = ("scan", "jacobian")
LOOP, SCAN = "loop in torch", "scan in torch"
PAIRS = {"engines": ("kpops jacobian", "kpops scan"), "torch": (LOOP, SCAN)}
"""Loop and scan of the same kind."""
_TOLERANCE = 1e-12
_COUPLED = "its units are coupled, so that its propagator is no scan"

Record = dict[str, Any]


@dataclass(frozen=True)
class Layer(Case):
    """A state-space layer under white noise."""

    @property
    def gates(self) -> int:
        return 1

    @property
    def state_size(self) -> int:
        return self.hidden

    def module(self) -> nn.Module:
        return MODELS[self.kind](self.hidden).to(dtype=self.dtype, device=self.device)

    def drive(self) -> Tensor:
        shape = (self.trials, self.steps, self.module().input_size)
        drive = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=self.dtype)
        return drive.to(self.device)


def measure(grid: Grid, say: Callable[[str], None]) -> dict[str, Any]:
    """Times of P for all layers and lengths, and how far the contenders differ in float64."""
    trials, units = grid.scan_sizes
    base, records, apart = grid.base, [], {}
    for model in MODELS:
        say(f"scan: {model} in float64")
        layer = Layer(model, units, trials, inputs="noise", dtype=base.dtype, device=base.device)
        longest = replace(layer, trials=1, steps=max(grid.scan_steps), dtype=torch.float64)
        apart[model] = agreement(longest)
        for steps in grid.scan_steps:
            say(f"scan: {model}, {steps} steps")
            records += of_layer(replace(layer, steps=steps), grid)
            gc.collect()
    sizes = {"trials": trials, "units": units}
    return {**sizes, "agreement": apart, "records": records, "ratios": ratios(records)}


def of_layer(layer: Layer, grid: Grid) -> list[Record]:
    """Times of P, after a check against the engine autodiff."""
    table = Table(layer, replace(grid, blocks=grid.layer_blocks), contenders(layer))
    start = {"model": layer.kind, "steps": layer.steps}
    return [start | r for block in grid.layer_blocks for r in table.cell("P", block)]


def agreement(layer: Layer) -> float:
    """Largest relative difference of any contender's P q to that of the loop in torch.

    Raises
    ------
    AssertionError
        If it is above 1e-12.
    """
    q = layer.block(2)
    found = {c.name: c.products["P"](q) for c in contenders(layer) if "P" in c.products}
    expected = found.pop(LOOP)
    errors = {
        name: float((product - expected).norm() / expected.norm())
        for name, product in found.items()
    }
    if not max(errors.values()) <= _TOLERANCE:  # also NaN
        raise AssertionError(f"{layer.name}: P differs from the loop's by {errors}")
    return max(errors.values())


def ratios(records: list[Record]) -> list[Record]:
    """Time of a loop over that of the scan, wherever both were measured."""
    ms = {
        (r["model"], r["steps"], r["block"], r["contender"]): r["ms_per_vector"]
        for r in records
        if "ms_per_vector" in r
    }
    cells = dict.fromkeys(key[:3] for key in ms)
    return [
        {"model": cell[0], "steps": cell[1], "block": cell[2], "pair": pair}
        | {"ratio": ms[*cell, loop] / ms[*cell, scanned]}
        for cell in cells
        for pair, (loop, scanned) in PAIRS.items()
        if (*cell, loop) in ms and (*cell, scanned) in ms
    ]


# Contenders. The products are blocks (block, trial, time, unit).


def contenders(layer: Layer) -> list[Contender]:
    """The engines of kpops, then the scan and the loop in torch."""
    makers = {f"kpops {name}": partial(of_engine, layer, name) for name in ENGINES}
    ours = [build(name, make, layer) for name, make in makers.items()]
    scanned, stored = ours[:2]
    if scanned.linearization is None:
        dashed = Contender(SCAN, dashes=scanned.dashes)
        by_matrices = _in_torch(
            LOOP, stored, lambda e, q: jacobian.recur(e.jacobians, q, backwards=False)
        )
        return [*ours, dashed, by_matrices]
    return [
        *ours,
        _in_torch(SCAN, scanned, lambda e, q: scan.recur(e.rounds, q, backwards=False)),
        _in_torch(LOOP, scanned, lambda e, q: loop(e.blocks, q)),
    ]


def of_engine(layer: Layer, name: str) -> Contender:
    """An engine of kpops, for P alone."""
    if name == "scan" and not isinstance(as_recurrence(layer.module()), DiagonalRecurrence):
        raise UnavailableError(_COUPLED)
    contender = engine(layer, name)
    contender.products = {"P": contender.products["P"]}
    return contender


def _in_torch(name: str, ours: Contender, product: Callable[[Any, Tensor], Tensor]) -> Contender:
    """A product from what an engine stores, or a dash if the engine could not be made."""
    if ours.linearization is None:
        return Contender(name, dashes=ours.dashes)
    return Contender(name, {"P": partial(product, ours.linearization.engine)})


def loop(blocks: Tensor, q: Tensor) -> Tensor:
    """P q, step by step; blocks (row, column, trial, time, unit)."""
    v = q.clone()
    by_variable = v.unflatten(-1, (len(blocks), -1))
    for t in range(1, q.shape[2]):
        for row, columns in enumerate(blocks):
            for column, block in enumerate(columns):
                by_variable[:, :, t, row].addcmul_(block[:, t], by_variable[:, :, t - 1, column])
    return v
