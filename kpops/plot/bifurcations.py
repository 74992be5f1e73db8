"""Branches of fixed points over a parameter, with their stability and bifurcations."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from kpops.models.recurrence import is_whole
from kpops.plot import style as look

_SOURCE = "kpops.continuation"
_MARKERS = {
    "fold": "o",
    "transcritical": "X",
    "pitchfork": "D",
    "flip": "^",
    "neimark-sacker": "s",
    "multiple": "P",
    "border-collision": "|",
}


def branches(found: xr.Dataset, ax: Any = None, *, unit: int | None = None) -> Any:
    """Plot branches of fixed points over the parameter: solid where stable, dashed where not.

    Parameters
    ----------
    found : Dataset
        What :func:`kpops.continuation` returns.
    ax : matplotlib Axes, default: in a new figure
    unit : int, optional
        Position of the unit whose state is drawn. Default: the one that varies most.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If `found` is something else, or there is no such unit.

    Notes
    -----
    Bifurcations are markers, a kind in the legend each. A branch changes its style half-way between
    two points of different stability, at the bifurcation.

    Examples
    --------
    >>> import torch, kpops
    >>> cell = torch.nn.RNNCell(1, 1, bias=False).double()
    >>> rest = torch.zeros(1, 1, dtype=torch.float64)
    >>> found = kpops.continuation(cell, rest, "weight_hh", (0.5, 1.5), switch=True)
    >>> ax = kpops.plot.branches(found)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['stable', 'unstable', 'pitchfork']
    """
    if isinstance(found, xr.Dataset):
        found = found.transpose("branch", "event", "point", "unit", ..., missing_dims="ignore")
    states = look.variable(found, ("state",), _SOURCE, ("branch", "point", "unit")).values
    mu = look.variable(found, ("parameter",), _SOURCE, ("branch", "point")).values
    stable = look.variable(found, ("is_stable",), _SOURCE, ("branch", "point")).values
    at = look.variable(found, ("event_state",), _SOURCE, ("event", "unit")).values
    n_units = states.shape[-1]
    if unit is None:
        unit = int(np.nanvar(states, axis=(0, 1)).argmax())
    if not is_whole(unit) or unit not in range(n_units):
        raise ValueError(f"unit={unit!r}: choose from 0 to {n_units - 1}")
    ax = look.get_axes(ax)
    for row, n in enumerate(found["n_points"].values):
        points = np.stack([mu[row, :n], states[row, :n, unit], found["length"].values[row, :n]], 1)
        rests = stable[row, :n].copy()
        if n > 1 and found["parent"].values[row] >= 0:  # its first point is the bifurcation
            rests[0] = rests[1]
        own = found.isel(event=found["event_branch"].values == row)
        names = ("event_parameter", "event_state", "event_length")
        values = [own[name] for name in names]
        values[1] = values[1].isel(unit=unit)
        _draw(ax, points, rests, np.stack(values, 1))
    for kind, marker in _MARKERS.items():
        chosen = found["kind"].values == kind
        if chosen.any():
            x, y = found["event_parameter"].values[chosen], at[chosen, unit]
            style = {"color": "black", "markersize": 4.5, "markerfacecolor": "white", "zorder": 3}
            ax.plot(x, y, linestyle="none", marker=marker, label=look.once(ax, kind), **style)
    ax.set_xlabel("parameter")
    ax.set_ylabel(f"state of unit {found['unit'].values[unit]}")
    return look.finished(ax)


def _draw(ax: Any, points: np.ndarray, stable: np.ndarray, events: np.ndarray) -> None:
    """Draw a branch; rows of points and events are mu, state and length."""
    run = [points[0]]
    for i in range(1, len(points) + 1):
        changes = i < len(points) and stable[i] != stable[i - 1]
        if changes:
            low, high = points[i - 1, 2], points[i, 2]
            between = events[(events[:, 2] >= low) & (events[:, 2] <= high)]
            run.append(between[0] if len(between) else points[i - 1 : i + 1].mean(0))
        if changes or i == len(points):
            name = "stable" if stable[i - 1] else "unstable"
            x, y, _ = np.stack(run, 1)
            line, colour = ("-", look.COLOURS[0]) if stable[i - 1] else ("--", look.COLOURS[1])
            ax.plot(x, y, line, color=colour, label=look.once(ax, name), linewidth=1.4)
            run = run[-1:]
        if i < len(points):
            run.append(points[i])
