"""Whole tasks beside the method of the KPFlow paper, and the geometric mean of the gains.

``python -m benchmarks.paper`` takes a GRU of 256 units by stored Jacobians, a Python loop over time
and one-vector ARPACK, as the paper did, and by kpops, in one run; it writes
``results/paper.json``. Modes are compared at equal residuals, ranks at equal standard errors. A
measure at ten checkpoints is ten times that at one for the method of the paper, whose work does not
depend on the weights; kpops takes all ten.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import kpops
from benchmarks import collapse_by_hand, machine
from benchmarks.cases import Case
from benchmarks.spectra import Pair
from benchmarks.stored import StoredJacobians
from benchmarks.timing import Limits, median, take_turns
from kpops.linearization import Linearization

RESULTS = Path(__file__).parent / "results" / "paper.json"
CASE, BLOCK, CHECKPOINTS = Case("GRU", 256), 16, 10
_LARGEST_ERROR = 1e-3
# Number of standard errors by which two participation ratios may differ.
_APART = 5.0


def products(case: Case, lin: Linearization, baseline: StoredJacobians) -> dict[str, float]:
    """Seconds per vector of flow, in a block and one by one."""
    q = case.block(BLOCK)
    one = q[0].flatten().numpy()
    ours, theirs = (lin.flow @ q)[0].flatten().numpy(), baseline.flow(one)
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    if not error <= _LARGEST_ERROR:  # also NaN
        raise AssertionError(f"the products differ by {error:.1e}")
    acts = {"kpops": lambda: lin.flow @ q, "paper": partial(baseline.flow, one)}
    times = take_turns(acts, "cpu", Limits(most_s=30))
    return {"kpops": median(times["kpops"]) / BLOCK, "paper": median(times["paper"])}


def checkpoints(case: Case) -> dict[str, float]:
    """Seconds of a measure of collapse at ten checkpoints, from the network on."""
    modules = [moved(case, i) for i in range(CHECKPOINTS)]
    drive, measure = case.drive(), partial(kpops.collapse, num_modes=0, rng=0)
    measure(kpops.linearize(modules[0], drive))
    start, previous, first = time.perf_counter(), None, None
    for module in modules:
        previous = measure(kpops.linearize(module, drive), previous=previous)
        first = previous if first is None else first
    ours = time.perf_counter() - start
    start = time.perf_counter()
    by_hand = collapse_by_hand.collapse(StoredJacobians(case))
    theirs = CHECKPOINTS * (time.perf_counter() - start)
    assert first is not None
    ranks = first.sel(operator=list(by_hand)).transpose("kind", "operator")
    over_time, whole = ranks.effective_rank.values
    dimensions, participation, error = np.array(list(by_hand.values())).T
    apart = np.abs(whole - participation) / np.hypot(ranks.stderr.values[1], error)
    if not ((np.ceil(over_time) == dimensions) & (apart <= _APART)).all():
        raise AssertionError(f"the ranks differ: {ranks.effective_rank.values} and {by_hand}")
    return {"kpops": ours, "paper": theirs}


def moved(case: Case, checkpoint: int) -> torch.nn.Module:
    """The network, its weights scaled a little more at each checkpoint."""
    module = case.module()
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(1 + 0.01 * checkpoint)
    return module


def measure(case: Case) -> dict[str, Any]:
    """Seconds of both for each task, and the geometric mean of their ratios."""
    baseline = StoredJacobians(case)
    lin = kpops.linearize(case.module(), case.drive())
    found = {f"flow, block of {BLOCK}": products(case, lin, baseline)}
    pair = Pair(case, lin, baseline)
    tasks = {
        "K, its spectrum": pair.K,
        "P, top 10": pair.P,
        "flow, top 10": pair.flow,
        "flow, participation": pair.participation,
    }
    show(*found.items())
    for name, task in tasks.items():
        record = task()
        found[name] = {"kpops": record["kpops"]["seconds"], "paper": record["stored"]["seconds"]}
        show((name, found[name]))
        gc.collect()
    del pair, lin, baseline
    gc.collect()
    name = f"collapse, {CHECKPOINTS} checkpoints"
    found[name] = checkpoints(case)
    show((name, found[name]))
    ratios = {name: both["paper"] / both["kpops"] for name, both in found.items()}
    mean = float(np.exp(np.mean(np.log(list(ratios.values())))))
    print(f"geometric mean: {mean:.1f}")
    return {"seconds": found, "ratio": ratios, "geometric_mean": mean}


def show(*tasks: tuple[str, dict[str, float]]) -> None:
    """Print both times and their ratio."""
    for name, both in tasks:
        ratio = both["paper"] / both["kpops"]
        shown = f"{both['kpops']:9.4f} s {both['paper']:9.3f} s {ratio:7.1f}"
        print(f"{name:26}{shown}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    found = {"environment": machine.environment("cpu"), "model": CASE.name, **measure(CASE)}
    given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
