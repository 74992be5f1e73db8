"""Two units learn from two others: the effective rank of P K P* while eigenvalues cross 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from reproduction.results import attributes
from reproduction.row import Row
from reproduction.verdicts import Check, check

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

TEACHER, STUDENT = (1.5, 1.2), (0.5, 0.6)

READINGS = {
    "map, 20 steps": {"leak": 1.0, "time": 20, "diagonal": False},
    "map, 40 steps": {"leak": 1.0, "time": 40, "diagonal": False},
    "map, diagonal": {"leak": 1.0, "time": 20, "diagonal": True},
    "flow, 40 steps of 0.3": {"leak": 0.3, "time": 40, "diagonal": False},
}
"""What the abstract leaves open; the first, that of the gallery of kpops, is judged."""


def measure(
    seed: int, *, readings: Sequence[str], rate: float, steps: int, every: int, trials: int
) -> xr.Dataset:
    """Eigenvalues, loss and ranks over training by gradient descent.

    The student ``h <- (1 - a) h + a tanh(W h)`` starts from W = diag(0.5, 0.6) and imitates a
    teacher with diag(1.5, 1.2) from random states, standard deviation 0.5, at all steps.

    Returns
    -------
    Dataset
        Over (reading, step): ``effective_rank`` (participation) of P K P* of all trajectories,
        ``loss``, ``eigenvalue`` (also over ``number``, falling) of W, and ``cosine`` between the
        leading direction of the parameters and that which moves the leading eigenvalue.
    """
    shape = len(readings), steps // every + 1
    rank, loss, cosine = np.empty((3, *shape))
    eigenvalues = np.empty((*shape, 2))
    for i, reading in enumerate(readings):
        for j, row in enumerate(_descend(seed, READINGS[reading], rate, steps, every, trials)):
            rank[i, j], loss[i, j], cosine[i, j], *eigenvalues[i, j] = row
    dims = ("reading", "step")
    return xr.Dataset(
        {
            "effective_rank": (dims, rank, attributes("effective rank (participation) of P K P*")),
            "loss": (dims, loss, attributes("loss")),
            "cosine": (dims, cosine, attributes("cosine of parameter directions")),
            "eigenvalue": ((*dims, "number"), eigenvalues, attributes("eigenvalue of W")),
        },
        coords={
            "reading": ("reading", list(readings), attributes("reading")),
            "step": ("step", np.arange(0, steps + 1, every), attributes("training iteration")),
            "number": ("number", [0, 1], attributes("number of the eigenvalue")),
        },
    )


def cell(weights: Sequence[float], leak: float, diagonal: bool) -> torch.nn.Module:
    """A leaky tanh cell that ignores its input, of which the diagonal or all weights learn."""
    import torch

    class Cell(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            start = torch.tensor(weights, dtype=torch.float64)
            self.W = torch.nn.Parameter(start if diagonal else torch.diag(start))

        def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
            drive = h * self.W if diagonal else h @ self.W.T
            return (1 - leak) * h + leak * torch.tanh(drive)

    return Cell()


def states(module: torch.nn.Module, starts: torch.Tensor, time: int) -> torch.Tensor:
    """States (trial, time, unit)."""
    import torch

    found = [starts]
    for _ in range(time):
        found.append(module(starts, found[-1]))
    return torch.stack(found[1:], 1)


def _descend(
    seed: int, reading: dict, rate: float, steps: int, every: int, trials: int
) -> list[list[float]]:
    """Train; rank, loss, cosine and eigenvalues at each checkpoint."""
    import torch

    kind, time = (reading["leak"], reading["diagonal"]), reading["time"]
    starts = torch.from_numpy(0.5 * np.random.default_rng(seed).normal(size=(trials, 2)))
    student = cell(STUDENT, *kind)
    with torch.no_grad():
        target = states(cell(TEACHER, *kind), starts, time)
    optimizer = torch.optim.SGD(student.parameters(), rate)
    rows = []
    for step in range(steps + 1):
        loss = (states(student, starts, time) - target).square().mean()
        if step % every == 0:
            rank, direction = kernel(student, starts, time)
            values, towards = leading(student.W.detach().numpy())
            rows.append([rank, loss.item(), float(abs(direction @ towards)), *values])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return rows


def kernel(module: torch.nn.Module, starts: torch.Tensor, time: int) -> tuple[float, np.ndarray]:
    """Effective rank of P K P*, and its leading direction of the parameters.

    By the Gram matrix of the parameters, which has the same nonzero eigenvalues.
    """
    import kpops

    lin = kpops.linearize(module, np.zeros((len(starts), time, 1)), h0=starts.numpy())
    response = lin.sensitivity.to_dense()
    gram = response.T @ response
    return float(kpops.effective_rank(gram).estimate), np.linalg.eigh(gram)[1][:, -1]


def leading(W: np.ndarray) -> tuple[list[float], np.ndarray]:
    """Falling eigenvalues of W, or of diag(W), and the direction that moves the first."""
    matrix = np.diag(W) if W.ndim == 1 else W
    values, right = np.linalg.eig(matrix)
    order = np.argsort(-values.real)
    first = order[0]
    towards = np.outer(np.linalg.inv(right)[first], right[:, first]).real
    towards = np.diag(towards) if W.ndim == 1 else towards.ravel()
    return list(values.real[order]), towards / np.linalg.norm(towards)


def crossing(steps: np.ndarray, values: np.ndarray) -> float:
    """Step at which a value first passes 1, on the line between checkpoints; NaN if never."""
    above = np.flatnonzero(values > 1)
    if not above.size or above[0] == 0:
        return np.nan
    i = above[0]
    return float(np.interp(1, values[i - 1 : i + 1], steps[i - 1 : i + 1]))


def dips(one: xr.Dataset) -> dict[str, float]:
    """Of one seed and reading: both crossings, the lowest ranks near them, and the peak between.

    Near is within 30 % of the first crossing, but less than half of the way between both.
    """
    steps, rank = one.step.values, one.effective_rank.values
    first, second = (crossing(steps, one.eigenvalue.sel(number=k).values) for k in (0, 1))
    width = np.nanmin([0.3 * first, (second - first) / 2])
    found = {"first": first, "second": second, "start": float(rank[0])}
    for name, when in (("first", first), ("second", second)):
        near = abs(steps - when) <= width
        found[f"{name} rank"] = float(rank[near].min()) if near.any() else np.nan
        if name == "first" and near.any():
            found["cosine"] = float(one.cosine.values[near][rank[near].argmin()])
    between = (steps > first) & (steps < second)
    found["peak"] = float(rank[between].max()) if between.any() else np.nan
    return found


def all_dips(found: xr.Dataset, reading: str) -> dict[str, list[float]]:
    """The same for all seeds; NaN where something is missing."""
    of = found.sel(reading=reading)
    each = [dips(of.sel(seed=seed)) for seed in found.seed.values]
    names = ("first", "second", "start", "first rank", "second rank", "cosine", "peak")
    return {name: [one.get(name, np.nan) for one in each] for name in names}


def judge(found: xr.Dataset, reading: str | None = None) -> list[Check]:
    """Both eigenvalues cross, and the rank dips to nearly 1 where they do."""
    of = all_dips(found, reading or str(found.reading.values[0]))
    text = "both eigenvalues pass 1, one after the other: iterations between"
    gap = np.subtract(of["second"], of["first"])
    checks = [check(text, gap, lambda value: value > 0)]
    text = "lowest effective rank near the first crossing at most 1.2"
    checks.append(check(text, of["first rank"], lambda value: value <= 1.2))
    text = "that rank over the one before training at most 0.8"
    fall = np.divide(of["first rank"], of["start"])
    checks.append(check(text, fall, lambda value: value <= 0.8))
    text = "cosine there of the leading direction with that of the leading eigenvalue at least 0.9"
    checks.append(check(text, of["cosine"], lambda value: value >= 0.9))
    text = "lowest effective rank near the second crossing at most 1.2"
    checks.append(check(text, of["second rank"], lambda value: value <= 1.2))
    text = "that rank over the highest between the crossings at most 0.95: a dip of its own"
    again = np.divide(of["second rank"], of["peak"])
    checks.append(check(text, again, lambda value: value <= 0.95))
    return checks


def draw(found: xr.Dataset) -> Figure:
    """Ranks, with eigenvalues below, of each reading; lines are seeds."""
    from reproduction.figures import COLOURS, grid, legend

    figure, axes = grid(7.2, 4.2, 2, found.sizes["reading"], sharex="col", sharey="row")
    for (top, low), reading in zip(axes.T, found.reading.values, strict=True):
        of = found.sel(reading=reading)
        top.plot(of.step, of.effective_rank.T, color=COLOURS[0], linewidth=0.8)
        for colour, number in zip(COLOURS[1:], of.number.values, strict=False):
            lines = of.eigenvalue.sel(number=number)
            low.plot(of.step, lines.T, color=colour, linewidth=0.8, label=f"number {number + 1}")
            for seed in found.seed.values:
                when = crossing(of.step.values, lines.sel(seed=seed).values)
                for ax in (top, low):
                    ax.axvline(when, color=colour, alpha=0.25, linewidth=0.6)
        low.axhline(1, color="0.6", linewidth=0.6)
        top.set_title(reading, fontsize=8)
        low.set_xlabel("training iteration")
    axes[0, 0].set_ylabel("effective rank of P K P*")
    axes[1, 0].set_ylabel("eigenvalue of W")
    legend(axes[1, 0])
    return figure


def notes(found: xr.Dataset) -> list[str]:
    """The readings, how many criteria each meets, and their lowest ranks."""
    from reproduction.verdicts import spread

    counts, ranks = [], []
    for reading in found.reading.values:
        checks = judge(found, str(reading))
        counts.append(f"{reading}: {sum(c.holds for c in checks)} of {len(checks)}")
        of = all_dips(found, str(reading))
        both = [spread([v for v in of[k] if np.isfinite(v)]) for k in ("first rank", "second rank")]
        ranks.append(f"{reading}: {both[0]} and {both[1]}")
    return [
        "Two tanh units without input learn from two others, from 32 random states, by gradient "
        "descent on the mean square difference of all states. The paper's text was not at hand "
        "beyond its abstract and the two matrices, so that the time, the trials, the learning rate "
        "and which weights learn are open. The first reading is that of kpops' gallery, chosen "
        "before the ranks were seen.",
        "Readings, and the criteria that hold for all seeds: " + "; ".join(counts) + ".",
        "Lowest ranks near the first and the second crossing: " + "; ".join(ranks) + ". The rank "
        "falls at the first crossing by each reading, and one direction of the parameters leads, "
        "that of the eigenvalue. With the diagonal alone it falls to nearly 1, the reading that "
        "fits the first collapse best. With all weights it falls the further the longer the "
        "trajectories: in 20 steps a mode at the bifurcation grows 20-fold at most. The flow needs "
        "more time still. So the bound of 1.2 is one on the length of the trials.",
    ]


ROW = Row(
    name="bifurcation_toy",
    title="Two memories learned one after the other",
    paper="2605.12763",
    where="Student and teacher of two units",
    says="From diag(0.5, 0.6) to diag(1.5, 1.2): the first bifurcation that is learned coincides "
    "with a sharp collapse of the effective rank of the state-space NTK and one dominant direction "
    "of the parameters.",
    measure=measure,
    settings={
        "readings": list(READINGS),
        "rate": 0.02,
        "steps": 600,
        "every": 10,
        "trials": 32,
    },
    quick={"readings": ["map, 20 steps"], "rate": 0.04, "steps": 400, "every": 20},
    judge=judge,
    draw=draw,
    notes=notes,
)
