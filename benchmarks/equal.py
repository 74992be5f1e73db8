"""Compare two solvers at equal residuals, by loosening the more exact one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.timing import median

LENIENCE = 3.0
"""Residuals are equal if they are within this factor."""
REPETITIONS = 3
LONG_S = 10.0
"""A call of the baseline that takes longer is not repeated."""
_TINY = 1e-30


@dataclass(frozen=True)
class Run:
    """A run of a solver with a given tolerance.

    Attributes
    ----------
    values : ndarray
        Leading values, in decreasing order.
    seconds : float
        Time of the call.
    products : int
        Number of matvecs.
    tol : float
        The tolerance given to it.
    residual : float
        Largest true residual of all modes, relative to the largest value.
    """

    values: np.ndarray
    seconds: float
    products: int
    tol: float
    residual: float

    def record(self) -> dict[str, Any]:
        """The entries that are stored."""
        names = ("seconds", "products", "tol", "residual")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Solver:
    """A way to compute modes to a tolerance.

    Attributes
    ----------
    solve : callable
        Takes a tolerance, returns modes in any form.
    values : callable
        Leading values of the modes, in decreasing order.
    residual : callable
        Their largest true residual.
    products : callable
        Number of matvecs they took, asked right after the call.
    longest_s : float
        A call that takes longer is not repeated.
    """

    solve: Callable[[float], Any]
    values: Callable[[Any], np.ndarray]
    residual: Callable[[Any], float]
    products: Callable[[Any], int]
    longest_s: float = np.inf

    def run(self, tol: float) -> Run:
        """Solve once."""
        start = time.perf_counter()
        modes = self.solve(tol)
        seconds = time.perf_counter() - start
        products = int(self.products(modes))
        return Run(self.values(modes), seconds, products, tol, self.residual(modes))

    def again(self, run: Run) -> Run:
        """The run, with the median time of a few more calls if they are short."""
        if run.seconds > self.longest_s:
            return run
        times = []
        for _ in range(REPETITIONS):
            start = time.perf_counter()
            self.solve(run.tol)
            times.append(time.perf_counter() - start)
        return replace(run, seconds=median(times))


def loosened(solver: Solver, first: Run, aim: float, most_runs: int = 4) -> Run:
    """Loosen the tolerance until the residual is `aim`, or a little larger.

    A tolerance bounds an estimate for every mode; the true residuals may be far smaller, and cost
    more matvecs than needed.

    Parameters
    ----------
    solver : Solver
        The solver to loosen.
    first : Run
        Its run with the tolerance to begin with.
    aim : float
        The residual to reach.
    most_runs : int
        Largest number of runs, including the first.

    Returns
    -------
    Run
        The one with the fewest matvecs among those whose residual is at most `LENIENCE` times
        `aim`; the first if there is none.
    """
    runs, tight, loose = [first], first.tol, np.inf
    while len(runs) < most_runs:
        last = runs[-1]
        if last.residual < aim:
            tight = last.tol
        elif last.residual > LENIENCE * aim and len(runs) > 1:
            loose = last.tol
        else:
            break
        tol = last.tol * float(np.clip(aim / max(last.residual, _TINY), 2, 1e3))
        runs.append(solver.run(tol if tol < loose else float(np.sqrt(tight * loose))))
    good = [run for run in runs if run.residual <= LENIENCE * aim] or runs[:1]
    return min(good, key=lambda run: run.products)


def side_by_side(ours: Solver, theirs: Solver, tol: float) -> dict[str, Run]:
    """Run both with the tolerance, and both at equal residuals.

    Neither is tightened: in float32, rounding may keep the residuals of squares such as ``P* P``
    above the tolerance, however many matvecs are spent.
    """
    mine, his = ours.run(tol), theirs.run(tol)
    my_equal, his_equal = mine, his
    if his.residual < mine.residual:
        his_equal = loosened(theirs, his, mine.residual)
    elif his.residual > LENIENCE * mine.residual:
        my_equal = loosened(ours, mine, his.residual / LENIENCE)
    found = {"kpops": ours.again(my_equal), "stored": theirs.again(his_equal)}
    found["kpops_at_tol"] = found["kpops"] if my_equal is mine else ours.again(mine)
    found["stored_at_tol"] = found["stored"] if his_equal is his else theirs.again(his)
    return found
