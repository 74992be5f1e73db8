"""The first result: what a new process waits for, from ``import kpops`` to a printed product.

``python -m benchmarks.first_result`` starts new processes, with an empty and with a warm cache of
compiled code, and prints medians of the time beyond ``import torch, xarray``. With ``--against
FOLDER`` another checkout of kpops takes its turns beside this one. A network of `HIDDEN` units is
linearised at `TRIALS` x `STEPS`; ``again`` is a second linearization, and ``busy`` the same while
another process keeps one core busy.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from benchmarks.busy import busy_core
from benchmarks.timing import median

HIDDEN, TRIALS, STEPS = 64, 20, 90
STAGES = ("import", "linearize", "flow @ q", "first result", "again", "product")
LOADS: dict[str, Any] = {"empty": nullcontext, "warm": nullcontext, "busy": busy_core}
HERE = Path(__file__).parent.parent

# In the new process: seconds of each stage, by the clock on the wall and by that of the processes.
CODE = f"""
import json, time
import torch, xarray

def clocks():
    return time.perf_counter(), time.process_time()

marks = [clocks()]
import kpops
marks.append(clocks())
torch.manual_seed(0)
model = torch.nn.GRU(3, {HIDDEN}, batch_first=True)
inputs = torch.randn({TRIALS}, {STEPS}, 3)
lin = kpops.linearize(model, inputs)
marks.append(clocks())
q = torch.ones(lin.space.shape)
str(lin.flow @ q)
marks.append(clocks())

def repeated(act):
    times = []
    for _ in range(15):
        start = clocks()
        act()
        times.append([b - a for a, b in zip(start, clocks())])
    return [sorted(column)[7] for column in zip(*times)]

found = [[b - a for a, b in zip(*pair)] for pair in zip(marks, marks[1:])]
found.append([b - a for a, b in zip(marks[0], marks[3])])
found += [repeated(lambda: kpops.linearize(model, inputs)), repeated(lambda: lin.flow @ q)]
print(json.dumps(found))
"""


def stages(checkout: Path, cache: str, threads: int) -> list[list[float]]:
    """Seconds (wall, CPU) of the stages in a new process, with this cache of compiled code."""
    one = {"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
    env = {**os.environ, **one, "PYTHONPATH": str(checkout), "NUMBA_CACHE_DIR": cache}
    answer = subprocess.check_output([sys.executable, "-P", "-c", CODE], env=env, text=True)
    found: list[list[float]] = json.loads(answer)
    return found


def measure(
    checkouts: dict[str, Path], repeats: int, threads: int
) -> dict[str, dict[str, list[Any]]]:
    """Stages by cache and checkout, a process of each in turn."""
    found: dict[str, dict[str, list[Any]]] = {}
    for _ in range(repeats):
        for name, checkout in checkouts.items():
            with tempfile.TemporaryDirectory() as cache:
                for kind, load in LOADS.items():
                    with load():
                        run = stages(checkout, cache, threads)
                    found.setdefault(kind, {}).setdefault(name, []).append(run)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_result", description=__doc__)
    parser.add_argument("--against", type=Path, help="another checkout, measured in turns")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    checkouts = {"here": HERE} | ({"against": given.against} if given.against else {})
    found = measure(checkouts, given.repeats, given.threads)
    for clock, unit in enumerate(("seconds on the wall", "seconds of CPU")):
        print(f"{unit}, {given.threads} threads, medians of {given.repeats} processes")
        print(f"{'cache':8}{'checkout':10}" + "".join(f"{stage:>14}" for stage in STAGES))
        for kind, by_checkout in found.items():
            for name, runs in by_checkout.items():
                row = [median([run[i][clock] for run in runs]) for i in range(len(STAGES))]
                print(f"{kind:8}{name:10}" + "".join(f"{seconds:14.4f}" for seconds in row))


if __name__ == "__main__":
    main()
