"""Which effective rank at initialisation predicts how fast a network learns."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from reproduction.intervals import bootstrap, excludes_zero, of_interval, passes
from reproduction.results import attributes
from reproduction.row import Row
from reproduction.verdicts import Check, number, rises

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANKS = ("participation of P K P*", "variance of P P* over time")


def measure(
    seed: int,
    *,
    cells: list[str],
    scales: list[float],
    tasks: list[str],
    units: int,
    iterations: int,
    every: int,
    trials: int,
) -> xr.Dataset:
    """Ranks of untrained networks, and the iterations in which they learn.

    Parameters
    ----------
    seed : int
        Of the weights, the trials and the batches.
    cells, scales, tasks : list
        The grid: "gru", "rnn" (tanh), "lstm"; factors g of PyTorch's own recurrent weights;
        "memory", "delay", "flip_flop".
    units : int
        Of each network.
    iterations, every : int
        Of Adam at most; distance of the iterations at which the loss is measured.
    trials : int
        Noise-free trials on which ranks and loss are measured.

    Returns
    -------
    Dataset
        ``rank`` (cell, g, task, kind) before training; ``iterations`` (cell, g, task) until the
        loss without noise is half of that of a network which keeps fixation and answers 0,
        infinite if that does not happen.
    """
    shape = (len(cells), len(scales), len(tasks))
    ranks, speeds = np.empty((*shape, len(RANKS))), np.empty(shape)
    for i, cell in enumerate(cells):
        for j, g in enumerate(scales):
            for k, name in enumerate(tasks):
                ranks[i, j, k], speeds[i, j, k] = _one(
                    seed, cell, g, name, units, iterations, every, trials
                )
    text = "iterations to half the loss without an answer"
    return xr.Dataset(
        {
            "rank": (("cell", "g", "task", "kind"), ranks, attributes("effective rank")),
            "iterations": (("cell", "g", "task"), speeds, attributes(text)),
        },
        {
            "cell": ("cell", np.array(cells, dtype=object), attributes("cell")),
            "g": ("g", np.array(scales, float), attributes("scale of the recurrent weights")),
            "task": ("task", np.array(tasks, dtype=object), attributes("task")),
            "kind": ("kind", np.array(RANKS, dtype=object), attributes("effective rank")),
        },
    )


def _one(
    seed: int,
    cell: str,
    g: float,
    name: str,
    units: int,
    iterations: int,
    every: int,
    trials: int,
) -> tuple[list[float], float]:
    """Ranks and iterations of one network."""
    import kpops
    from reproduction import short

    training, evaluation = _task(name, seed, trials)
    network = short.network(cell, training, units, seed, g)
    lin = kpops.linearize(network, evaluation.inputs)
    whole = kpops.effective_rank(lin.flow, "participation", rng=seed)
    over_time = kpops.effective_rank(lin.P @ lin.P.H, "variance", keep=("time",))
    ranks = [float(whole.estimate), float(over_time.estimate)]
    half, steps, losses = short.blind_loss(evaluation) / 2, [], []
    options = {"learning_rate": 3e-3, "batch_size": 32, "seed": seed}
    for step in short.train(network, training, iterations, **options):
        if step % every:
            continue
        steps.append(step)
        losses.append(short.loss(network, evaluation))
        if losses[-1] <= half:
            break
    return ranks, passes(np.array(steps, float), np.array(losses), half)


def _task(name: str, seed: int, trials: int) -> tuple[xr.Dataset, xr.Dataset]:
    """Noisy trials to learn from, and noise-free ones."""
    import kpops

    if name == "flip_flop":
        make, options = kpops.tasks.flip_flop, {"steps": 30, "probability": 0.1}
        return make(1000, rng=seed, **options), make(trials, noise=0, rng=12345, **options)
    make = {"memory": kpops.tasks.memory_pro, "delay": kpops.tasks.delay_pro}[name]
    options = {"steps": (5, 5, 5)}
    return make(1000, rng=seed, **options), make(trials, angles="even", noise=0, **options)


def correlations(found: xr.Dataset) -> np.ndarray:
    """Rank correlation (seed, kind) of each effective rank with the speed of learning.

    Within each task over all cells and scales, then the mean over tasks, since tasks differ in
    how long they take. Speed is the order of the iterations, reversed; networks that do not learn
    in time are the slowest.
    """
    values = []
    for seed in range(found.sizes["seed"]):
        of_tasks = []
        for task in found.task.values:
            one = found.isel(seed=seed).sel(task=task).stack(network=("cell", "g"))
            slow = one.iterations.values
            of_tasks.append(
                [-rises(one["rank"].sel(kind=kind).values, slow) for kind in found.kind.values]
            )
        values.append(np.mean(of_tasks, axis=0))
    return np.array(values)


def judge(found: xr.Dataset) -> list[Check]:
    """One of the ranks predicts the speed, and one predicts it better than the other."""
    values = correlations(found)
    sizes = np.abs(values.mean(0))
    better = int(sizes.argmax())
    kind, sign = str(found.kind.values[better]), np.sign(values.mean(0))
    text = f"correlation of the better rank ({kind}) with the speed: 95 % interval excludes 0"
    difference = values[:, better] * sign[better] - values[:, 1 - better] * sign[1 - better]
    other = str(found.kind.values[1 - better])
    return [
        excludes_zero(text, values[:, better]),
        of_interval(
            "its size is at least 0.3", np.abs(values[:, better]), lambda low, _: low > 0.3
        ),
        excludes_zero(
            f"its size less that of the other ({other}): 95 % interval excludes 0", difference
        ),
    ]


def draw(found: xr.Dataset) -> Figure:
    """Iterations against each rank, and the correlations."""
    from matplotlib.ticker import NullFormatter

    from reproduction.figures import COLOURS, grid

    figure, axes = grid(7.2, 2.9, 1, 3, width_ratios=[1, 1, 0.8])
    most = json.loads(found.attrs["settings"])["iterations"]
    for ax, kind in zip(axes[0], found.kind.values, strict=False):
        for task, marker in zip(found.task.values, "os^", strict=False):
            for cell, colour in zip(found.cell.values, COLOURS, strict=False):
                one = found.sel(kind=kind, task=task, cell=cell)
                y = np.minimum(one.iterations.values, 1.2 * most).ravel()
                x = one["rank"].transpose(*one.iterations.dims).values.ravel()
                label = f"{str(cell).upper()}, {task}"
                look = {"markersize": 3, "alpha": 0.5, "color": colour, "label": label}
                ax.plot(x, y, marker, **look)
        ax.set(xlabel=str(kind), xscale="log", yscale="log")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_minor_formatter(NullFormatter())
    axes[0, 0].set_ylabel("iterations to half the loss\n(top: not reached)")
    shown = axes[0, 0].get_legend_handles_labels()
    figure.legend(*shown, loc="outside lower center", ncols=5, fontsize=7, columnspacing=0.8)
    last, values = axes[0, 2], correlations(found)
    for at, colour in enumerate(COLOURS[3:5]):
        x = np.full(len(values), at)
        last.plot(x, values[:, at], "o", markersize=4, alpha=0.6, color=colour)
        low, high = bootstrap(values[:, at])
        last.plot([at + 0.2] * 2, [low, high], color=colour, linewidth=2)
    last.axhline(0, color="0.6", linewidth=0.6)
    last.set(xlim=(-0.5, 1.6), ylim=(-1, 1), xticks=[0, 1], ylabel="rank correlation with speed")
    last.set_xticklabels(["participation", "variance"])
    return figure


def notes(found: xr.Dataset) -> list[str]:
    """What was measured, and what the verdict means."""
    settings = json.loads(found.attrs["settings"])
    values = correlations(found).mean(0)
    each = " and ".join(f"{number(v)} ({k})" for v, k in zip(values, RANKS, strict=True))
    never = float(np.isinf(found.iterations).mean())
    return [
        '"Reproduced" means that one of the two ranks of an untrained network is correlated '
        "with the speed of learning over cells and scales, and more so than the other: the "
        "intervals over seeds of its correlation, and of the difference in size, exclude 0.",
        f"{', '.join(c.upper() for c in settings['cells'])} of {settings['units']} units, g of "
        f"{', '.join(f'{g:g}' for g in settings['scales'])} times PyTorch's own weights; "
        "Memory-Pro and Delay-Pro with epochs of 5 steps, a flip-flop of 30 steps; at most "
        f"{settings['iterations']} iterations of Adam (learning rate 3e-3, batches of 32). "
        f"{100 * never:.0f} % do not reach half of the loss without an answer. Correlations are "
        f"taken within each task and averaged: {each}.",
    ]


ROW = Row(
    name="rank_predicts_speed",
    title="Which effective rank predicts the speed of learning",
    paper="kpops",
    where="beyond the papers",
    says="Of two effective ranks of an untrained network, one predicts the order in which cells "
    "and scales learn, and does so better than the other.",
    measure=measure,
    settings={
        "cells": ["gru", "rnn", "lstm"],
        "scales": [0.5, 1.0, 1.5, 2.0],
        "tasks": ["memory", "delay", "flip_flop"],
        "units": 32,
        "iterations": 250,
        "every": 20,
        "trials": 6,
    },
    quick={
        "cells": ["gru", "rnn"],
        "scales": [0.5, 2.0],
        "units": 16,
        "iterations": 30,
    },
    judge=judge,
    draw=draw,
    notes=notes,
)
