"""Small problems, where Python is most of the time: ``python -m benchmarks.small``.

A network of two units, one trial and two steps has next to no arithmetic, so its time is the
overhead of a call. Beside it stands a network as most people train them. The baseline is a run of
that network itself, by its own forward. Times are those of the processor, on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

import kpops
from benchmarks.cases import Case
from benchmarks.timing import median

TINY, SMALL = Case("GRU", 2, trials=1, steps=3), Case("GRU", 64, trials=10, steps=50)
TURNS, LEAST_S = 9, 0.02
"""Turns of each call, and what one turn takes at least."""


def calls(case: Case) -> dict[str, Callable[[], Any]]:
    """What is measured of a case, by name; the first is the baseline."""
    module, inputs = case.module(), case.drive()
    lin = kpops.linearize(module, inputs)
    q = case.block(1)[0]
    labelled = lin.states.copy(data=q.numpy())
    products = {
        "P @ tensor": partial(lin.P.__matmul__, q),
        "K @ tensor": partial(lin.K.__matmul__, q),
        "flow @ tensor": partial(lin.flow.__matmul__, q),
        "flow @ array": partial(lin.flow.__matmul__, q.numpy()),
        "flow @ DataArray": partial(lin.flow.__matmul__, labelled),
    }
    functions = {
        "eigsh(flow, 3)": partial(kpops.eigsh, lin.flow, 3, rng=0),
        "trace(flow)": partial(kpops.trace, lin.flow, rng=0),
        "effective_rank(flow)": partial(kpops.effective_rank, lin.flow, rng=0),
        "collapse": partial(kpops.collapse, lin, rng=0),
        "linearize": partial(kpops.linearize, module, inputs),
    }
    return {"forward": torch.no_grad()(partial(module, inputs)), **products, **functions}


def cpu_ms(acts: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Processor time of each call, in turns; medians, in milliseconds."""
    repetitions = {}
    for name, act in acts.items():
        act()  # compiles, and computes what is kept
        repetitions[name] = 1 + int(LEAST_S / max(_turn(act, 1), 1e-6))
    times = {name: [] for name in acts}
    for _ in range(TURNS):
        for name, act in acts.items():
            act()
            times[name].append(1e3 * _turn(act, repetitions[name]) / repetitions[name])
    return {name: median(each) for name, each in times.items()}


def _turn(act: Callable[[], Any], repetitions: int) -> float:
    start = time.process_time()
    for _ in range(repetitions):
        act()
    return time.process_time() - start


def measure(*cases: Case) -> list[dict[str, float]]:
    """Milliseconds of every call, case by case."""
    return [cpu_ms(calls(case)) for case in cases]


def main() -> None:
    """Print a table."""
    torch.set_num_threads(1)
    for kind in ("RNN", "GRU"):
        tiny, small = measure(replace(TINY, kind=kind), replace(SMALL, kind=kind))
        print(
            f"{kind:22}{'overhead':>12}{'64 x 10 x 50':>14}{'forwards':>10}   (ms of a processor)"
        )
        for name, ms in small.items():
            print(f"{name:22}{tiny[name]:12.3f}{ms:14.3f}{ms / small['forward']:10.1f}")


if __name__ == "__main__":
    main()
