"""Estimates of traces and effective ranks: their errors, and the errors that they report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import kpops
from benchmarks.cases import Grid
from kpops.labels import Space
from kpops.linalg.exact import eigenvalues
from kpops.linalg.rounding import noise_floor
from kpops.operators.base import TrajectoryOperator
from kpops.spectral.traces import trace

MATVECS = 60
SIZE = 1200
"""Size of the matrices, above that up to which kpops decomposes a matrix as it is."""
TRACES = ("hutchinson", "xtrace", "xnystrace", "auto")
RANKS = {"participation": "hutchinson", "entropy": "lanczos"}


def _clusters(n: int) -> np.ndarray:
    """Levels of 64 nearly equal eigenvalues, like one for each unit of a network."""
    levels = 0.3 ** (np.arange(n) // 64)
    return levels * (1 + 0.05 * np.cos(np.arange(n)))


SPECTRA: dict[str, Callable[[int], np.ndarray]] = {
    "geometric, 0.7^j": lambda n: 0.7 ** np.arange(n),
    "algebraic, j^-2": lambda n: (1.0 + np.arange(n)) ** -2,
    "step, 30 of 1, then 0.001": lambda n: np.where(np.arange(n) < 30, 1.0, 1e-3),
    "flat, from 3 to 1": lambda n: np.linspace(3, 1, n),
    "clusters of 64": _clusters,
}


class Diagonal(TrajectoryOperator):
    """A positive operator with a given spectrum, known only by its products.

    The estimators draw vectors whose distribution no rotation changes, so the eigenvectors do not
    matter.
    """

    def __init__(self, values: np.ndarray) -> None:
        space = Space(("index",), (len(values),))
        super().__init__(
            space,
            space,
            dtype=torch.float64,
            device=torch.device("cpu"),
            symbol="A",
            self_adjoint=True,
            positive=True,
        )
        self.values = torch.from_numpy(values)

    def _apply(self, block: Tensor) -> Tensor:
        return block * self.values

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        return self._apply(block)


class Problem(NamedTuple):
    """An operator and the nonzero part of its spectrum."""

    name: str
    op: TrajectoryOperator
    spectrum: np.ndarray
    repetitions: int


def measure(grid: Grid, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """True and reported errors by operator, quantity and method."""
    records = []
    for problem in problems(grid):
        say(f"estimators: {problem.name}")
        records += of_problem(problem)
    return records


def problems(grid: Grid) -> Iterator[Problem]:
    """Matrices, then K and flow of networks as PyTorch initialises them."""
    of_matrices, of_networks = grid.estimator_repetitions
    for name, make in SPECTRA.items():
        values = make(SIZE)
        yield Problem(name, Diagonal(values), values, of_matrices)
    for kind, hidden in grid.estimators:
        case = replace(grid.base, kind=kind, hidden=hidden)
        lin = kpops.linearize(case.module(), case.drive())
        spectrum = eigenvalues(lin.K).values.double().cpu().numpy()
        yield Problem(f"K, {case.name}", lin.K, spectrum, of_networks)
        yield Problem(f"flow, {case.name}", lin.flow, squared_spectrum(lin.flow.root), of_networks)


def squared_spectrum(root: TrajectoryOperator) -> np.ndarray:
    """Eigenvalues of R R*, by the matrix of R* R."""
    n = root.shape[1]
    gram = np.empty((n, n))
    for start in range(0, n, 64):
        rows = torch.eye(n, dtype=root.torch_dtype, device=root.device)[start : start + 64]
        images = root.apply_adjoint(root.apply(rows.reshape(-1, *root.domain.shape)))
        gram[start : start + 64] = images.flatten(1).cpu().numpy()
    return np.linalg.eigvalsh((gram + gram.T) / 2).clip(0)


def of_problem(problem: Problem) -> list[dict[str, Any]]:
    """Apply every method to one operator."""
    values = problem.spectrum
    shares = values[values > 0] / values.sum()
    known = {
        "trace": values.sum(),
        "participation": values.sum() ** 2 / (values**2).sum(),
        "entropy": np.exp(-(shares * np.log(shares)).sum()),
    }

    estimates = [("trace", method, partial(trace, problem.op)) for method in TRACES]
    for kind, method in RANKS.items():
        estimates.append((kind, method, partial(kpops.effective_rank, problem.op, kind)))
    rounding = noise_floor(problem.op.torch_dtype)
    return [
        {
            "operator": problem.name,
            "quantity": quantity,
            "method": method,
            **errors(
                partial(estimate, method=method, num_matvecs=MATVECS),
                float(known[quantity]),
                problem.repetitions,
                rounding,
            ),
        }
        for quantity, method, estimate in estimates
    ]


def errors(
    estimate: Callable[..., xr.Dataset], known: float, repetitions: int, rounding: float
) -> dict[str, Any]:
    """Relative errors and standard errors over many seeds.

    Parameters
    ----------
    estimate : callable
        Takes ``rng`` and returns an estimate and its standard error.
    known : float
        The true value.
    repetitions : int
        Number of seeds.
    rounding : float
        Relative error that a standard error need not cover.

    Returns
    -------
    dict
        ``rms``, the root mean square of the errors; ``claimed``, that of the standard errors;
        ``coverage``, how often the true value is within two of them; ``products``, the largest
        number of matvecs; and ``chosen``, how many times each method was chosen.
    """
    found = [estimate(rng=seed) for seed in range(repetitions)]
    gaps = np.array([float(f.estimate) for f in found]) / known - 1
    bars = np.array([float(f.stderr) for f in found]) / known
    chosen = [f.attrs["method"] for f in found]
    return {
        "rms": float(np.sqrt(np.mean(gaps**2))),
        "claimed": float(np.sqrt(np.mean(bars**2))),
        "coverage": float(np.mean(np.abs(gaps) <= 2 * bars + rounding)),
        "products": max(float(f.attrs["num_matvecs"]) for f in found),
        "chosen": {name: chosen.count(name) for name in sorted(set(chosen))},
        "repetitions": repetitions,
    }


def against_best(records: list[dict[str, Any]], operator: str) -> float:
    """Error of "auto" over that of the best other method for the trace of an operator."""
    rms = {
        r["method"]: r["rms"]
        for r in records
        if (r["operator"], r["quantity"]) == (operator, "trace")
    }
    return rms.pop("auto") / min(rms.values())
