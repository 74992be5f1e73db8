"""Peak memory of one product with the flow operator, measured in a process of its own.

``python -m benchmarks.memory '{...}'`` is such a process: it prints its result as JSON.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch

import kpops
from benchmarks.cases import Case, Grid
from benchmarks.contenders import ENGINES_OF_CELLS


def measure(grid: Grid, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Large problems with the automatic engine, then the base case with every engine."""
    base = grid.base
    plans = [
        (replace(base, hidden=hidden, trials=trials, steps=steps), "auto")
        for hidden, trials, steps in grid.large
    ]
    plans += [(base, name) for name in ENGINES_OF_CELLS]
    records = []
    for case, name in plans:
        say(f"memory: {case.name}, {case.trials} x {case.steps}, engine {name}")
        records.append(peak(case, name))
    return records


def peak(case: Case, engine: str) -> dict[str, Any]:
    """Growth of the peak over that of a process that stops before it calls kpops.

    What an engine loads or compiles at its first use does not grow with the problem: it is measured
    on a tiny problem and reported separately as `code`.
    """
    found = in_process(case, engine)
    start = {
        "model": case.kind,
        "hidden": case.hidden,
        "trials": case.trials,
        "steps": case.steps,
        "engine": found.get("engine", engine),
        "asked": engine,
    }
    if "dash" in found:
        return start | found
    idle = in_process(case, None)["peak"]
    tiny = replace(case, hidden=4, trials=2, steps=6)
    small = in_process(tiny, found["engine"])
    code = small["peak"] - in_process(tiny, None)["peak"]
    kept = found["kept"] - small["kept"]
    growth = found["peak"] - idle
    expected = found["estimate"] + found["trajectory"] + found["vectors"]
    ratios = {"ratio": growth / expected, "ratio_without_code": (growth - code) / expected}
    if found["estimate"]:
        ratios["kept_ratio"] = kept / found["estimate"]
    return start | found | {"idle": idle, "code": code, "growth": growth, "kept": kept} | ratios


@cache
def in_process(case: Case, engine: str | None) -> dict[str, Any]:
    """Run one measurement in a fresh interpreter; None stops before the linearization."""
    arguments = asdict(case) | {"dtype": str(case.dtype).removeprefix("torch."), "engine": engine}
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    output = subprocess.check_output(
        [sys.executable, "-m", "benchmarks.memory", json.dumps(arguments)],
        env={**os.environ, "PYTHONPATH": path},
        text=True,
    )
    return json.loads(output.splitlines()[-1])


def resident_bytes(device: str) -> int:
    """Memory held now, after freed memory has gone back to the system."""
    gc.collect()
    if torch.device(device).type == "cuda":
        return torch.cuda.memory_allocated(device)
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    return psutil.Process().memory_info().rss


def peak_bytes(device: str) -> int:
    """Largest memory so far: resident, or as allocated by torch on a GPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # Not ru_maxrss, which on Linux starts from the size of the process that started this one.
        status = Path("/proc/self/status").read_text()
        return 1024 * next(
            int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")
        )
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(arguments: dict[str, Any]) -> dict[str, Any]:
    """Compute one product with flow, and the bytes that it takes in theory."""
    engine = arguments.pop("engine")
    case = Case(**arguments | {"dtype": getattr(torch, arguments["dtype"])})
    module, drive = case.module(), case.drive()
    if engine is None:
        return {"peak": peak_bytes(case.device)}
    try:
        lin = kpops.linearize(module, drive, engine=engine)
    except (ValueError, MemoryError) as error:
        return {"dash": str(error)}
    before = resident_bytes(case.device)
    q = case.block(1)
    product = lin.flow @ q
    if not bool(product.isfinite().all()):
        raise AssertionError("the product is not finite")
    vectors = q.nbytes + product.nbytes
    del q, product
    kept = resident_bytes(case.device) - before
    parts = lin.trajectory.inputs, lin.trajectory.previous, lin.trajectory.states
    return {
        "peak": peak_bytes(case.device),
        "engine": lin.engine.name,
        "estimate": int(lin.memory_estimate().get(lin.engine.name, 0)),
        "trajectory": sum(part.nbytes for part in parts),
        "vectors": vectors,
        "kept": kept,
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
