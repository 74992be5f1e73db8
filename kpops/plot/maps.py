"""The energy that an operator carries between the positions of a dimension."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from kpops.plot import style as look
from kpops.plot import ticks, wording

_SOURCE = "kpops.frobenius_map"
_DECADES = 6


def frobenius_map(result: xr.Dataset, figure: Any = None) -> np.ndarray:
    """Plot the energy between positions as a heat map, and against the lag.

    Parameters
    ----------
    result : Dataset
        What :func:`kpops.frobenius_map` returns: ``energy(dim, dim_in)``, and for time
        ``energy_by_lag(lag)`` and ``near_diagonal(lag)``.
    figure : matplotlib Figure or SubFigure, default: a new Figure

    Returns
    -------
    ndarray of matplotlib Axes
        Shape (1,), (2,) or (3,): the map and, if present, the energy by lag and its fraction near
        the diagonal.

    Raises
    ------
    ValueError
        If there is no energy, or it has other dimensions.

    Notes
    -----
    Colours are logarithmic over at most six decades. Cells without energy are blank, as above the
    diagonal for a causal operator.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(3, 4, batch_first=True), torch.randn(5, 6, 3))
    >>> len(kpops.plot.frobenius_map(kpops.frobenius_map(lin.P, "time")))
    3
    """
    energy = look.variable(result, ("energy",), _SOURCE)
    pair = [str(d) for d in energy.dims if f"{d}_in" in energy.dims][:1] or ["dim"]
    energy = look.with_dims(energy, (*pair, f"{pair[0]}_in"))
    curves = [name for name in ("energy_by_lag", "near_diagonal") if name in result]
    width = (1, 1.7, 2.2)[len(curves)] * look.COLUMN
    ratios = [1.2, *[1] * len(curves)]
    (axes,) = look.new_axes(figure, width, 2.1, 1, len(ratios), width_ratios=ratios)
    _draw_map(axes[0], energy)
    for ax, name in zip(axes[1:], curves, strict=True):
        _draw_by_lag(ax, result, name)
    return axes


def _draw_map(ax: Any, energy: xr.DataArray) -> None:
    from matplotlib.colors import LogNorm

    positive = energy.values[energy.values > 0]  # leaves NaN out, too
    largest = float(positive.max(initial=0)) or 1
    smallest = float(positive.min(initial=largest))
    low = min(max(smallest, largest / 10**_DECADES), largest / 2)
    style = {"aspect": "equal", "cmap": look.UNSIGNED, "norm": LogNorm(low, largest)}
    image = look.heat_map(ax, energy.where(energy > 0), **style)
    extend = "min" if smallest < low else "neither"
    bar = look.colour_bar(image, ax, wording.label_of(energy), extend=extend)
    look.plain_numbers(bar.ax.yaxis, low, largest)


def _draw_by_lag(ax: Any, result: xr.Dataset, name: str) -> None:
    values = look.with_dims(look.variable(result, (name,), _SOURCE), ("lag",))
    style = {"color": look.COLOURS[0], "marker": ".", "markersize": 3, "linewidth": 1}
    error = result.get(f"{name}_stderr")
    look.curve(ax, ticks.places(ax.xaxis, values, "lag"), values.values, error, **style)
    if name == "energy_by_lag":
        if (values > 0).any():
            ax.set_yscale("log")
    else:
        ax.set_ylim(0, 1.05)
    ax.set_ylabel(wording.label_of(values))
    look.plain(ax)
