"""Figures of the page, from the committed files. Without PyTorch, hence without kpops.plot."""

from __future__ import annotations

from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from reproduction.claims import CELLS, FLOW, PARTICIPATION, VARIANCE, K, P, Quantity, rank_of
from reproduction.claims_of_learning import OPERATORS, STATES, THRESHOLDS, contrast
from reproduction.results import Results, iterations_to, network_of

# Okabe and Ito (2008), distinct under every common colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_SETTINGS: Any = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def ranks(found: Results, task: str) -> Figure:
    """Effective ranks over training: a row for each kind, a column for each cell."""
    figure, axes = grid(7.2, 4.6, 2, 2, sharex="col", sharey="row")
    for row, kind in zip(axes, (VARIANCE, PARTICIPATION), strict=True):
        for ax, cell in zip(row, CELLS, strict=True):
            for result in found.of(task=task, cell=cell, g=1.0):
                for colour, operator in zip(COLOURS, (K, P, FLOW), strict=False):
                    look: Any = {
                        "color": colour,
                        "label": operator,
                        "marker": ".",
                        "linewidth": 0.8,
                    }
                    ax.plot(result.step, rank_of(result, operator, kind), markersize=3, **look)
            ax.set_yscale("log")
            _plain_logarithm(ax)
    for ax, cell in zip(axes[0], CELLS, strict=True):
        ax.set_title(cell.upper())
    for ax, kind in zip(axes[:, 0], (VARIANCE, PARTICIPATION), strict=True):
        ax.set_ylabel(f"effective rank\n({kind})")
    for ax in axes[1]:
        ax.set_xlabel("training iteration")
    legend(axes[0, 0])
    return figure


def over_g(found: Results) -> Figure:
    """Ranks and speed against g, a line for each seed."""
    figure, axes = grid(7.2, 4.8, 2, 3)
    panels: tuple[dict[str, Quantity], ...] = (
        {
            "before training": lambda r: rank_of(r, K)[0],
            "after training": lambda r: rank_of(r, K)[-1],
        },
        {
            "before training": lambda r: rank_of(r, P)[0],
            "lowest": lambda r: rank_of(r, P).min(),
        },
        {f"loss {t:g}": partial(iterations_to, threshold=t) for t in THRESHOLDS},
    )
    titles = ("rank of K", "rank of P P*", "iterations to")
    for row, cell in zip(axes, CELLS, strict=True):
        of = found.of(task="memory_pro", cell=cell)
        for ax, lines, title in zip(row, panels, titles, strict=True):
            for colour, (label, quantity) in zip(COLOURS, lines.items(), strict=False):
                _against_g(ax, of, quantity, {"color": colour, "label": label})
            ax.set(title=f"{cell.upper()}: {title}", yscale="log", xticks=of.values("g"))
            _plain_logarithm(ax)
            legend(ax)
    for ax in axes[-1]:
        ax.set_xlabel("g")
    return figure


def _against_g(ax: Any, of: Results, quantity: Quantity, look: dict[str, Any]) -> None:
    """Draw a line for each seed, over the scales at which the quantity is finite."""
    for seed in of.values("seed"):
        points = [(g, quantity(r)) for g in of.values("g") for r in of.of(seed=seed, g=g)]
        x, y = np.array(points, float).reshape(-1, 2).T
        finite = np.isfinite(y)
        ax.plot(x[finite], y[finite], marker=".", linewidth=0.8, **look)


def eigenfunctions(found: Results) -> Figure:
    """Leading eigenfunctions of K for one network of each cell, before and after training."""
    shown = [r for c in CELLS for r in list(found.of(task="memory_pro", cell=c, g=1.0))[:1]]
    figure, axes = grid(7.2, 1.3 * max(1, 2 * len(shown)), max(1, 2 * len(shown)), 6, sharex=True)
    for result, rows in zip(shown, axes.reshape(-1, 2, 6), strict=False):
        cell = network_of(result)["cell"].upper()
        for at, (row, moment) in enumerate(zip(rows, ("before", "after"), strict=True)):
            shares = result.share.sel(reduction="trial, time").values[-at]
            for mode, ax in enumerate(row):
                values = result.eigenfunction.values[at, mode]
                for colour, trial in zip(COLOURS, values, strict=False):
                    ax.plot(result.time, trial, color=colour, linewidth=0.8)
                ax.set_title(f"{100 * shares[mode]:.1f} %", fontsize=8)
                ax.tick_params(left=False, labelleft=False)
                ax.spines["left"].set_visible(False)
            row[0].set_ylabel(f"{cell}, {moment}")
    for ax in axes[-1]:
        ax.set_xlabel("time (step)")
    return figure


def alignments(found: Results) -> Figure:
    """Contrasts of Pro/Anti over Delay/Memory over training."""
    figure, axes = grid(7.2, 3.6, 1, 2, sharey=True)
    for ax, quantities, title in zip(
        axes[0], (STATES, OPERATORS), ("states", "operators"), strict=True
    ):
        for colour, (name, text) in zip(COLOURS, quantities.items(), strict=False):
            for result in found.of(task="four_tasks"):
                ax.plot(
                    result.step, contrast(result, name), color=colour, label=text, linewidth=0.9
                )
        ax.axhline(0, color="0.6", linewidth=0.6)
        ax.set(title=title, xlabel="training iteration")
        ax.set_xscale("symlog", linthresh=100)
        ax.set_xlim(left=0)
        ax.set_xticks([0, 100, 1000])
        ax.set_xticklabels(["0", "100", "1,000"])
        legend(ax, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
    axes[0, 0].set_ylabel("contrast")
    return figure


def grid(width: float, height: float, rows: int, columns: int, **shared: Any) -> tuple[Figure, Any]:
    """Make a figure of rows x columns axes, in the look of the page."""
    with plt.rc_context(_SETTINGS):
        return plt.subplots(
            rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **shared
        )


def legend(ax: Axes, **options: Any) -> None:
    """Draw a legend that has each label once."""
    handles, labels = ax.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    if once:
        ax.legend(once.values(), once.keys(), fontsize=7, handlelength=1.2, **options)


def _plain_logarithm(ax: Axes) -> None:
    """Write plain numbers beside a logarithmic axis, even if it spans less than two decades."""
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
