"""Time to the trace of an NTK by random vectors, against that of all n matvecs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from reproduction.results import attributes
from reproduction.row import Row
from reproduction.rows import ntk_models
from reproduction.verdicts import Check, between, check

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

METHODS = ("FHutch", "RHutch", "Hutch++")
BASELINES = ("chunks of 64", "one at a time")
TOLERANCES = (*(10 ** (-2 - 3 * k / 19) for k in range(7)), 1e-3)
"""Relative errors: the first points of the paper's grid, and 0.1 %."""

FIGURE = {
    "MLP": (93.3, 74.4, 49.0, 42.2, 39.0, 37.0, 36.2, 36.1),
    "GRU": (13605, 13549, 12721, 12543, 11887, 11524, 8965, 8796),
}
"""Median speed-ups of Figure 1 there, from the vectors of the authors' file."""


def measure(
    seed: int,
    *,
    gru: Sequence[int],
    mlp: Sequence[int],
    traces_gru: Sequence[float],
    samples_gru: Sequence[int],
    samples_mlp: Sequence[int],
    repeats: int,
    runs: int,
    timed: int,
) -> xr.Dataset:
    """Speed-ups of the trace at several accuracies, in seconds of this process.

    The exact traces of the GRUs of all seeds, `traces_gru`, are computed if the list is empty.

    Returns
    -------
    Dataset
        ``speedup`` (network, baseline, tolerance, repeat), the time of n matvecs over that of the
        fastest of three estimators by the paper's rule, NaN if none gets there; ``speedup_kpops``
        (network, baseline, accuracy, run) and ``error_kpops`` for :func:`kpops.trace` with a
        tolerance; ``milliseconds`` (network, baseline) of a matvec.
    """
    plans = {
        "GRU": (ntk_models.gru(seed, gru), samples_gru),
        "MLP": (ntk_models.mlp(seed, mlp), samples_mlp),
    }
    shape, accuracies = (2, len(BASELINES)), (1e-2, 1e-3)
    per_matvec = np.empty(shape)
    speedup = np.empty((*shape, len(TOLERANCES), repeats))
    ours, errors = np.empty((*shape, 2, runs)), np.empty((2, 2, runs))
    for i, (kernel, samples) in enumerate(plans.values()):
        n = kernel.shape[0]
        exact = traces_gru[seed] if i == 0 and traces_gru else kernel.exact_trace()
        per_matvec[i] = _baselines(kernel, timed)
        for r in range(repeats):
            times = _times(kernel, exact, samples, ntk_models.generator(seed, i, r))
            speedup[i, :, :, r] = n * per_matvec[i][:, None] / times
        for a, accuracy in enumerate(accuracies):
            for r in range(runs):
                seconds, errors[i, a, r] = _kpops(kernel, exact, accuracy, [seed, i, a, r])
                ours[i, :, a, r] = n * per_matvec[i] / seconds
    dims = ("network", "baseline")
    return xr.Dataset(
        {
            "speedup": ((*dims, "tolerance", "repeat"), speedup, attributes("speed-up")),
            "speedup_kpops": (
                (*dims, "accuracy", "run"),
                ours,
                attributes("speed-up of kpops.trace"),
            ),
            "error_kpops": (
                ("network", "accuracy", "run"),
                errors,
                attributes("relative error of kpops.trace"),
            ),
            "milliseconds": (dims, 1e3 * per_matvec, attributes("time of a matvec", "ms")),
        },
        coords={
            "network": ("network", list(plans), attributes("network")),
            "baseline": ("baseline", list(BASELINES), attributes("n matvecs, in")),
            "tolerance": ("tolerance", list(TOLERANCES), attributes("relative error")),
            "accuracy": ("accuracy", list(accuracies), attributes("tol of kpops.trace")),
            "repeat": ("repeat", np.arange(repeats), attributes("repeat")),
            "run": ("run", np.arange(runs), attributes("run of kpops.trace")),
        },
    )


def _timed(function: Callable[[], float]) -> tuple[float, float]:
    """Seconds of this process, whatever else runs, and the value."""
    start = time.process_time()
    value = function()
    return time.process_time() - start, value


def _baselines(kernel: ntk_models.Kernel, timed: int) -> list[float]:
    """Seconds of a matvec with vectors of a basis, in chunks and one at a time; medians."""
    import torch

    eye = torch.eye(kernel.shape[0], dtype=kernel.dtype)[: ntk_models.BLOCK]
    found = []
    for rows in (eye, eye[:1]):
        kernel.both(rows)  # compiles
        runs = [_timed(lambda r=rows: float(kernel.both(r)[0, 0]))[0] for _ in range(timed)]
        found.append(float(np.median(runs)) / len(rows))
    return found


def _times(
    kernel: ntk_models.Kernel, exact: float, samples: Sequence[int], rng: torch.Generator
) -> np.ndarray:
    """Seconds to each tolerance by the method that is first there."""
    n, p = kernel.shape
    methods: Mapping[str, Callable[[int], float]] = {
        "FHutch": lambda m: ntk_models.one_sided(kernel.forward, p, m, rng, kernel.dtype),
        "RHutch": lambda m: ntk_models.one_sided(kernel.reverse, n, m, rng, kernel.dtype),
        "Hutch++": lambda m: ntk_models.hutch_plus_plus(
            kernel.both, n, round(0.75 * m), rng, kernel.dtype
        ),
    }
    least = np.full(len(TOLERANCES), np.inf)
    for method in methods.values():
        seconds: list[float] = []
        errors: list[float] = []
        for m in samples:
            took, estimate = _timed(lambda m=m, f=method: f(m))
            seconds.append(took)
            errors.append(abs(estimate - exact) / abs(estimate))
            if errors[-1] <= min(TOLERANCES):
                break
        found = [time_to(seconds, errors, exact, tolerance) for tolerance in TOLERANCES]
        least = np.fmin(least, found)
    return np.where(np.isinf(least), np.nan, least)


def time_to(
    seconds: Sequence[float], errors: Sequence[float], exact: float, tolerance: float
) -> float:
    """Time to an error by the paper's rule: on the line to the first point that is below it.

    Before the first point is one at time 0, with the error `exact`. NaN if no point is below.
    """
    below = np.flatnonzero(np.asarray(errors) <= tolerance)
    if not below.size:
        return np.nan
    times, values = [0.0, *seconds], [abs(exact), *errors]
    i = below[0] + 1
    part = (values[i - 1] - tolerance) / (values[i - 1] - values[i])
    return float(times[i - 1] + part * (times[i] - times[i - 1]))


def _kpops(
    kernel: ntk_models.Kernel, exact: float, tol: float, key: Sequence[int]
) -> tuple[float, float]:
    """Seconds and relative error of kpops.trace to a relative standard error."""
    import kpops

    rng = np.random.default_rng(key)
    seconds, estimate = _timed(
        lambda: float(kpops.trace(kernel.ntk, tol=tol, num_matvecs=512, rng=rng).estimate)
    )
    return seconds, abs(estimate / exact - 1)


def judge(found: xr.Dataset) -> list[Check]:
    """Within a factor of 2 of the figure, against chunks as there; and two orders of magnitude."""
    median = found.speedup.median("repeat")
    checks = []
    for network in found.network.values:
        for accuracy, at in (("99 %", 0), ("99.9 %", len(TOLERANCES) - 1)):
            number = FIGURE[str(network)][at]
            values = median.sel(network=network, baseline=BASELINES[0]).isel(tolerance=at).values
            text = f"{network} at {accuracy}, against chunks: from {number / 2:,.0f} to "
            text += f"{2 * number:,.0f} (figure: {number:,.0f})"
            checks.append(check(text, values, between(number / 2, 2 * number)))
    values = median.sel(network="GRU", baseline=BASELINES[0]).isel(tolerance=-1).values
    checks.append(check("GRU at 99.9 %: at least 100", values, lambda value: value >= 100))
    values = median.sel(network="GRU", baseline=BASELINES[1]).isel(tolerance=0).values
    text = "GRU at 99 %, against one matvec at a time: at least half of the figure's 13,605"
    checks.append(check(text, values, lambda value: value >= 13605 / 2))
    return checks


def draw(found: xr.Dataset) -> Figure:
    """Speed-up against accuracy, as Figure 1; each thin line a seed."""
    from reproduction.figures import COLOURS, grid

    figure, axes = grid(7.2, 3.4, 1, 2)
    order = np.argsort(-np.asarray(TOLERANCES))
    x = np.asarray(TOLERANCES)[order]
    for ax, network in zip(axes[0], ("MLP", "GRU"), strict=True):
        ax.plot(x, np.array(FIGURE[network])[order], "k-", linewidth=1.6, label="paper's figure")
        for colour, baseline in zip(COLOURS, found.baseline.values, strict=False):
            lines = found.speedup.sel(network=network, baseline=baseline).median("repeat")
            ax.plot(x, lines.values[:, order].T, color=colour, linewidth=0.8,
                    label=f"against {baseline}")  # fmt: skip
            points = found.speedup_kpops.sel(network=network, baseline=baseline)
            ax.plot(points.accuracy, points.median(("seed", "run")), "D", color=colour,
                    markersize=4, label=f"kpops.trace, against {baseline}")  # fmt: skip
        ax.set(title=network, xscale="log", yscale="log", xlabel="accuracy")
        ax.invert_xaxis()
        ax.set_xticks([1e-2, 1e-3], ["99 %", "99.9 %"])
        ax.minorticks_off()
    axes[0, 0].set_ylabel("relative speed-up")
    ntk_models.legend_below(figure, 3)
    return figure


def notes(found: xr.Dataset) -> list[str]:
    """Whose times they are."""
    ms = found.milliseconds.median("seed")
    lines = ", ".join(
        f"{network} {float(ms.sel(network=network)[0]):.2f} and "
        f"{float(ms.sel(network=network)[1]):.2f} ms"
        for network in found.network.values
    )
    miss = (found.error_kpops / found.accuracy).median(("seed", "run"))
    return [
        "Times are of one thread of the process, not of the clock. The n matvecs with a basis are "
        "not all done: the median time of 64 at once, and of one, is multiplied by n. Matvecs and "
        f"estimators use the same code of kpops ({lines} for a matvec in chunks and one at a time)."
        " The authors compute the exact trace by the columns of an identity of 48,000 rows, which "
        "fills their memory with 9 GB twice; with equal code the least number of samples, 60 "
        "one-sided ones, limits the ratio to 1,600.",
        "The rule is that of the authors' script: the first of rising numbers of samples whose "
        "error happens to be below the tolerance, interpolated, by the fastest of three estimators "
        "in each repeat; then the median over repeats. It flatters: the user knows no error. "
        "kpops.trace with tol stops by its own standard error; its median error was "
        + ", ".join(
            f"{float(miss.sel(network=k, accuracy=a)):.2f} of the tolerance {a:g} ({k})"
            for k in found.network.values
            for a in found.accuracy.values
        )
        + ".",
        "Two repeats of each of five networks, where the paper has 50 of one.",
    ]


ROW = Row(
    name="ntk_speed",
    title="The time to the trace of an NTK",
    paper="2511.10796",
    where="Figure 1",
    says="Against n matvecs, estimates of 99 % and 99.9 % accuracy are 93 and 36 times as fast for "
    "the MLP, 13,600 and 8,800 times for the GRU.",
    measure=measure,
    settings={
        "gru": [50, 15, 64],
        "mlp": [50, 15, 64],
        "traces_gru": [223056.46, 224365.63, 215298.85, 221337.45, 227107.99],
        "samples_gru": [60, 87, 127, 186, 272, 397, 580],
        "samples_mlp": [60, 98, 160, 262, 430],
        "repeats": 2,
        "runs": 1,
        "timed": 5,
    },
    quick={
        "gru": [20, 10, 16],
        "mlp": [40, 4, 32],
        "traces_gru": [],
        "samples_gru": [60, 127],
        "samples_mlp": [60, 160],
        "repeats": 2,
        "timed": 3,
    },
    judge=judge,
    draw=draw,
    notes=notes,
)
