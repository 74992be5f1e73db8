"""The state-space NTK tends to rank one as the leading eigenvalue of a fixed point tends to 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from reproduction.results import attributes
from reproduction.row import Row
from reproduction.rows.bifurcation_networks import FAMILIES, at_distance, slopes
from reproduction.verdicts import STRONG, Check, between, check, rises

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def measure(seed: int, *, units: int, distances: Sequence[float], steps: int) -> xr.Dataset:
    """Rank, largest eigenvalue and rest of P K P* at fixed points, and its rank on trajectories.

    Returns
    -------
    Dataset
        Over (family, target): ``distance``, that of the eigenvalue from 1; ``effective_rank`` and
        ``largest`` eigenvalue of P K P* at the fixed point; ``predicted``, the leading term of the
        largest one; ``residual`` outside the critical channel; ``trajectory_rank`` of a trajectory
        of `steps` steps that settles on the point.
    """
    import kpops

    names = ("distance", "effective_rank", "largest", "predicted", "residual", "trajectory_rank")
    values = np.empty((len(FAMILIES), len(distances), len(names)))
    for at in np.ndindex(values.shape[:2]):
        family, target = FAMILIES[at[0]], distances[at[1]]
        cell, point = at_distance(family, seed, units, target)
        lin = kpops.linearize_at(cell, point[None])
        channel = kpops.critical_channel(lin)
        start = np.random.default_rng([seed, *at]).normal(size=units)
        start = point + 0.1 * target * start / np.linalg.norm(start)
        run = kpops.linearize(cell, np.zeros((1, steps, 1)), h0=start)
        values[at] = (
            1 - float(channel.eigenvalue[0]),
            float(kpops.effective_rank(lin.flow).estimate),
            float(kpops.eigsh(lin.flow, 1, rng=0).eigenvalue[0]),
            leading_term(cell, point),
            channel.residual,
            float(kpops.effective_rank(run.flow, num_matvecs=64, rng=0).estimate),
        )
    texts = {
        "distance": "distance d of the leading eigenvalue from 1",
        "effective_rank": "effective rank (participation) of P K P* at the point",
        "largest": "largest eigenvalue of P K P* at the point",
        "predicted": "|r|^2 (l K l) / d^2",
        "residual": "rest outside the critical channel, relative",
        "trajectory_rank": "effective rank (participation) of P K P* on a trajectory",
    }
    return xr.Dataset(
        {
            name: (("family", "target"), values[..., i], attributes(texts[name]))
            for i, name in enumerate(names)
        },
        coords={
            "family": ("family", list(FAMILIES), attributes("bifurcation")),
            "target": ("target", list(distances), attributes("planted distance")),
        },
    )


def leading_term(cell: object, point: np.ndarray) -> float:
    """The eigenvalue of the critical channel, by NumPy's eigenvectors and K in closed form.

    K of a tanh cell at one point is diagonal: ``(1 - h^2)^2`` times the squared length of what the
    weights and biases multiply, ``|h|^2``, and 1 for each of two biases.
    """
    W = cell.weight_hh.detach().numpy()  # type: ignore[attr-defined]
    biases = 2 if cell.bias else 0  # type: ignore[attr-defined]
    slope = 1 - point**2
    values, right = np.linalg.eig(slope[:, None] * W)
    i = int(np.argmin(abs(values - 1)))
    left = np.linalg.inv(right)[i].real
    K = slope**2 * (point @ point + biases)
    return float((right[:, i].real ** 2).sum() * (left**2 * K).sum() / (1 - values[i].real) ** 2)


def judge(found: xr.Dataset) -> list[Check]:
    """Rank one in the limit, d^-2 at folds and d^-1 on arms, and a rest in proportion to d."""
    checks = []
    for family, power in (("fold", -2), ("pitchfork", -1)):
        of = found.sel(family=family)
        d = of.distance.values
        last = of.isel(target=-1)
        text = f"{family}: effective rank at the smallest d below 1.01"
        checks.append(check(text, last.effective_rank.values, lambda value: value < 1.01))
        text = f"{family}: effective rank rises with d, rank correlation"
        values = [rises(x, y) for x, y in zip(d, of.effective_rank.values, strict=True)]
        checks.append(check(text, values, lambda value: value >= STRONG))
        text = f"{family}: slope of log largest eigenvalue in log d, {power} +- 0.05"
        checks.append(
            check(text, slopes(d, of.largest.values), between(power - 0.05, power + 0.05))
        )
        text = f"{family}: largest eigenvalue over |r|^2 (l K l) / d^2 at the smallest d, 1 +- 0.02"
        checks.append(check(text, (last.largest / last.predicted).values, between(0.98, 1.02)))
        text = f"{family}: slope of log rest in log d from 0.9 to 1.1"
        checks.append(check(text, slopes(d, of.residual.values), between(0.9, 1.1)))
        text = f"{family}: effective rank on a settling trajectory at the smallest d below 1.1"
        checks.append(check(text, last.trajectory_rank.values, lambda value: value < 1.1))
    return checks


def draw(found: xr.Dataset) -> Figure:
    """Ranks, largest eigenvalues and rests against the distance; lines are seeds."""
    from reproduction.figures import COLOURS, grid, legend

    figure, axes = grid(7.2, 3.2, 1, 3)
    ranks, largest, rest = axes[0]
    for colour, family in zip(COLOURS, found.family.values, strict=False):
        of = found.sel(family=family)
        d = of.distance.T
        look = {"color": colour, "marker": ".", "linewidth": 0.8, "markersize": 3}
        ranks.plot(d, of.effective_rank.T, label=f"{family}, at the point", **look)
        ranks.plot(d, of.trajectory_rank.T, label=f"{family}, trajectory", ls="--", **look)
        largest.plot(d, of.largest.T, label=family, **look)
        rest.plot(d, of.residual.T, label=family, **look)
    d = np.geomspace(float(found.distance.min()), float(found.distance.max()), 2)
    low = found.isel(target=-1).median("seed")
    for family, power, style in (("fold", -2, ":"), ("pitchfork", -1, "-.")):
        end = low.sel(family=family)
        scale = float(end.largest) * (d / float(end.distance)) ** power
        largest.plot(d, scale, style, color="0.3", label=f"theory: slope {power}")
    end = low.sel(family="fold")
    rest.plot(d, float(end.residual) * d / float(end.distance), ":", color="0.3",
              label="theory: slope 1")  # fmt: skip
    ranks.axhline(1, color="0.6", linewidth=0.6)
    ranks.set(title="effective rank", yscale="log")
    largest.set(title="largest eigenvalue", yscale="log")
    rest.set(title="rest, relative", yscale="log")
    for ax in axes[0]:
        ax.set(xscale="log", xlabel="distance d = 1 - lambda")
        legend(ax, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return figure


def notes(found: xr.Dataset) -> list[str]:
    """The two families, and why their powers differ."""
    return [
        "Random tanh networks of 64 units with one planted eigenvalue, whose left and right "
        "eigenvectors differ (non-normal), and a bulk of radius about 0.5. 'Fold': weights and "
        "biases learn, the fixed point has any values, and the forcing l J of the critical mode "
        "does not vanish. 'Pitchfork': only weights learn, and the point is on an arm of the "
        "pitchfork of the rest, as in the paper's toy.",
        "The largest eigenvalue grows as 1 / d^2 at the fold. On an arm the forcing is itself in "
        "proportion to the amplitude, hence to the root of d, and 1 / d remains: the (dz/dmu)^2 = "
        "1 / (4 mu) of the normal form z' = mu z - z^3, with d = 2 mu. Dividing by d^2 in the "
        "theory stated for l J of order one holds for folds.",
        "The text of the paper was not at hand beyond its abstract, so that its networks and "
        "distances are not reproduced; the claim is that of the abstract. A settling trajectory "
        f"starts at a distance of d / 10 from the point; it has a rank of "
        f"{float(found.trajectory_rank.isel(target=-1).max()):.3f} at most at the smallest d.",
    ]


ROW = Row(
    name="bifurcation_collapse",
    title="Collapse of the state-space NTK near a bifurcation",
    paper="2605.12763",
    where="Abstract and its theorem",
    says="Near bifurcations of codimension one the state-space NTK P K P* tends to a rank-one "
    "operator, highly amplified, which is learning in the normal form.",
    measure=measure,
    settings={
        "units": 64,
        "distances": [0.3, 0.1, 0.03, 0.02, 0.01, 0.003, 0.001],
        "steps": 300,
    },
    quick={"units": 16, "distances": [0.1, 0.02, 0.005, 0.001], "steps": 60},
    judge=judge,
    draw=draw,
    notes=notes,
)
