"""Eigenvalues and singular values: mode by mode, and as a density."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr

from kpops.plot import style as look

_DECADES_ABOVE_FLOOR = 3


def spectrum(result: xr.Dataset | xr.DataArray, ax: Any = None, **style: Any) -> Any:
    """Plot eigenvalues or singular values against the mode, on logarithmic axes.

    Magnitudes are shown. Negative eigenvalues are triangles that point down, modes that have not
    converged are hollow, error bars are bounds from the residuals, and grey bands join the modes
    of a degenerate cluster.

    Parameters
    ----------
    result : Dataset or DataArray
        What :func:`kpops.eigsh` or :func:`kpops.svds` returns, or any ``eigenvalue(mode)`` or
        ``singular_value(mode)``. Of a Dataset, ``residual(mode)``, ``converged(mode)``,
        ``cluster(mode)`` (an int label; negative for modes in no cluster) and the attribute
        ``noise_floor`` are shown where they exist.
    ax : matplotlib Axes, optional
        Where to draw; default: in a new figure.
    **style
        Passed to ``Axes.plot`` for the line through the modes, for example ``label``.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If there are no such variables, or they have other dims.

    Notes
    -----
    A relative residual r of a symmetric operator bounds the error of its eigenvalue by
    ``r max|lambda|`` (Parlett 1998, The Symmetric Eigenvalue Problem, Theorem 4.5.1), and of a
    singular value likewise: that is the error bar. Values below the noise floor have no sign;
    the floor is drawn where the values come within three decades of it.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("agg")
    >>> import numpy as np, kpops
    >>> kpops.plot.spectrum(kpops.eigsh(np.diag([3.0, 1.0]), k=2)).get_xlabel()
    'mode'
    """
    if isinstance(result, xr.Dataset):
        details, values = result, look.variable(result, ("eigenvalue", "singular_value"))
    else:
        details, values = xr.Dataset(), result
    if values.dims != ("mode",):
        look.refuse_dims(values, "('mode',)")
    ax = look.get_axes(ax)
    modes = values["mode"].values if "mode" in values.coords else np.arange(1, values.size + 1)
    signed: np.ndarray = values.values
    magnitude = np.abs(signed)
    largest = np.nanmax(magnitude, initial=0)
    floor = largest * float(details.attrs.get("noise_floor", 64 * np.finfo(magnitude.dtype).eps))
    negative = signed < -floor
    unsure = np.zeros(len(modes), bool)
    if "converged" in details:
        unsure = ~details["converged"].values.astype(bool)

    style = {
        "color": look.free_colour(ax),
        "linewidth": 1,
        "marker": "o",
        "markersize": 4 if len(modes) <= 12 else 3 if len(modes) <= 60 else 2,
        "markevery": list(~negative & ~unsure),
        **look.long_names(style),
    }
    (line,) = ax.plot(modes, magnitude, **style)
    _mark_special(ax, line, negative, unsure)
    if "residual" in details:
        bound = details["residual"].values * largest
        ax.errorbar(
            modes,
            magnitude,
            bound,
            fmt="none",
            ecolor=line.get_color(),
            elinewidth=0.8,
            capsize=1.5,
        )
    if "cluster" in details:
        _mark_clusters(ax, modes, details["cluster"].values)
    _scale(ax, modes, magnitude)
    if "noise_floor" in details.attrs:
        _draw_floor(ax, floor, magnitude)
    ax.set_xlabel(look.coordinate_label(values, "mode"))
    name = look.label_of(values)
    ax.set_ylabel(f"|{name}|" if negative.any() else name)
    look.legend_outside(ax)
    return look.plain(ax)


def _mark_special(ax: Any, line: Any, negative: np.ndarray, unsure: np.ndarray) -> None:
    """Markers of modes that are negative or not converged, each meaning once in the legend."""
    explained: list[str] = []
    for chosen, marker, hollow, meanings in (
        (negative & ~unsure, "v", False, ("negative",)),
        (~negative & unsure, "o", True, ("not converged",)),
        (negative & unsure, "v", True, ("negative", "not converged")),
    ):
        if not chosen.any():
            continue
        new = [meaning for meaning in meanings if meaning not in explained]
        explained += new
        colour = line.get_color()
        ax.plot(
            line.get_xdata()[chosen],
            line.get_ydata()[chosen],
            marker,
            color=colour,
            markerfacecolor="white" if hollow else colour,
            markersize=line.get_markersize() + 1,
            label=look.once(ax, ", ".join(new)) if new else "_nolegend_",
        )


def _mark_clusters(ax: Any, modes: np.ndarray, labels: np.ndarray) -> None:
    starts = np.flatnonzero(np.diff(labels, prepend=labels[:1] - 1))
    for first, last in zip(starts, np.append(starts[1:], len(labels)) - 1, strict=True):
        if last > first and labels[first] >= 0:
            ax.axvspan(
                modes[first] - 0.35,
                modes[last] + 0.35,
                color="0.88",
                linewidth=0,
                zorder=0,
                label=look.once(ax, "degenerate"),
            )


def _scale(ax: Any, modes: np.ndarray, magnitude: np.ndarray) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ax.set_xscale("log")
    if len(modes) and modes.max() <= 200:
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    if (magnitude > 0).any():  # a zero operator has nothing to show on a logarithmic axis
        look.log_values(ax)


def _draw_floor(ax: Any, floor: float, magnitude: np.ndarray) -> None:
    positive = magnitude[magnitude > 0]
    if positive.size and positive.min() < 10**_DECADES_ABOVE_FLOOR * floor:
        ax.axhline(floor, color=look.GREY, linestyle="--", linewidth=0.8, zorder=0)
        ax.annotate(
            "noise floor",
            (0.01, floor),
            xycoords=ax.get_yaxis_transform(),
            xytext=(0, 2),
            textcoords="offset points",
            color=look.GREY,
            fontsize=look.small(ax),
        )


def density(
    result: xr.Dataset,
    ax: Any = None,
    *,
    cumulative: bool = False,
    log: bool | None = None,
    **style: Any,
) -> Any:
    """Plot a spectral density with its error band, the edge of the bulk and the outliers.

    Parameters
    ----------
    result : Dataset
        What :func:`kpops.spectral_density` returns: ``density(value)``, ``stderr(value)``; where
        they exist, ``outlier(mode)`` and the attributes ``bulk_edge`` and ``n_outliers`` are
        drawn.
    ax : matplotlib Axes, optional
        Where to draw; default: in a new figure.
    cumulative : bool
        Draw ``cumulative(value)``, the number of values above, instead.
    log : bool, optional
        Whether the density or number has a logarithmic axis; default: for numbers, and where the
        highest peak is twenty times the mean.
    **style
        Passed to ``Axes.plot`` for the line, for example ``label``.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If the variables are not there or have other dims.

    Notes
    -----
    On a logarithmic grid (attribute ``scale``) the density is shown per decade: ``ln(10) value
    density``, so that the area under the line is the number of values on either axis. Leading
    modes are triangles at the foot: filled those that stand off the bulk, hollow those that belong
    to it.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("agg")
    >>> import numpy as np, kpops
    >>> result = kpops.spectral_density(np.diag(np.r_[30.0, np.linspace(1, 2, 99)]), outliers=2)
    >>> kpops.plot.density(result).get_xlabel()
    'eigenvalue'
    """
    if not isinstance(result, xr.Dataset):
        raise ValueError(f"cannot plot a {type(result).__name__}: pass kpops.spectral_density(op)")
    values = look.variable(result, ("cumulative" if cumulative else "density",))
    if values.dims != ("value",):
        look.refuse_dims(values, "('value',)")
    ax = look.get_axes(ax)
    grid = values["value"].values
    decades = result.attrs.get("scale") == "log"
    error = result.get("cumulative_stderr" if cumulative else "stderr")
    factor = math.log(10) * grid if decades and not cumulative else np.ones(len(grid))
    height = factor * values.values

    style = {"color": look.free_colour(ax), "linewidth": 1, **look.long_names(style)}
    (line,) = ax.plot(grid, height, **style)
    if error is not None:
        look.band(ax, grid, height, factor * error.values, line.get_color())
    ax.set_xscale("log" if decades else "linear")
    extent = np.ptp(np.log10(grid) if decades else grid)
    _height_axis(ax, values.values if cumulative else height, extent, cumulative, log)
    _draw_edge(ax, result)
    _draw_outliers(ax, result, line.get_color())
    zeros = float(result.attrs.get("n_zeros", 0))
    if decades and zeros > 0:
        ax.plot([], [], " ", label=look.once(ax, f"{zeros:.0f} zeros\nnot shown"))
    name = look.coordinate_label(values, "value")
    ax.set_xlabel(name)
    per = "decade" if decades else "unit"
    ax.set_ylabel(look.label_of(values) if cumulative else f"{name}s per {per}")
    look.legend_outside(ax)
    return look.plain(ax)


def _height_axis(
    ax: Any, height: np.ndarray, extent: float, cumulative: bool, log: bool | None
) -> None:
    """Logarithmic from half a value on, or one in all the grid: less is a tail of the smoothing."""
    highest = float(np.nanmax(height, initial=0))
    bottom = 0.5 if cumulative else 1 / extent
    if log is None:
        log = cumulative or highest > 20 * float(np.nanmean(height))
    if log and highest > bottom:
        ax.set_yscale("log")
        ax.set_ylim(bottom=bottom)
    else:
        ax.set_ylim(bottom=0)


def _draw_edge(ax: Any, result: xr.Dataset) -> None:
    edge = float(result.attrs.get("bulk_edge", math.nan))
    if math.isfinite(edge) and edge > 0:
        two_sided = float(result["value"][0]) < -edge / 2
        for position in (edge, -edge) if two_sided else (edge,):
            ax.axvline(
                position,
                color=look.GREY,
                linestyle="--",
                linewidth=0.8,
                label=look.once(ax, "bulk edge"),
            )


def _draw_outliers(ax: Any, result: xr.Dataset, colour: Any) -> None:
    if "outlier" not in result:
        return
    modes = result["outlier"].values
    modes = modes[np.isfinite(modes)]
    if ax.get_xscale() == "log":
        modes = modes[modes > 0]
    n = int(result.attrs.get("n_outliers", len(modes)))
    for part, face, label in (
        (modes[:n], colour, "outlier"),
        (modes[n:], "white", "leading, in bulk"),
    ):
        if len(part):
            ax.plot(
                part,
                np.full(len(part), 0.03),
                "v",
                color=colour,
                markerfacecolor=face,
                markersize=4,
                transform=ax.get_xaxis_transform(),
                clip_on=False,
                label=look.once(ax, label),
            )
