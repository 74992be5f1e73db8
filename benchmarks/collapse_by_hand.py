"""Baseline for a measure over training: ranks of K, P P* and P K P* by stored Jacobians.

A figure of the KPFlow paper needs, at each checkpoint, the operators averaged over trials and
units, which takes a matvec for every time step, and a rank of the whole, from random vectors.
"""

from __future__ import annotations

import numpy as np

from benchmarks import one_vector
from benchmarks.stored import StoredJacobians

PROBES = 32


def operators(baseline: StoredJacobians) -> dict[str, one_vector.Act]:
    """The three, on flat vectors."""
    P, back = baseline.P, baseline.P_adjoint
    return {"K": baseline.K, "P P*": lambda q: P(back(q)), "P K P*": baseline.flow}


def averaged(operator: one_vector.Counted, shape: tuple[int, int, int]) -> np.ndarray:
    """The operator between averages over trials and units, a matrix (time, time)."""
    trials, steps, units = shape
    columns = []
    for t in range(steps):
        q = np.zeros(shape, operator.dtype)
        q[:, t] = 1 / np.sqrt(trials * units)
        image = operator.matvec(q).reshape(shape)
        columns.append(image.sum((0, 2), dtype=float) / np.sqrt(trials * units))
    return np.stack(columns, axis=1)


def collapse(baseline: StoredJacobians) -> dict[str, tuple[int, float, float]]:
    """Dimensions with 95 % of the squares over time; the participation ratio and its error."""
    found = {}
    for name, act in operators(baseline).items():
        dtype = str(baseline.case.dtype).removeprefix("torch.")
        operator = one_vector.Counted(act, int(np.prod(baseline.shape)), dtype)
        values = np.linalg.eigvalsh(averaged(operator, baseline.shape))[::-1]
        share = np.cumsum(values**2) / np.sum(values**2)
        rank = one_vector.participation(operator, PROBES, np.random.default_rng(0))
        found[name] = int(np.searchsorted(share, 0.95)) + 1, *rank
    return found
