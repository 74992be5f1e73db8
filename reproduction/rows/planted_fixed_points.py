"""What the initial dynamics keep from being learned: Memory-Pro with and without fixed points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from reproduction.results import attributes
from reproduction.row import Row
from reproduction.verdicts import Check, between, check

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEMORYLESS = 1 / 9
"""Least loss without memory; `reproduction.basic_rnn.memoryless_loss` derives it."""


def measure(
    seed: int,
    *,
    units: int,
    planted: Sequence[int],
    learning_rate: float,
    batch: int,
    iterations: int,
    points: int,
) -> xr.Dataset:
    """Loss over training on Memory-Pro, for several numbers of planted fixed points.

    The networks of a seed start from the same weights, and see the same batches. Planted points are
    drawn from the standard normal distribution.

    Returns
    -------
    Dataset
        ``loss`` (planted, step) on 100 noise-free trials.
    """
    import torch

    from reproduction.basic_rnn import BasicRNN, descend, plant

    at = np.unique(np.linspace(0, iterations, points).astype(int)).tolist()
    drawn = torch.randn(max(planted), units, generator=torch.Generator().manual_seed(seed))
    losses = []
    for count in planted:
        network = BasicRNN(units, seed)
        with torch.no_grad():
            network.cell.weight_hh.copy_(plant(network.cell.weight_hh, drawn[:count]))
        losses.append(descend(network, seed, rate=learning_rate, batch=batch, at=at)[1])
    return xr.Dataset(
        {"loss": (("planted", "step"), np.array(losses), attributes("loss on noise-free trials"))},
        coords={
            "planted": ("planted", list(planted), attributes("planted fixed points")),
            "step": ("step", at, attributes("iteration of gradient descent")),
        },
    )


def judge(found: xr.Dataset) -> list[Check]:
    """Without planted points the loss rests at that without memory; with them it passes it."""
    without, planted = found.loss.sel(planted=0), found.loss.isel(planted=-1)
    n_points = int(found.planted[-1])
    since = found.step.values >= 0.8 * found.step.values[-1]
    moved = np.ptp(without.values[:, since], axis=1)
    return [
        check(
            "without planted points: last loss from 0.106 to 0.116",
            without.values[:, -1],
            between(0.106, 0.116),
        ),
        check(
            "without planted points: the loss moves by less than 0.005 in the last fifth",
            moved,
            lambda value: value < 0.005,
        ),
        check(
            f"with {n_points}: last loss below 0.1",
            planted.values[:, -1],
            lambda value: value < 0.1,
        ),
    ]


def draw(found: xr.Dataset) -> Figure:
    """Loss over iterations of gradient descent, and the loss without memory."""
    from reproduction.figures import COLOURS, grid, legend

    figure, axes = grid(4.6, 3.0, 1, 1)
    ax = axes[0, 0]
    for colour, count in zip(COLOURS, found.planted.values, strict=False):
        look = {"color": colour, "label": f"{count} planted fixed points", "linewidth": 0.9}
        ax.plot(found.step, found.loss.sel(planted=count).T, **look)
    ax.axhline(MEMORYLESS, color="0.3", linestyle=":", label="without memory: 0.111 (paper)")
    ax.set(xlabel="iteration of gradient descent", ylabel="loss (mean squared error)")
    ax.set(yscale="log", xlim=(0, None))
    legend(ax)
    return figure


def notes(found: xr.Dataset) -> list[str]:
    """What is smaller than in the paper."""
    return [
        "The paper trains 256 units with learning rate 0.01 and batches of 500 for at most 10,000 "
        "iterations; ours has 64 units, batches of 20 and 6,000 iterations, which two cores can do "
        "in minutes. The learning rate is 0.04, so that its product with the number of units, to "
        "which the tangent kernel of the outputs is proportional at this initialisation, is that "
        "of the paper. The input weights are uniform within 1/sqrt(3), as in the authors' code.",
        "0.111 is exactly the least loss without memory: two of the three outputs are the (cos, "
        "sin) of an angle that no input shows in the last third of the trial, and their variances "
        "add to one. The loss is that of 100 noise-free trials.",
        "The bound of 0.1 for what goes below is ours, as is the tolerance of 0.005. Shampoo, the "
        "third case of the paper, is in the row Task components that are not learned.",
    ]


ROW = Row(
    name="planted_fixed_points",
    title="Fixed points that make memory learnable",
    paper="2605.08746",
    where="the Memory-Pro case of its section on initial dynamics",
    says="By SGD, a tanh RNN at g = 1 rests at a loss of 0.111, that of a network without memory; "
    "with five fixed points planted in its initial weights it goes below.",
    measure=measure,
    settings={
        "units": 64,
        "planted": [0, 5],
        "learning_rate": 0.04,
        "batch": 20,
        "iterations": 6000,
        "points": 61,
    },
    quick={"units": 16, "iterations": 200, "points": 5},
    judge=judge,
    draw=draw,
    notes=notes,
)
