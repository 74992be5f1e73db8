"""Eigenvalues and singular values: mode by mode, and as a density."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from kpops.maturity import experimental
from kpops.plot import style as look
from kpops.plot import wording

_SPECTRA = "kpops.eigsh, kpops.eigvalsh or kpops.svds"
_DECADES_ABOVE_FLOOR = 2
_FLOOR = "noise floor"


def spectrum(result: xr.Dataset | xr.DataArray, ax: Any = None, **style: Any) -> Any:
    """Plot eigenvalues or singular values against the mode, on logarithmic axes.

    Magnitudes are shown. Negative eigenvalues are triangles that point down, modes that have not
    converged are hollow, error bars are bounds from the residuals, and grey bands join the modes
    of a degenerate cluster.

    Parameters
    ----------
    result : Dataset or DataArray
        What :func:`kpops.eigsh`, :func:`kpops.eigvalsh` or :func:`kpops.svds` returns, or any
        ``eigenvalue(mode)`` or ``singular_value(mode)``. Of a Dataset, ``residual(mode)``,
        ``converged(mode)`` and ``cluster(mode)`` (an int label; negative for modes in no cluster)
        are shown where they exist. With the dim ``step`` too, of :func:`kpops.over_training`, each
        step has its colour of a scale, and clusters are left out.
    ax : matplotlib Axes, optional
        Where to draw; default: in a new figure.
    **style
        Passed to ``Axes.plot`` for the line through the modes. ``label`` is by default the
        operator, if the result says of which it is.

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
    singular value likewise: that is the error bar.

    Values below the noise floor are rounding and not drawn: their modes are ticks on the floor, a
    dashed line. It is the attribute ``noise_floor``, of a Dataset without it 64 rounding units, of
    the largest magnitude. A DataArray without it has none, but there, too, has no sign what is
    below. The floor is drawn where values come within two decades of it. Modes that were not
    found (NaN) are counted in the legend.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("agg")
    >>> import numpy as np, kpops
    >>> kpops.plot.spectrum(kpops.eigsh(np.diag([3.0, 1.0]), k=2)).get_xlabel()
    'mode'
    """
    if isinstance(result, xr.DataArray):
        values = look.real(result)
    else:
        values = look.variable(result, ("eigenvalue", "singular_value"), _SPECTRA, arrays=True)
    values = look.with_dims(values, ("mode",), ("step",))
    ax = look.get_axes(ax)
    if values.ndim == 1:
        spectra, colours = [_read(result, values)], [look.free_colour(ax)]
    else:
        at = [{"step": i} for i in range(values.sizes["step"])]
        spectra = [_read(result.isel(i), values.isel(i))._replace(clusters=None) for i in at]
        colours = look.scale_colours(ax, values, "step")
    style = {"label": wording.operator_of(result), **look.long_names(style)}
    for i, (each, colour) in enumerate(zip(spectra, colours, strict=True)):
        first = {} if i == 0 else {"label": None}  # one entry in the legend for all steps
        _draw(ax, each, {"color": colour, **style, **first})
    _scale(ax, spectra)
    missing = sum(int(np.isnan(each.magnitude).sum()) for each in spectra)
    if missing:
        ax.plot([], [], " ", label=look.once(ax, f"{missing} not found"))
    name = wording.label_of(values)
    ax.set_xlabel(wording.coordinate_label(values, "mode"))
    ax.set_ylabel(f"|{name}|" if any(each.negative.any() for each in spectra) else name)
    look.legend_outside(ax)
    return look.plain(ax)


class _Spectrum(NamedTuple):
    """What is drawn of one spectrum, an entry for each mode.

    Attributes
    ----------
    modes, magnitude : ndarray
        Labels, and absolute values; NaN where no mode was found.
    floor : float
        Magnitude below which rounding decides.
    below : ndarray of bool
        Whether the magnitude is below the floor, so that it is not drawn.
    negative, unsure : ndarray of bool
        Whether the value is negative, and whether it has not converged.
    bound : ndarray or None
        Bounds of the errors.
    clusters : ndarray or None
        Numbers that degenerate modes share.
    """

    modes: np.ndarray
    magnitude: np.ndarray
    floor: float
    below: np.ndarray
    negative: np.ndarray
    unsure: np.ndarray
    bound: np.ndarray | None
    clusters: np.ndarray | None


def _read(result: xr.Dataset | xr.DataArray, values: xr.DataArray) -> _Spectrum:
    details = result if isinstance(result, xr.Dataset) else xr.Dataset()
    exact = 64 * np.finfo(values.dtype if values.dtype.kind == "f" else float).eps
    signed = values.values.astype(float)
    magnitude = np.abs(signed)
    largest = float(magnitude[np.isfinite(magnitude)].max(initial=0))
    floor = largest * float(result.attrs.get("noise_floor", exact))
    has_floor = isinstance(result, xr.Dataset) or "noise_floor" in result.attrs
    modes = values["mode"].values if "mode" in values.coords else np.arange(1, values.size + 1)
    unsure = np.zeros(values.size, bool)
    if "converged" in details:
        unsure = ~details["converged"].values.astype(bool)
    below = (magnitude < floor) & has_floor
    return _Spectrum(
        modes,
        magnitude,
        floor if has_floor else 0.0,
        below,
        signed < -floor,
        unsure & ~below & ~np.isnan(signed),
        details["residual"].values * largest if "residual" in details else None,
        details["cluster"].values if "cluster" in details else None,
    )


def _draw(ax: Any, each: _Spectrum, style: dict[str, Any]) -> None:
    n = len(each.modes)
    shown = np.where(each.below, np.nan, each.magnitude)
    style = {
        "linewidth": 1,
        "marker": "o",
        "markersize": 4 if n <= 12 else 3 if n <= 60 else 2,
        "markevery": list(~each.negative & ~each.unsure),
        **style,
    }
    (line,) = ax.plot(each.modes, shown, **style)
    _mark_special(ax, line, each.negative, each.unsure)
    if each.bound is not None:
        bars = {"fmt": "none", "ecolor": line.get_color(), "elinewidth": 0.8, "capsize": 1.5}
        ax.errorbar(each.modes, shown, each.bound, **bars)
    if each.clusters is not None:
        _mark_clusters(ax, each.modes, np.where(each.below, -1, each.clusters))
    _draw_floor(ax, each, line.get_color())


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


def _draw_floor(ax: Any, each: _Spectrum, colour: Any) -> None:
    positive = each.magnitude[each.magnitude > 0]
    if not positive.size or positive.min() >= 10**_DECADES_ABOVE_FLOOR * each.floor:
        return
    ax.axhline(each.floor, color=colour, linestyle="--", linewidth=0.8, zorder=0)
    ticks = {"marker": "|", "linestyle": "none", "color": colour, "markersize": 4}
    ax.plot(each.modes[each.below], np.full(each.below.sum(), each.floor), **ticks)
    if all(text.get_text() != _FLOOR for text in ax.texts):
        place = {"xycoords": ax.get_yaxis_transform(), "textcoords": "offset points"}
        size = look.small(ax)
        ax.annotate(_FLOOR, (0.01, each.floor), xytext=(0, 2), color=look.GREY, size=size, **place)


def _scale(ax: Any, spectra: list[_Spectrum]) -> None:
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    from kpops.plot.ticks import WholeDecades

    ax.set_xscale("log")
    if ax.xaxis.get_data_interval()[1] <= 200:
        ax.xaxis.set_major_locator(WholeDecades())
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    # A zero operator has nothing to show on a logarithmic axis.
    if any((each.magnitude > 0).any() for each in spectra):
        look.log_values(ax)


@experimental
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
    wanted = "cumulative" if cumulative else "density"
    values = look.variable(result, (wanted,), "kpops.spectral_density")
    values = look.with_dims(values, ("value",))
    ax = look.get_axes(ax)
    grid = values["value"].values
    decades = result.attrs.get("scale") == "log"
    error = result.get("cumulative_stderr" if cumulative else "stderr")
    factor = math.log(10) * grid if decades and not cumulative else np.ones(len(grid))
    height = factor * values.values

    default = {"color": look.free_colour(ax), "linewidth": 1, "label": wording.operator_of(result)}
    (line,) = ax.plot(grid, height, **{**default, **look.long_names(style)})
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
    name = wording.coordinate_label(values, "value")
    ax.set_xlabel(name)
    per = "decade" if decades else "unit"
    ax.set_ylabel(wording.label_of(values) if cumulative else f"{name}s per {per}")
    look.legend_outside(ax)
    return look.plain(ax)


def _height_axis(
    ax: Any, height: np.ndarray, extent: float, cumulative: bool, log: bool | None
) -> None:
    """Logarithmic from half a value on, or one in all the grid: less is a tail of the smoothing."""
    height = height[np.isfinite(height)]
    highest = float(height.max(initial=0))
    bottom = 0.5 if cumulative else 1 / extent
    if log is None:
        log = cumulative or highest > 20 * float(height.sum()) / max(height.size, 1)
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
