"""Effective ranks of untrained networks, by the rule of the figure and of the whole spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import xarray as xr

from reproduction.results import attributes
from reproduction.row import Row
from reproduction.verdicts import Check, between, check

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE = {"memory_pro": 36.4, "flip_flop": 36.5}


def measure(seed: int, *, cells: Sequence[str], tasks: Sequence[str], units: int) -> xr.Dataset:
    """Ranks before training.

    Returns
    -------
    Dataset
        ``rank`` (task, cell, operator, rule) as of :func:`reproduction.rows.collapse.ranks`, and
        ``flow`` (task, cell), that of P K P* over time by its whole spectrum.
    """
    import kpops
    from reproduction.protocol import Protocol
    from reproduction.rows.collapse import ranks, trials

    found = []
    for task in tasks:
        of_task = []
        for cell in cells:
            network = Protocol(task, cell, units).network(seed)
            lin = kpops.linearize(network, trials(task).inputs)
            flow = kpops.effective_rank(lin.flow, "variance", keep="time", method="exact")
            text = attributes("effective rank of P K P* over time")
            of_task.append(
                xr.Dataset({"rank": ranks(lin), "flow": ((), float(flow.estimate), text)})
            )
        found.append(xr.concat(of_task, "cell"))
    result = xr.concat(found, "task").assign_coords(task=list(tasks), cell=list(cells))
    for name in ("task", "cell"):
        result[name].attrs = attributes(name)
    return result


def judge(found: xr.Dataset) -> list[Check]:
    """The numbers of the figure and of the text, each under its rule."""
    rank, (figure, whole) = found["rank"], found.rule.values
    rnn = rank.sel(task="memory_pro", cell="rnn", rule=whole)
    checks = [
        check(f"GRU, {task.replace('_', '-')}: P within 1.5 of {value}, by the rule of the figure",
              rank.sel(task=task, cell="gru", operator="P", rule=figure).values,
              between(value - 1.5, value + 1.5))
        for task, value in FIGURE.items()
    ]  # fmt: skip
    flow = found.flow.sel(task="memory_pro", cell="rnn").values
    return [
        *checks,
        check("RNN: P within 5 of 82 of 90", rnn.sel(operator="P").values, between(77, 87)),
        check("RNN: K within 0.01 of 0.96", rnn.sel(operator="K").values, between(0.95, 0.97)),
        check("RNN: P K P* within 0.01 of 0.96", flow, between(0.95, 0.97)),
    ]


def draw(found: xr.Dataset) -> Figure:
    """The rank of P of each seed, task and rule, beside the paper's."""
    from reproduction.figures import COLOURS, grid, legend

    figure, axes = grid(7.2, 2.8, 1, 2, sharey=True)
    for ax, cell in zip(axes[0], found.cell.values, strict=True):
        for place, task in enumerate(found.task.values):
            for colour, rule in zip(COLOURS, found.rule.values, strict=False):
                values = found["rank"].sel(cell=cell, task=task, operator="P", rule=rule)
                at = [place] * values.size
                ax.plot(at, values, "o", color=colour, markersize=4, label=f"rule {rule}")
            if cell == "gru":
                ax.plot(place, FIGURE[task], "k_", markersize=24, label="paper, rule of the figure")
            elif task == "memory_pro":
                ax.plot(place, 82, "_", color="0.5", markersize=24, label="paper, 82 of 90")
        names = [task.replace("_", "-") for task in found.task.values]
        ax.set(title=cell.upper(), xticks=range(len(names)), xticklabels=names, xlim=(-0.6, 1.6))
        legend(ax, loc="lower right" if cell == "rnn" else "upper right")
    axes[0, 0].set(ylabel="effective rank of P over time", ylim=(0, 95))
    return figure


def notes(found: xr.Dataset) -> list[str]:
    """Why two rules."""
    return [
        "The figure's rule counts the 60 leading eigenvalues of P P* of 90 on 4 trials, so a flat "
        "spectrum has a rank of 57; the whole spectrum gives about 43 for the same GRUs. The "
        "paper's 82 of 90 for an RNN cannot come from the rule of the figure, and is compared with "
        "the whole spectrum."
    ]


ROW = Row(
    name="ranks_before_training",
    title="Ranks before training",
    paper="2507.06381",
    where="Figure 4, first checkpoint, and text",
    says="At initialisation with g = 1 the rank of P over time is 36.4 (Memory-Pro) and 36.5 "
    "(flip-flop) in a GRU; in an RNN on Memory-Pro it is about 82 of 90, and about 0.96 for K and "
    "for P K P*.",
    measure=measure,
    settings={"cells": ["gru", "rnn"], "tasks": ["memory_pro", "flip_flop"], "units": 256},
    quick={"units": 24},
    judge=judge,
    draw=draw,
    notes=notes,
)
