"""A problem for a GPU: how close P, P* and flow come to the rate of their matrix products.

The rate is measured in the same run, on a product of the size of one time step: all trials and
vectors go through the recurrent weights. For flow, K is counted at the rank of the features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

import kpops
from benchmarks.cases import Case, Grid
from benchmarks.timing import median, take_turns

HIDDEN, TRIALS, STEPS, BLOCK = 1024, 256, 200, 64


def measure(grid: Grid, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The large problem, with the engine that kpops chooses."""
    case = replace(grid.base, kind="GRU", hidden=HIDDEN, trials=TRIALS, steps=STEPS)
    return of_case(case, BLOCK, grid, say)


def of_case(case: Case, block: int, grid: Grid, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Times, operations and fractions of the rate of P, P* and flow."""
    say(f"large: {case.name}, {case.trials} x {case.steps}, block of {block}")
    lin = kpops.linearize(case.module(), case.drive())
    q = case.block(1).expand(block, -1, -1, -1).contiguous()
    rows = torch.randn(block * case.trials, case.hidden).to(q)
    weights = torch.randn(case.hidden, case.gates * case.hidden).to(q)
    out = torch.mm(rows, weights)
    acts: dict[str, Callable[[], Any]] = {
        "GEMM": lambda: torch.mm(rows, weights, out=out),
        "P": lambda: lin.P @ q,
        "P*": lambda: lin.P.H @ q,
        "flow": lambda: lin.flow @ q,
    }
    for act in acts.values():
        act()
    seconds = {n: median(t) for n, t in take_turns(acts, case.device, grid.limits).items()}
    recursion = 2.0 * block * case.rows * case.gates * case.hidden**2
    rank = sum(lin.engine.feature_ranks())
    gram = 4.0 * block * case.rows * case.gates * case.hidden * rank
    rate = 2.0 * rows.shape[0] * weights.numel() / seconds["GEMM"]
    flops = {"P": recursion, "P*": recursion, "flow": 2 * recursion + gram}
    return [
        {
            "operator": name,
            "model": case.kind,
            "hidden": case.hidden,
            "trials": case.trials,
            "steps": case.steps,
            "block": block,
            "engine": lin.engine.name,
            "rank": rank,
            "ms": 1e3 * seconds[name],
            "flops": flops[name],
            "gemm_flops_per_s": rate,
            "fraction_of_gemm": flops[name] / seconds[name] / rate,
        }
        for name in flops
    ]
