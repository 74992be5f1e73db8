"""End to end: six leading modes of the flow operator, by kpops and as one would without it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse.linalg

import kpops
from benchmarks.cases import Case, Grid
from benchmarks.stored import StoredJacobians
from benchmarks.timing import median

MODES, TOLERANCE = 6, 1e-6
_LARGEST_ERROR = 1e-3


def measure(grid: Grid, repetitions: int = 3) -> list[dict[str, Any]]:
    """Seconds of both, in turns."""
    return [
        compare(replace(grid.base, kind=kind, hidden=hidden), repetitions)
        for kind, hidden in grid.eigsh
    ]


def compare(case: Case, repetitions: int) -> dict[str, Any]:
    """One model; the setting up of each is timed apart."""
    start = time.perf_counter()
    baseline = StoredJacobians(case)
    baseline_setup = time.perf_counter() - start
    start = time.perf_counter()
    lin = kpops.linearize(case.module(), case.drive())
    lin.flow @ case.block(1)  # compiles, or stores, what later products use
    setup = time.perf_counter() - start

    v0 = case.block(1).flatten().cpu().numpy()
    times: dict[str, list[float]] = {"stored": [], "kpops": []}
    products: dict[str, int] = {}
    for _ in range(repetitions + 1):  # the first to warm up
        operator = Counted(baseline)
        start = time.perf_counter()
        expected = scipy.sparse.linalg.eigsh(
            operator.linear, k=MODES, tol=TOLERANCE, v0=v0, return_eigenvectors=True
        )[0]
        times["stored"].append(time.perf_counter() - start)
        products["stored"] = operator.count

        before = lin.flow.num_matvecs
        start = time.perf_counter()
        modes = kpops.eigsh(lin.flow, k=MODES, tol=TOLERANCE, rng=0)
        times["kpops"].append(time.perf_counter() - start)
        products["kpops"] = lin.flow.num_matvecs - before
    expected = np.sort(expected)[::-1]
    error = float(np.abs(modes.eigenvalue.values - expected).max() / expected[0])
    if not error <= _LARGEST_ERROR:
        raise AssertionError(f"eigenvalues of {case.name} differ by {error:.2g} of the largest")
    return {
        "model": case.kind,
        "hidden": case.hidden,
        "engine": lin.engine.name,
        "setup_s": {"stored": baseline_setup, "kpops": setup},
        "seconds": {name: median(found[1:]) for name, found in times.items()},
        "products": products,
        "error": error,
    }


class Counted:
    """The flow operator of the stored Jacobians, counting its products."""

    def __init__(self, baseline: StoredJacobians) -> None:
        self.baseline, self.count = baseline, 0
        plain = baseline.operator("flow")
        self.linear = scipy.sparse.linalg.LinearOperator(
            plain.shape, matvec=self.matvec, dtype=plain.dtype
        )

    def matvec(self, q: np.ndarray) -> np.ndarray:
        self.count += 1
        return self.baseline.flow(q)
