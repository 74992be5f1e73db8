"""Which tasks are alike: Green's maps of 15 tasks, and pairs of tasks of one family."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from reproduction.results import attributes
from reproduction.row import Row
from reproduction.verdicts import Check, check, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    import kpops
    from reproduction.multitask import Leaky

MOMENTS = ("before training", "after training")
MAPS = ("units", "times", "states")
FAMILIES = {
    "three": {"Delay": 0, "Memory": 0, "React": 0, "Integration": 1, "Compare": 2},
    "five": {"Delay": 0, "Memory": 1, "React": 2, "Integration": 3, "Compare": 4},
}
STEPS = {
    "Delay": {"context": 25, "stimulus1": 75, "response": 25},
    "Memory": {"context": 25, "stimulus1": 25, "memory1": 50, "response": 25},
    "React": {"context": 100, "response": 25},
    "Integration": {
        "context": 25,
        "stimulus1": 20,
        "memory1": 25,
        "stimulus2": 20,
        "memory2": 10,
        "response": 25,
    },
    "Compare": {"context": 25, "stimulus1": 25, "memory1": 50, "response": 25},
}
"""Durations of epochs, such that all tasks have 125 steps and their maps can be compared."""
PAPER = {"auc": 0.93, "average_precision": 0.80}
LOWER = {"auc": 0.07, "average_precision": 0.15}


def measure(seed: int, *, units: int, steps: int, trials: int, permutations: int) -> xr.Dataset:
    """Similarities of 15 tasks before and after one network learns them, and their scores.

    Parameters
    ----------
    seed : int
        Of the weights and of the training.
    units, steps : int
        Of the network; iterations of the training.
    trials : int
        Noise-free trials of each task.
    permutations : int
        Exchanges of families between tasks, for p-values.

    Returns
    -------
    Dataset
        ``auc``, ``average_precision`` (moment, map, grouping) and ``auc_p``, how well similarities
        tell pairs within a family from other pairs, for the maps of :func:`reduced` and, as a
        baseline, the covariance of the states; ``similarity`` (moment, task, task_in), that of the
        maps over units.
    """
    from reproduction.multitask import Multitask

    training = Multitask(seed, units, steps)
    models = (training.network(), training.trained())
    found = [_of(model, trials, permutations) for model in models]
    names = np.array(MOMENTS, dtype=object)
    return xr.concat(
        found, xr.Variable("moment", names, attributes("moment")), combine_attrs="drop_conflicts"
    )


def _of(model: Leaky, trials: int, permutations: int) -> xr.Dataset:
    import kpops
    from reproduction.multitask import evaluation

    maps: dict[str, dict[str, xr.DataArray]] = {name: {} for name in MAPS}
    for name in kpops.tasks.DRISCOLL_TASKS:
        task = evaluation(name, trials, STEPS[kind_of(name)])
        lin = kpops.linearize(model.cell, task.inputs.astype("float32"))
        for kind, values in reduced(lin).items():
            maps[kind][name] = xr.DataArray(values, dims=("trial", "row", "column"))
    scores = xr.concat(
        [
            xr.concat([_scored(maps[m], g, permutations) for g in FAMILIES], "grouping")
            for m in MAPS
        ],
        "map",
    )
    text = {"map": "map of each trial", "grouping": "families of tasks"}
    labels = {"map": MAPS, "grouping": tuple(FAMILIES)}
    coords = {k: (k, np.array(v, dtype=object), attributes(text[k])) for k, v in labels.items()}
    similarity = kpops.task_similarity(maps["units"], n_splits=0, n_permutations=0).similarity
    shown = similarity.drop_attrs().assign_attrs(attributes("cosine of Green's maps of units"))
    for name in ("task", "task_in"):
        shown[name].attrs = attributes("task")
    return scores.assign_coords(coords).assign(similarity=shown.astype("float32"))


def _scored(maps: dict[str, xr.DataArray], grouping: str, permutations: int) -> xr.Dataset:
    import kpops

    families = {name: FAMILIES[grouping][kind_of(name)] for name in maps}
    options = {"n_splits": 0, "n_permutations": permutations, "rng": 0}
    found = kpops.task_similarity(maps, families=families, **options)
    names = {
        "auc": "area under the ROC curve",
        "average_precision": "average precision",
        "auc_p": "p-value of the area",
    }
    return xr.Dataset(
        {name: ((), float(found[name]), attributes(text)) for name, text in names.items()}
    )


def kind_of(task: str) -> str:
    """The kind of a task, of which the durations of its epochs depend."""
    if "2Sample" in task or "Category" in task:
        return "Compare"
    if "Int" in task:
        return "Integration"
    return task.removesuffix("Pro").removesuffix("Anti")


def reduced(lin: kpops.Linearization) -> dict[str, np.ndarray]:
    """Maps of each trial: Green's operator over units and over times, and the states.

    Returns
    -------
    dict
        ``"units"`` (trial, unit, unit): the sum over times t and s of ``P[t, s] - I d_ts``, over
        the number of steps. ``"times"`` (trial, time, time): ``1^T (P[t, s] - I d_ts) 1`` over the
        number of units. ``"states"`` (trial, unit, unit): the covariance of the states over time,
        which needs no operator.
    """
    import torch

    states = torch.from_numpy(np.asarray(lin.states.values))
    trials, times, units = states.shape
    pushes = torch.eye(units, dtype=lin.dtype)[:, None, None, :].expand(-1, trials, times, -1)
    answers = lin.P.apply(pushes.contiguous()) - pushes
    over_units = answers.sum(2).movedim(0, 2) / times
    moments = torch.eye(times, dtype=lin.dtype)[:, None, :, None].expand(-1, trials, -1, units)
    over_times = (lin.P.apply(moments.contiguous()) - moments).sum(3).movedim(0, 2) / units
    centred = states - states.mean(1, keepdim=True)
    covariance = centred.transpose(1, 2) @ centred / times
    found = {"units": over_units, "times": over_times, "states": covariance}
    return {name: values.numpy() for name, values in found.items()}


def judge(found: xr.Dataset) -> list[Check]:
    """The scores of the maps over units reach the paper's within a tolerance."""
    of = found.sel(moment=MOMENTS[1], map="units", grouping="three")
    checks = []
    for name, text in (("auc", "area under the ROC curve"), ("average_precision", "precision")):
        bound = PAPER[name] - LOWER[name]
        say = f"{text} after training at least {bound:.2f} (paper {PAPER[name]:.2f}"
        criterion = f"{say} - {LOWER[name]:g})"
        checks.append(check(criterion, of[name].values, lambda v, bound=bound: v >= bound))
    text = "p-value of the area at most 0.01"
    return [*checks, check(text, of.auc_p.values, lambda v: v <= 0.01)]


def draw(found: xr.Dataset) -> Figure:
    """The mean similarity after training, and the scores beside the paper's."""
    from reproduction.figures import COLOURS, grid, legend

    figure, axes = grid(7.2, 3.5, 1, 2, width_ratios=[1.4, 1])
    left, right = axes[0]
    similarity = found.similarity.sel(moment=MOMENTS[1]).mean("seed").values
    image = left.imshow(similarity, cmap="viridis", vmax=1)
    names = [str(name) for name in found.task.values]
    left.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    left.set_yticks(range(len(names)), names, fontsize=6)
    left.set_title("Green's maps after training")
    figure.colorbar(image, ax=left, label="cosine, mean of seeds", shrink=0.8)
    for at, score in enumerate(PAPER):
        for shift, moment, colour in ((-0.25, MOMENTS[0], COLOURS[5]), (0, MOMENTS[1], COLOURS[0])):
            values = found[score].sel(moment=moment, map="units", grouping="three").values
            x = np.full(len(values), at + shift)
            right.plot(x, values, "o", markersize=4, alpha=0.7, color=colour, label=moment)
        states = found[score].sel(moment=MOMENTS[1], map="states", grouping="three").values
        x = np.full(len(states), at + 0.25)
        label = "covariance of states, after"
        right.plot(x, states, "s", markersize=3, alpha=0.7, color=COLOURS[2], label=label)
        right.plot([at - 0.12, at + 0.12], [PAPER[score]] * 2, color=COLOURS[1], label="paper")
    right.set(xticks=[0, 1], xlim=(-0.5, 1.5), ylim=(0, 1.02))
    right.set_xticklabels(["area under\nthe ROC curve", "average\nprecision"])
    right.set_ylabel("score of pairs within a family")
    legend(right, loc="upper center", bbox_to_anchor=(0.5, -0.25))
    return figure


def notes(found: xr.Dataset) -> list[str]:
    """How it was measured, and what differs from the paper."""
    settings = json.loads(found.attrs["settings"])
    after = found.sel(moment=MOMENTS[1])
    before = found.auc.sel(moment=MOMENTS[0], map="units", grouping="three").values

    def both(of: xr.Dataset) -> str:
        return f"{spread(of.auc.values, 2)} and {spread(of.average_precision.values, 2)}"

    return [
        f"The networks are those of the other rows of this paper: {settings['units']} units and "
        f"{settings['steps']:,} iterations instead of 256 and 680,000. Maps are means of "
        f"{settings['trials']} noise-free trials of 125 steps. A map over units is the sum over "
        "times of P[t, s], less the identity at t = s.",
        "The families are three: tasks that respond to one stimulus (six), that integrate (five), "
        "and that compare two (four). Which reduction and which families the paper has is not "
        "known here; these were chosen before the measurement. Area and precision after training "
        f"for five families (Delay, Memory and React apart): "
        f"{both(after.sel(map='units', grouping='five'))}; for maps over times, "
        f"1^T (P[t, s] - I d) 1 / N: {both(after.sel(map='times', grouping='three'))}; for the "
        f"covariance of the states: {both(after.sel(map='states', grouping='three'))} (paper "
        f"0.852 and 0.591), for five families {both(after.sel(map='states', grouping='five'))}. "
        f"Before training the area is {spread(before, 2)}.",
        "Under the three families the claim does not hold: the five integration tasks and the two "
        "category tasks have maps that are much alike, but the six tasks with one stimulus do not "
        "(ReactPro and ReactAnti are like no other), and their pairs are half of those within a "
        "family. With Delay, Memory and React apart the maps over units do better, below the "
        "paper. Left to try: more units and iterations, since the tasks are not all learned, and "
        "the paper's own reduction and families.",
    ]


ROW = Row(
    name="greens_task_similarity",
    title="Green's maps of tasks that share structure",
    paper="2609.40292",
    where="Equation 4 and its figure",
    says="The similarity of the tasks' Green's maps tells pairs of tasks that share structure from "
    "others: area under the ROC curve 0.93, average precision 0.80.",
    measure=measure,
    settings={"units": 128, "steps": 8000, "trials": 4, "permutations": 999},
    quick={"units": 16, "steps": 60, "trials": 4, "permutations": 99},
    judge=judge,
    draw=draw,
    notes=notes,
)
