"""Ranks and speed of learning against the scale g of the recurrent weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from reproduction.results import attributes
from reproduction.row import Row
from reproduction.verdicts import STRONG, Check, check, rises, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOCK = 25
"""Iterations over which losses are averaged before they are compared with a threshold."""
QUANTITIES = {
    "K before training": 1,
    "K after training": 1,
    "least P over first P": 1,
    "iterations to a loss of 0.03": -1,
}
"""What the claim is about, and the sign of its relation to g."""


def measure(
    seed: int, *, cells: Sequence[str], scales: Sequence[float], **settings: Any
) -> xr.Dataset:
    """Train a network of each cell and scale on a short Memory-Pro, without scaling gradients.

    Returns
    -------
    Dataset
        ``quantity`` (cell, g, name) of :data:`QUANTITIES` and, after them, P before training, its
        least rank and the fraction of correct trials; ranks by the rule of the figure.
    """
    import kpops
    from reproduction.protocol import Protocol
    from reproduction.rows.collapse import RULES, ranks

    task = kpops.tasks.memory_pro(4, angles="even", noise=0, steps=(10, 10, 10))
    names = [*QUANTITIES, "P before training", "least P", "accuracy"]
    found = np.empty((len(cells), len(scales), len(names)))
    for place in np.ndindex(found.shape[:2]):
        cell, g = cells[place[0]], scales[place[1]]
        protocol = Protocol("short_memory_pro", cell, g=g, clip=None, **settings)
        checkpoints, network = protocol.train(seed), protocol.network(seed)

        def at_checkpoint(lin: kpops.Linearization) -> xr.Dataset:
            right = kpops.tasks.accuracy(task, lin.outputs).accuracy
            return xr.Dataset({"rank": ranks(lin).sel(rule=RULES[0]), "accuracy": float(right)})

        over = kpops.over_training(network, checkpoints, task.inputs, at_checkpoint)
        P, K = (over["rank"].sel(operator=name).values for name in ("P", "K"))
        speed = reached(protocol.losses(seed), 0.03)
        found[place] = [K[0], K[-1], P.min() / P[0], speed, P[0], P.min(), over.accuracy[-1]]
    return xr.Dataset(
        {"quantity": (("cell", "g", "name"), found, attributes("ranks, iterations, accuracy"))},
        coords={
            "cell": ("cell", list(cells), attributes("cell")),
            "g": ("g", list(scales), attributes("factor of PyTorch's recurrent weights")),
            "name": ("name", names, attributes("quantity")),
        },
    )


def reached(losses: Sequence[float], threshold: float) -> float:
    """First iteration of the first block whose mean loss is at most a threshold; else infinite."""
    means = [np.mean(losses[i : i + BLOCK]) for i in range(0, len(losses), BLOCK)]
    below = np.flatnonzero(np.array(means) <= threshold)
    return float(BLOCK * below[0]) if below.size else np.inf


def judge(found: xr.Dataset) -> list[Check]:
    """Rank correlations of each quantity with g, in each seed."""
    checks = []
    for cell in found.cell.values:
        for name, sign in QUANTITIES.items():
            values = found.quantity.sel(cell=cell, name=name).values
            related = [sign * rises(found.g.values, v.tolist()) for v in values]
            word = "rises with" if sign > 0 else "falls with"
            text = f"{cell.upper()}: {name} {word} g (rank correlation at least {STRONG})"
            checks.append(check(text, related, lambda c: c >= STRONG))
    return checks


def draw(found: xr.Dataset) -> Figure:
    """Each quantity against g, a line for each seed."""
    from reproduction.figures import COLOURS, grid, legend

    figure, axes = grid(7.2, 2.6, 1, len(QUANTITIES))
    for ax, name in zip(axes[0], QUANTITIES, strict=True):
        for colour, cell in zip(COLOURS, found.cell.values, strict=False):
            for values in found.quantity.sel(cell=cell, name=name).values:
                finite = np.isfinite(values)
                x = found.g.values[finite]
                ax.plot(x, values[finite], ".-", color=colour, label=cell.upper(), linewidth=0.8)
        ax.set(title=name, xlabel="g", xticks=found.g.values)
        ax.title.set_fontsize(8)
    axes[0, 3].set_yscale("log")
    legend(axes[0, 0])
    return figure


def notes(found: xr.Dataset) -> list[str]:
    """Settings, and the numbers behind the correlations."""
    table = "; ".join(
        f"{cell.upper()}, g = {g:g}: "
        + ", ".join(
            f"{name} {spread(found.quantity.sel(cell=cell, g=g, name=name).values)}"
            for name in found.name.values
        )
        for cell in found.cell.values
        for g in found.g.values
    )
    return [
        "The authors' sweep of scales has trials of 30 steps (10 each of stimulus, memory and "
        "response), 256 units, Adam with learning rate 1e-3 and the gradient as it is; there in "
        "batches of 500, here of 64. g multiplies PyTorch's own recurrent weights, whose spectral "
        "radius is about 1/sqrt(3). Ranks are by the rule of the figure. A correlation is 0 where "
        "no scale "
        f"reaches the loss. {table}."
    ]


ROW = Row(
    name="scales",
    title="The scale g of the recurrent weights",
    paper="2507.06381",
    where="figure of the ranks for three scales, and the sweep of scales",
    says="With larger g the rank of K is higher, there is less collapse, and learning is faster.",
    measure=measure,
    settings={
        "cells": ["gru", "rnn"],
        "scales": [0.5, 1.0, 2.0, 3.0],
        "batch_size": 64,
        "max_steps": 2000,
    },
    quick={
        "units": 12,
        "n_trials": 64,
        "batch_size": 16,
        "max_steps": 20,
        "checkpoint_every": 10,
    },
    judge=judge,
    draw=draw,
    notes=notes,
)
