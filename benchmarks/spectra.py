"""End to end: a user's whole calls, by kpops and by stored Jacobians one vector at a time."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

import kpops
from benchmarks import one_vector, shares
from benchmarks.cases import Case, Grid
from benchmarks.equal import LONG_S, REPETITIONS, Solver, side_by_side
from benchmarks.stored import StoredJacobians
from benchmarks.timing import median
from kpops.linearization import Linearization

MODES, TOLERANCE = 10, 1e-5
PROBES = 64
"""Random vectors of the baseline's participation ratio."""
_LARGEST_ERROR = 1e-3
# Budgets of matvecs to try for the participation ratio; number of seeds to average its error.
_BUDGETS = (8, 12, 16, 24, 32, 48, 64, 96, 128)
_SEEDS = 5
# Number of standard errors by which two estimates of the participation ratio may differ.
_APART = 5.0

Record = dict[str, Any]


def measure(grid: Grid, say: Callable[[str], None]) -> list[Record]:
    """Compare both on every model of the grid."""
    records = []
    for kind, hidden in grid.spectra:
        records.append(compare(replace(grid.base, kind=kind, hidden=hidden), say))
        gc.collect()
    return records


def compare(case: Case, say: Callable[[str], None]) -> Record:
    """Compare both on one model; the setup of each is timed separately."""
    start = time.perf_counter()
    baseline = StoredJacobians(case)
    baseline_setup = time.perf_counter() - start
    start = time.perf_counter()
    lin = kpops.linearize(case.module(), case.drive())
    lin.flow @ case.block(1)  # compiles, or stores, what later products use
    setup = time.perf_counter() - start
    pair = Pair(case, lin, baseline)
    tasks = []
    for name, task in {"K": pair.K, "P": pair.P, "flow": pair.flow}.items():
        say(f"{case.name}: spectrum of {name}")
        tasks.append({"task": name, **task()})
    say(f"{case.name}: participation ratio")
    tasks.append({"task": "participation", **pair.participation()})
    say(f"{case.name}: where the time goes")
    return {
        "model": case.kind,
        "hidden": case.hidden,
        "engine": lin.engine.name,
        "setup_s": {"stored": baseline_setup, "kpops": setup},
        "tasks": tasks,
        "shares": {
            name: shares.of(partial(call, TOLERANCE)) for name, call in pair.calls().items()
        },
    }


class Pair:
    """Both sides of the comparison on one model.

    Parameters
    ----------
    case : Case
        The model.
    lin : Linearization
        Its operators by kpops.
    baseline : StoredJacobians
        The same operators without kpops.
    """

    def __init__(self, case: Case, lin: Linearization, baseline: StoredJacobians) -> None:
        self.case, self.lin, self.baseline = case, lin, baseline
        self.n = lin.flow.shape[0]
        self.v0 = case.block(1).flatten().cpu().numpy()

    def calls(self) -> dict[str, Callable[[float], xr.Dataset]]:
        """What a user of kpops would type."""
        lin = self.lin
        return {
            "P": lambda tol: kpops.svds(lin.P, MODES, tol=tol, rng=0),
            "flow": lambda tol: kpops.eigsh(lin.flow, MODES, tol=tol, rng=0),
        }

    def K(self) -> Record:
        """The whole spectrum, against ten eigenvalues of the baseline to its own tolerance."""
        ours, seconds = _timed(lambda: kpops.eigvalsh(self.lin.K))
        solver = self._arpack(self.baseline.K)
        theirs = solver.again(solver.run(TOLERANCE))
        error = self._difference(ours.eigenvalue.values[:MODES], theirs.values)
        return {
            "kpops": {"seconds": seconds, "products": 0, "residual": None},
            "stored": theirs.record(),
            "difference": error,
        }

    def P(self) -> Record:
        """Singular triplets, against the eigenpairs of P* P."""
        forth, back = self.baseline.P, self.baseline.P_adjoint

        def of_triplets(modes: xr.Dataset) -> float:
            values = modes.singular_value.values
            left, right = _flat(modes.left), _flat(modes.right)
            return max(_residual(forth, right, values, left), _residual(back, left, values, right))

        def of_squares(modes: tuple[np.ndarray, np.ndarray]) -> float:
            """Residual of P*; that of P is rounding, since P makes the left vectors."""
            sigma = np.sqrt(modes[0])
            left = np.stack([forth(v) for v in modes[1]]) / sigma[:, None]
            return _residual(back, left, sigma, modes[1])

        ours = self._kpops("P", lambda modes: modes.singular_value.values, of_triplets)
        theirs = self._arpack(lambda q: back(forth(q)), 2, np.sqrt, of_squares)
        return self._modes(ours, theirs)

    def flow(self) -> Record:
        """Eigenpairs of both."""
        act = self.baseline.flow

        def of_pairs(modes: xr.Dataset) -> float:
            return residual(act, modes.eigenvalue.values, _flat(modes.eigenfunction))

        ours = self._kpops("flow", lambda modes: modes.eigenvalue.values, of_pairs)
        return self._modes(ours, self._arpack(act))

    def _kpops(
        self,
        name: str,
        values: Callable[[xr.Dataset], np.ndarray],
        of: Callable[[xr.Dataset], float],
    ) -> Solver:
        return Solver(self.calls()[name], values, of, lambda modes: modes.attrs["num_matvecs"])

    def _arpack(
        self,
        act: one_vector.Act,
        cost: int = 1,
        values: Callable[[np.ndarray], np.ndarray] = np.asarray,
        of: Callable[[tuple[np.ndarray, np.ndarray]], float] | None = None,
    ) -> Solver:
        """ARPACK on an operator whose actions count as `cost` matvecs each."""
        operator = self._counted(act, cost)

        def solve(tol: float) -> tuple[np.ndarray, np.ndarray]:
            operator.products = 0
            return one_vector.arpack(operator, MODES, tol, self.v0)

        return Solver(
            solve,
            lambda modes: values(modes[0]),
            of or (lambda modes: residual(act, *modes)),
            lambda modes: operator.products,
            LONG_S,
        )

    def _counted(self, act: one_vector.Act, cost: int = 1) -> one_vector.Counted:
        dtype = str(self.case.dtype).removeprefix("torch.")
        return one_vector.Counted(act, self.n, dtype, cost)

    def _modes(self, ours: Solver, theirs: Solver) -> Record:
        """The record of the modes, once they agree."""
        ours.solve(TOLERANCE)  # to warm up
        runs = side_by_side(ours, theirs, TOLERANCE)
        error = self._difference(runs["kpops"].values, runs["stored"].values)
        return {**{name: run.record() for name, run in runs.items()}, "difference": error}

    def _difference(self, values: np.ndarray, expected: np.ndarray) -> float:
        """Largest difference, relative to the largest value."""
        error = float(np.abs(values - expected).max() / expected[0])
        if not error <= _LARGEST_ERROR:
            raise AssertionError(f"{self.case.name}: modes differ by {error:.2g} of the largest")
        return error

    def participation(self) -> Record:
        """Participation ratio of the flow operator, at the same standard error."""
        operator = self._counted(self.baseline.flow)
        start = time.perf_counter()
        theirs, error = one_vector.participation(operator, PROBES, np.random.default_rng(0))
        their_seconds = time.perf_counter() - start

        def call(budget: int, seed: int) -> xr.Dataset:
            return kpops.effective_rank(
                self.lin.flow, "participation", num_matvecs=budget, rng=seed
            )

        for budget in _BUDGETS:
            found = [call(budget, seed) for seed in range(_SEEDS)]
            our_error = float(np.sqrt(np.mean([float(f.stderr) ** 2 for f in found])))
            if our_error <= error:
                break
        ours, seconds = _timed(lambda: call(budget, 0))
        gap = abs(float(ours.estimate) - theirs)
        if not gap <= _APART * np.hypot(error, our_error):
            raise AssertionError(
                f"{self.case.name}: participation ratios {float(ours.estimate):.4g} and "
                f"{theirs:.4g} are further apart than their errors {our_error:.2g}, {error:.2g}"
            )
        return {
            "kpops": {
                "seconds": seconds,
                "products": ours.attrs["num_matvecs"],
                "estimate": float(ours.estimate),
                "stderr": our_error,
                "chosen": ours.attrs["chosen"],
            },
            "stored": {
                "seconds": their_seconds,
                "products": operator.products,
                "estimate": theirs,
                "stderr": error,
            },
        }


def residual(act: one_vector.Act, values: np.ndarray, vectors: np.ndarray) -> float:
    """Largest ``||A v - lambda v|| / lambda_max`` of eigenvectors given as rows."""
    return _residual(act, vectors, values, vectors)


def _residual(
    act: one_vector.Act, given: np.ndarray, values: np.ndarray, expected: np.ndarray
) -> float:
    """Largest ``||A x - s y|| / s_max`` of the rows x and y."""
    gaps = [
        np.linalg.norm((act(x) - s * y).astype(float))
        for x, s, y in zip(given, values, expected, strict=True)
    ]
    return float(max(gaps) / values[0])


def _flat(modes: xr.DataArray) -> np.ndarray:
    return modes.values.reshape(len(modes), -1)


def _timed(call: Callable[[], xr.Dataset]) -> tuple[xr.Dataset, float]:
    """Result and median time of a call, after one to warm up."""
    call()
    times = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return result, median(times)
