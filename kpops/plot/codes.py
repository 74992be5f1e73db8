"""Symbolic codes: the graph of their transitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from kpops.plot import style as look

_SOURCE = "kpops.reconstruction.symbolic_code"
_MOST, _WRITTEN = 20, 6
"""Numbers of regions up to which they are drawn, and up to which probabilities are written."""
_RADII = 0.15, 0.32
"""Radii of regions of share 0 and 1; the circle on which they are has radius 1."""


def transitions(code: xr.Dataset, ax: Any = None) -> Any:
    """Plot the regions of a symbolic code as a graph: which follows which, and how often.

    Parameters
    ----------
    code : Dataset
        What :func:`kpops.reconstruction.symbolic_code` returns.
    ax : matplotlib Axes, default: in a new figure

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If `code` is something else, or has more than 20 regions.

    Notes
    -----
    The area of a region grows with its share of the visits, and the width of an arrow with the
    probability of the transition. Regions carry the pattern of their relus, or else their numbers,
    and follow each other clockwise by their patterns.

    Examples
    --------
    >>> import torch, kpops
    >>> cell = kpops.models.PLRNNCell(1, 2)
    >>> code = kpops.reconstruction.symbolic_code(cell, torch.randn(4, 50, 2))
    >>> ax = kpops.plot.transitions(code)
    >>> sorted(text.get_text() for text in ax.texts if len(text.get_text()) == 2)
    ['00', '01', '10', '11']
    """
    chance = look.variable(code, ("probability",), _SOURCE, ("region", "next_region"))
    share = look.variable(code, ("share",), _SOURCE, ("region",)).values
    n = len(share)
    if n > _MOST:
        raise ValueError(
            f"the code has {n} regions, of which no graph can be read: draw code.probability as a "
            "heat map, or the code of fewer relus"
        )
    bits = [str(text) for text in code["bits"].values] if "bits" in code.coords else [""] * n
    names = bits if 0 < max(map(len, bits)) <= 6 else [str(i) for i in code["region"].values]
    ax = look.get_axes(ax, height=look.COLUMN)
    angle = np.empty(n)
    angle[np.argsort(bits, kind="stable")] = np.pi - 2 * np.pi * np.arange(n) / n
    places = np.stack([np.cos(angle), np.sin(angle)], 1) if n > 1 else np.zeros((1, 2))
    radii = np.sqrt(_RADII[0] ** 2 + share * (_RADII[1] ** 2 - _RADII[0] ** 2))
    for i, j in np.argwhere(chance.values > 0):
        p = float(chance.values[i, j])
        style = {"linewidth": 0.4 + 2.6 * p, "color": look.GREY, "zorder": 1}
        at = _loop(ax, places[i], radii[i], n, style) if i == j else None
        at = _arrow(ax, places[[i, j]], radii[[i, j]], style) if at is None else at
        if n <= _WRITTEN:
            text = f"{p:.2g}" if p < 0.995 else "1"
            ax.text(*at, text, size=look.small(ax), ha="center", va="center", color="0.2")
    for i in range(n):
        _region(ax, places[i], radii[i], names[i], look.COLOURS[i % len(look.COLOURS)])
    ax.set_aspect("equal")
    ax.set(xlim=(-1.75, 1.75), ylim=(-1.6, 1.6))
    ax.set_axis_off()
    return ax


def _region(ax: Any, place: np.ndarray, radius: float, name: str, colour: str) -> None:
    from matplotlib.patches import Circle

    ax.add_patch(Circle(tuple(place), radius, facecolor=colour, edgecolor="white", zorder=2))
    style = {"color": "white", "weight": "bold", "zorder": 3}
    ax.text(*place, name, size=look.small(ax), ha="center", va="center", **style)


def _arrow(ax: Any, ends: np.ndarray, radii: np.ndarray, style: dict[str, Any]) -> np.ndarray:
    """Draw an arc between two regions; return where its text is."""
    along = (ends[1] - ends[0]) / np.linalg.norm(ends[1] - ends[0])
    left = np.array([-along[1], along[0]])
    # Both leave beside the line of the centres, so that there is place for the way back.
    start = ends[0] + radii[0] * (0.94 * along + 0.34 * left)
    stop = ends[1] + (radii[1] + 0.03) * (-0.94 * along + 0.34 * left)
    _draw(ax, start, stop, -0.12, style)
    return (start + stop) / 2 + (0.06 * np.linalg.norm(stop - start) + 0.11) * left


def _loop(ax: Any, place: np.ndarray, radius: float, n: int, style: dict[str, Any]) -> np.ndarray:
    """Draw the arrow of a region to itself, on the outer side; return where its text is."""
    out = place / np.linalg.norm(place) if n > 1 else np.array([0.0, 1.0])
    side = np.array([-out[1], out[0]])
    start, stop = (place + radius * (0.8 * out + sign * 0.6 * side) for sign in (1, -1))
    _draw(ax, start, stop + 0.02 * out, -1.6, style)
    return place + (2.0 * radius + 0.2) * out


def _draw(ax: Any, start: np.ndarray, stop: np.ndarray, bend: float, style: dict[str, Any]) -> None:
    from matplotlib.patches import FancyArrowPatch

    head: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 7 + 2 * style["linewidth"]}
    course: dict[str, Any] = {"connectionstyle": f"arc3,rad={bend}", "shrinkA": 0, "shrinkB": 0}
    ax.add_patch(FancyArrowPatch(tuple(start), tuple(stop), **head, **course, **style))
