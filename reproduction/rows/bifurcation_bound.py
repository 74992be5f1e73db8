"""Near a bifurcation parameters move the state along one direction: ||D_R h|| / ||D_mu h||."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from reproduction.results import attributes
from reproduction.row import Row
from reproduction.rows.bifurcation_networks import FAMILIES, at_distance, slopes
from reproduction.verdicts import Check, between, check

if TYPE_CHECKING:
    from matplotlib.figure import Figure

READINGS = ("orthogonal, spectral", "orthogonal, Frobenius", "channels, spectral")
"""How the response is split, and the norm: the first is judged as the claim."""


def measure(seed: int, *, units: int, distances: Sequence[float]) -> xr.Dataset:
    """The ratio of the response outside the critical direction to that along it.

    Returns
    -------
    Dataset
        ``ratio`` (family, reading, target), ``critical`` and ``other`` (family, target), the two
        norms of the first reading, and ``distance`` (family, target) of the eigenvalue from 1.
    """
    import kpops

    shape = len(FAMILIES), len(distances)
    found, distance = np.empty((*shape, 5)), np.empty(shape)
    for at in np.ndindex(*shape):
        cell, point = at_distance(FAMILIES[at[0]], seed, units, distances[at[1]])
        lin = kpops.linearize_at(cell, point[None])
        channel = kpops.critical_channel(lin)
        distance[at] = 1 - float(channel.eigenvalue[0])
        response, critical = lin.sensitivity.to_dense(), channel.response.to_dense()
        found[at] = ratios(response, critical)
    dims = ("family", "target")
    return xr.Dataset(
        {
            "ratio": (
                (*dims, "reading"),
                found[..., :3],
                attributes("||D_R h|| / ||D_mu h||"),
            ),
            "critical": (dims, found[..., 3], attributes("||D_mu h||")),
            "other": (dims, found[..., 4], attributes("||D_R h||")),
            "distance": (dims, distance, attributes("distance of the leading eigenvalue from 1")),
        },
        coords={
            "family": ("family", list(FAMILIES), attributes("bifurcation")),
            "target": ("target", list(distances), attributes("planted distance")),
            "reading": ("reading", list(READINGS), attributes("split and norm")),
        },
    )


def ratios(response: np.ndarray, critical: np.ndarray) -> list[float]:
    """The three ratios, and the two norms of the first.

    Parameters
    ----------
    response : array (unit, parameter)
        dh*/dtheta.
    critical : array (unit, parameter)
        Its part r (l J) / (1 - lambda), whose rows are multiples of the direction mu.
    """
    mu = np.linalg.svd(critical, full_matrices=False)[2][0]
    along = response @ mu
    other = response - np.outer(along, mu)
    size = float(np.linalg.norm(along))
    outside = float(np.linalg.norm(other, 2))
    split = float(np.linalg.norm(response - critical, 2) / np.linalg.norm(critical, 2))
    return [outside / size, float(np.linalg.norm(other)) / size, split, size, outside]


def judge(found: xr.Dataset) -> list[Check]:
    """In proportion to d, by each reading; and by the first one below 0.01 at the smallest d."""
    checks = []
    for family in found.family.values:
        of = found.sel(family=family)
        for reading in found.reading.values:
            values = of.ratio.sel(reading=reading).transpose("seed", "target").values
            text = f"{family}, {reading}: slope of log ratio in log d from 0.9 to 1.1"
            checks.append(check(text, slopes(of.distance.values, values), between(0.9, 1.1)))
        text = f"{family}, {READINGS[0]}: ratio at the smallest d below 0.01"
        values = of.ratio.sel(reading=READINGS[0]).isel(target=-1).values
        checks.append(check(text, values, lambda value: value < 0.01))
    return checks


def draw(found: xr.Dataset) -> Figure:
    """Both norms, and the ratio, against the distance; lines are seeds."""
    from reproduction.figures import COLOURS, grid, legend

    figure, axes = grid(7.2, 3.3, 1, 3)
    for ax, family in zip(axes[0], found.family.values, strict=False):
        of = found.sel(family=family)
        for colour, name, text in zip(
            COLOURS, ("critical", "other"), ("||D_mu h||", "||D_R h||"), strict=False
        ):
            ax.plot(of.distance.T, of[name].T, ".-", color=colour, label=text, linewidth=0.8)
        ax.set_title(family)
    ratio = axes[0, 2]
    for colour, family in zip(COLOURS[2:], found.family.values, strict=False):
        of = found.sel(family=family)
        lines = of.ratio.sel(reading=READINGS[0]).transpose("target", "seed")
        ratio.plot(of.distance.T, lines, ".-", color=colour, label=family, linewidth=0.8)
    d = np.geomspace(float(found.distance.min()), float(found.distance.max()), 2)
    ratio.plot(d, 2 * d, ":", color="0.3", label="slope 1")
    ratio.set_title("||D_R h|| / ||D_mu h||")
    axes[0, 0].set_ylabel("norm of the response")
    for ax in axes[0]:
        ax.set(xscale="log", yscale="log", xlabel="distance d = 1 - lambda")
        legend(ax, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    return figure


def notes(found: xr.Dataset) -> list[str]:
    """The definition."""
    return [
        "The paper's text was not at hand beyond its abstract, so the definition is ours, from the "
        "response of a fixed point, dh*/dtheta = sum_i r_i (l_i J) / (1 - lambda_i). mu is the "
        "unit vector of parameters along l J of the eigenvalue nearest to 1: the direction that "
        "changes the normal form's parameter. D_mu h is the response along it, and D_R h that to "
        "all parameters orthogonal to it, R. 'Channels' splits the response by eigenvectors "
        "instead: the rest is dh*/dtheta less the critical term.",
        "By each reading the rest stays bounded (fold), or falls with the amplitude (pitchfork), "
        "while D_mu h grows faster by one power of d. The networks are those of the row on the "
        "collapse.",
    ]


ROW = Row(
    name="bifurcation_bound",
    title="The response outside the critical direction",
    paper="2605.12763",
    where="Bound of the residual channel",
    says="Near a bifurcation ||D_R h|| / ||D_mu h|| tends to zero: all parameters but the one of "
    "the normal form hardly move the state.",
    measure=measure,
    settings={"units": 64, "distances": [0.3, 0.1, 0.03, 0.02, 0.01, 0.003, 0.001]},
    quick={"units": 16, "distances": [0.1, 0.02, 0.005, 0.001]},
    judge=judge,
    draw=draw,
    notes=notes,
)
