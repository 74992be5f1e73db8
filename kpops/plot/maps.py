"""Where an operator takes what to where: its energy between the positions of a dim."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from kpops.maturity import experimental
from kpops.plot import style as look
from kpops.plot import wording

_DECADES = 6


@experimental
def frobenius_map(result: xr.Dataset, figure: Any = None) -> np.ndarray:
    """Plot the energy between positions as a heat map, and by lag.

    Parameters
    ----------
    result : Dataset
        What :func:`kpops.frobenius_map` returns: ``energy(dim, dim_in)``, and for time
        ``energy_by_lag(lag)`` and ``near_diagonal(lag)``.
    figure : matplotlib Figure or SubFigure, optional
        Where to draw; default: a new Figure.

    Returns
    -------
    ndarray of matplotlib Axes
        Shape (1,), the map; or (2,) or (3,): map, energy by lag, fraction of it near the diagonal.

    Raises
    ------
    ValueError
        If there is no energy, or it has other dims.

    Notes
    -----
    Colours are logarithmic over at most six decades; blank is no energy at all, as above the
    diagonal of a causal operator.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("agg")
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(3, 4, batch_first=True), torch.randn(5, 6, 3))
    >>> len(kpops.plot.frobenius_map(kpops.frobenius_map(lin.P, "time")))
    3
    """
    energy = look.variable(result, ("energy",), "kpops.frobenius_map")
    pair = [str(d) for d in energy.dims if f"{d}_in" in energy.dims][:1] or ["dim"]
    energy = look.with_dims(energy, (*pair, f"{pair[0]}_in"))
    curves = [name for name in ("energy_by_lag", "near_diagonal") if name in result]
    columns = 1 + len(curves)
    layout = {"width_ratios": [1.2, *[1] * len(curves)]}
    axes = look.new_axes(
        figure, (1, 1.7, 2.2)[len(curves)] * look.COLUMN, 2.1, 1, columns, **layout
    )[0]
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
    from kpops.plot.ticks import places

    values = look.with_dims(look.real(result[name]), ("lag",))
    lag = places(ax.xaxis, values, "lag")
    style = {"color": look.COLOURS[0], "marker": ".", "markersize": 3, "linewidth": 1}
    (line,) = ax.plot(lag, values.values, **style)
    error = result.get(f"{name}_stderr")
    if error is not None:
        look.band(ax, lag, values.values, error.values, line.get_color())
    if name == "energy_by_lag":
        if (values > 0).any():
            ax.set_yscale("log")
    else:
        ax.set_ylim(0, 1.05)
    ax.set_ylabel(wording.label_of(values))
    look.plain(ax)
