"""Whether P's collapse precedes or follows the fall of the loss."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from reproduction.intervals import excludes_zero, passes
from reproduction.results import attributes
from reproduction.row import Row
from reproduction.verdicts import Check, check, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARES = (0.25, 0.5, 0.75)
LAST = 10
"""Checkpoints at the end over which a curve's last level is averaged."""


def measure(
    seed: int,
    *,
    units: int,
    epochs: list[int],
    iterations: int,
    every: int,
    trials: int,
) -> xr.Dataset:
    """Loss without noise and rank of P P* over time, along the training of a GRU on Memory-Pro.

    Parameters
    ----------
    seed : int
        Of the weights, the trials and the batches.
    units : int
        Of the GRU.
    epochs : list of int
        Steps of stimulus, memory and response.
    iterations, every : int
        Of Adam; distance between the checkpoints that are measured.
    trials : int
        Noise-free trials, evenly spaced, on which loss and rank are measured.

    Returns
    -------
    Dataset
        ``loss`` and ``rank`` (step); ``blind_loss`` () of a network without a memory.
    """
    import kpops
    from reproduction import short

    evaluation = kpops.tasks.memory_pro(trials, angles="even", noise=0, steps=epochs)
    training = kpops.tasks.memory_pro(2000, steps=epochs, rng=seed)
    network = short.network("gru", training, units, seed)
    options = {"learning_rate": 2e-3, "batch_size": 64, "seed": seed}
    steps, losses, ranks = [], [], []
    for step in short.train(network, training, iterations, **options):
        if step % every:
            continue
        lin = kpops.linearize(network, evaluation.inputs)
        rank = kpops.effective_rank(lin.P @ lin.P.H, "variance", keep=("time",))
        steps.append(step)
        losses.append(short.loss(network, evaluation))
        ranks.append(float(rank.estimate))
    text = "variance rank of P P* over time"
    blind = short.blind_loss(evaluation)
    return xr.Dataset(
        {
            "loss": ("step", losses, attributes("mean squared error without noise")),
            "rank": ("step", ranks, attributes(text)),
            "blind_loss": ((), blind, attributes("loss of a network without a memory")),
        },
        {"step": ("step", steps, attributes("training iteration"))},
    )


def times(found: xr.Dataset, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Iterations of each seed at which this share of the fall is done, of the rank and the loss.

    The rank falls from its largest value, the loss from that of a network without a memory, each
    to its mean over the last checkpoints.
    """
    steps = found.step.values.astype(float)
    of_rank, of_loss = [], []
    for seed in range(found.sizes["seed"]):
        one = found.isel(seed=seed)
        rank, loss = one["rank"].values, one["loss"].values
        top = int(rank.argmax())
        level = rank[top] - share * (rank[top] - rank[-LAST:].mean())
        of_rank.append(passes(steps[top:], rank[top:], level))
        blind = float(one.blind_loss)
        of_loss.append(passes(steps, loss, blind - share * (blind - loss[-LAST:].mean())))
    return np.array(of_rank), np.array(of_loss)


def leads(found: xr.Dataset, share: float = 0.5) -> np.ndarray:
    """Iterations by which the fall of the rank precedes that of the loss, of each seed."""
    of_rank, of_loss = times(found, share)
    return of_loss - of_rank


def judge(found: xr.Dataset) -> list[Check]:
    """All networks learn and collapse; the interval of the lead excludes 0; its sign is robust."""
    halves = leads(found)
    others = [leads(found, share).mean() for share in SHARES if share != 0.5]
    end = found["loss"].isel(step=slice(-LAST, None)).mean("step") / found.blind_loss
    fall = found["rank"].isel(step=slice(-LAST, None)).mean("step") / found["rank"].max("step")
    return [
        check("loss ends below 0.2 of that without a memory", end.values, lambda v: v < 0.2),
        check("rank of P P* ends below half of its largest", fall.values, lambda v: v < 0.5),
        excludes_zero("lead of the rank in iterations, by half: 95 % interval excludes 0", halves),
        check(
            "mean lead by a quarter and by three quarters has the same sign",
            others,
            lambda lead: lead * halves.mean() > 0,
        ),
    ]


def draw(found: xr.Dataset) -> Figure:
    """Loss and rank of some seeds over training, and the leads."""
    from reproduction.figures import COLOURS, grid, legend

    figure, axes = grid(7.2, 2.9, 1, 3)
    top, ranks, last = axes[0]
    for seed in range(found.sizes["seed"]):
        one = found.isel(seed=seed)
        look = {"linewidth": 0.8, "alpha": 0.7}
        top.plot(found.step, one["loss"], color=COLOURS[1], **look)
        ranks.plot(found.step, one["rank"], color=COLOURS[0], **look)
    top.axhline(float(found.blind_loss[0]), color="0.4", linestyle=":", label="without a memory")
    top.set(xlabel="training iteration", ylabel="loss without noise", ylim=(0, 0.2))
    ranks.set(xlabel="training iteration", ylabel="variance rank of P P* over time", ylim=(0, None))
    legend(top)
    for share, colour in zip(SHARES, COLOURS[2:], strict=False):
        of_rank, of_loss = times(found, share)
        label = f"{100 * share:.0f} % of the fall"
        last.plot(of_rank, of_loss, "o", markersize=4, color=colour, label=label)
    ends = [0, 1.05 * max(last.get_xlim()[1], last.get_ylim()[1])]
    last.plot(ends, ends, ":", color="0.4")
    last.set(xlabel="iteration of the rank", ylabel="iteration of the loss", xlim=ends, ylim=ends)
    legend(last, loc="lower right")
    return figure


def notes(found: xr.Dataset) -> list[str]:
    """What was measured, and what its terms mean."""
    settings = json.loads(found.attrs["settings"])
    relative = leads(found) / times(found, 0.5)[1]
    return [
        f"GRUs of {settings['units']} units learn Memory-Pro with epochs of "
        f"{', '.join(map(str, settings['epochs']))} steps by Adam (learning rate 2e-3, batches of "
        f"64 of 2,000 noisy trials). Loss and rank are measured every {settings['every']} "
        "iterations. The rank first rises a little, so its fall is counted from its largest "
        "value; the loss first falls to that of a network without a memory, and is counted from "
        "there. A lead is the time of the loss less that of the rank: positive if the collapse "
        f"comes first. By half it is {spread(relative)} of the time of the loss.",
        "In these networks the collapse comes first in the mean, by "
        f"{leads(found).mean():.0f} iterations; in single seeds by {spread(leads(found))}.",
        "The settings and the two starting levels were chosen with one network of another seed, "
        "which does not count; the criterion has two sides.",
    ]


ROW = Row(
    name="collapse_leads_loss",
    title="P's collapse and the fall of the loss",
    paper="kpops",
    where="beyond the papers",
    says="P's rank over time collapses at another time than the loss falls, by a lead whose sign "
    "all shares of the fall agree on. (The papers show both together.)",
    measure=measure,
    settings={
        "units": 64,
        "epochs": [10, 10, 10],
        "iterations": 400,
        "every": 10,
        "trials": 8,
    },
    quick={"units": 32, "iterations": 200, "every": 20, "trials": 4},
    judge=judge,
    draw=draw,
    notes=notes,
    seeds=10,
)
