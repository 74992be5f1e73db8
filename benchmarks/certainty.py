"""Solvers on matrices of known spectra: right, marked as unsure, or silently wrong.

Every case is a random symmetric matrix of a prescribed spectrum, dtype and scale, and a random
number of modes. A mode marked as converged must be right: its value must agree with that of a dense
decomposition in float64 to the tolerance. A mode that is not marked counts neither as wrong nor as
right.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import kpops

TOLERANCE = 1e-6
_ROUNDING = 64  # the noise floor of kpops, in rounding units of the dtype

METHODS: dict[str, dict[str, Any]] = {
    "exact": {"method": "exact"},
    "block-krylov": {"method": "block-krylov"},
    "block-krylov, blocks of 2": {"method": "block-krylov", "block_size": 2},
    "lobpcg": {"method": "lobpcg"},
    "arpack": {"method": "arpack"},
}


def _falling(n: int, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0.6, 0.95) ** np.arange(n)


def _copies(n: int, rng: np.random.Generator) -> np.ndarray:
    return np.repeat(_falling(n, rng), rng.integers(2, 20))[:n]


def _spread(n: int, rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    return 1 + 10 ** rng.uniform(low, high) * rng.standard_normal(n)


def _outlier(n: int, rng: np.random.Generator) -> np.ndarray:
    values = _spread(n, rng, -12, -6)
    values[: rng.integers(1, 4)] += 10 ** rng.uniform(-5, -2)
    return values


SPECTRA: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "fast decay": lambda n, rng: rng.uniform(0.3, 0.8) ** np.arange(n),
    "slow decay": lambda n, rng: (1.0 + np.arange(n)) ** -rng.uniform(0.3, 2),
    "step": lambda n, rng: np.where(np.arange(n) < rng.integers(1, n // 3), 1.0, 1e-3),
    "step to zero": lambda n, rng: 1.0 * (np.arange(n) < rng.integers(1, n // 3)),
    "flat": lambda n, rng: np.ones(n),
    "nearly flat": lambda n, rng: _spread(n, rng, -9, -2),
    "nearly flat, outlier": _outlier,
    "rank one": lambda n, rng: 1.0 * (np.arange(n) == 0),
    "zero": lambda n, rng: np.zeros(n),
    "low rank": lambda n, rng: rng.uniform(0.1, 1, n) * (np.arange(n) < rng.integers(2, 12)),
    "copies": _copies,
    "clusters": lambda n, rng: _copies(n, rng) * _spread(n, rng, -8, -3),
    "both signs": lambda n, rng: rng.choice([-1.0, 1.0], n) * _falling(n, rng),
    "random": lambda n, rng: rng.standard_normal(n),
}


def measure(n_cases: int, say: Callable[[str], None], seed: int = 0) -> dict[str, Any]:
    """Count outcomes of `n_cases` matrices, by method and spectrum."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with matrices this small, more threads would wait for each other
    try:
        return _outcomes(n_cases, say, seed)
    finally:
        torch.set_num_threads(threads)


def _outcomes(n_cases: int, say: Callable[[str], None], seed: int) -> dict[str, Any]:
    outcomes: dict[str, dict[str, dict[str, int]]] = {m: {} for m in METHODS}
    worst: dict[str, float] = dict.fromkeys(METHODS, 0.0)
    for number, case in enumerate(cases(n_cases, seed)):
        for method, options in METHODS.items():
            counts = outcomes[method].setdefault(case["spectrum"], {})
            for outcome, error in judge(case, options):
                counts[outcome] = counts.get(outcome, 0) + 1
                if outcome == "right":
                    worst[method] = max(worst[method], error)
        if number % 50 == 49:
            say(f"{number + 1} matrices")
    return {"cases": n_cases, "tolerance": TOLERANCE, "outcomes": outcomes, "worst": worst}


def cases(n_cases: int, seed: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    names = list(SPECTRA)
    for number in range(n_cases):
        n = int(rng.integers(60, 240))
        values = SPECTRA[names[number % len(names)]](n, rng)
        basis = np.linalg.qr(rng.standard_normal((n, n)))[0]
        dtype = np.float32 if number // len(names) % 2 else np.float64
        scale = 10.0 ** rng.uniform(-12, 12)
        matrix = (scale * (basis * values) @ basis.T).astype(dtype)
        yield {
            "spectrum": names[number % len(names)],
            "matrix": (matrix + matrix.T) / 2,
            "k": int(rng.integers(1, 13)),
            "seed": number,
        }


def judge(case: dict[str, Any], options: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Outcome and relative error of eigsh and svds."""
    matrix, k = case["matrix"], case["k"]
    known = np.sort(np.abs(np.linalg.eigvalsh(matrix.astype(float))))[::-1][:k]
    bound = max(TOLERANCE, _ROUNDING * float(np.finfo(matrix.dtype).eps))
    for function, name in ((kpops.eigsh, "eigenvalue"), (kpops.svds, "singular_value")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", kpops.ConvergenceWarning)
            found = function(
                matrix, k, tol=TOLERANCE, rng=case["seed"], max_matvecs=4000, **options
            )
        sure = found.converged.values
        gaps = np.abs(np.abs(found[name].values.astype(float)) - known)
        error = float((gaps / max(known[0], np.finfo(float).tiny))[sure].max(initial=0))
        if not np.all(gaps[sure] <= bound * known[0]):
            yield "wrong", error
        else:
            yield ("right" if sure.all() else "unsure"), error


OUTCOMES = ("right", "unsure", "wrong")


def outcomes_as_text(part: dict[str, Any]) -> list[str]:
    """Outcomes by method, and by spectrum and method, for a terminal."""
    counts = _totals(part)
    lines = [f"{'method':<28}" + "".join(f"{o:>8}" for o in OUTCOMES) + "   worst right"]
    for method, outcomes in counts.items():
        numbers = "".join(f"{n:8d}" for n in outcomes.values())
        lines.append(f"{method:<28}{numbers}   {part['worst'][method]:.1e}")
    lines += ["", f"{'right / unsure / wrong':<28}" + "".join(f"{m[:13]:>15}" for m in counts)]
    for spectrum in next(iter(part["outcomes"].values())):
        cells = [
            " / ".join(str(part["outcomes"][m][spectrum].get(o, 0)) for o in OUTCOMES)
            for m in counts
        ]
        lines.append(f"{spectrum:<28}" + "".join(f"{cell:>15}" for cell in cells))
    return lines


def _totals(part: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Number of calls by method and outcome."""
    return {
        method: {o: sum(n.get(o, 0) for n in by_spectrum.values()) for o in OUTCOMES}
        for method, by_spectrum in part["outcomes"].items()
    }
