"""Eigenvalues and singular values: mode by mode, and as a density."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from kpops.plot import style as look
from kpops.plot import wording

_SPECTRA = "kpops.eigsh, kpops.eigvalsh or kpops.svds"
_DECADES_ABOVE_FLOOR = 2
_FLOOR = "noise floor"


def spectrum(result: xr.Dataset | xr.DataArray, ax: Any = None, **style: Any) -> Any:
    """Plot magnitudes of eigenvalues or singular values against the mode, on logarithmic axes.

    Negative eigenvalues are triangles that point down, modes that have not converged are hollow,
    error bars are bounds from the residuals, and grey bands join the modes of a degenerate cluster.

    Parameters
    ----------
    result : Dataset or DataArray
        What :func:`kpops.eigsh`, :func:`kpops.eigvalsh` or :func:`kpops.svds` returns, or any
        ``eigenvalue(mode)`` or ``singular_value(mode)``. ``residual(mode)``, ``converged(mode)``
        and ``cluster(mode)`` (an int label; negative for modes in no cluster) of a Dataset are
        shown if present. With the dimension ``step``, from :func:`kpops.over_training`, steps have
        the colours of a scale, and clusters are omitted.
    ax : matplotlib Axes, default: in a new figure
    **style
        Passed to ``Axes.plot`` for the line through the modes. ``label`` is by default the
        operator, if the result names it.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If there are no such variables, or they have other dimensions.

    Notes
    -----
    The error bar is ``r max|lambda|``, with r the relative residual: it bounds the error of an
    eigenvalue of a symmetric operator (Parlett 1998, The Symmetric Eigenvalue Problem, Theorem
    4.5.1), and that of a singular value.

    Values below the noise floor are rounding: they are not drawn, but their modes are ticks on the
    floor, a dashed line, which appears where values come within two decades of it. The floor is the
    attribute ``noise_floor``, or 64 rounding units for a Dataset without it, times the largest
    magnitude. A DataArray without the attribute has no floor, but there, too, values below 64
    rounding units of the largest have no sign. Modes that were not found (NaN) are counted in the
    legend.

    Examples
    --------
    >>> import numpy as np, kpops
    >>> kpops.plot.spectrum(kpops.eigsh(np.diag([3.0, 1.0]), k=2)).get_xlabel()
    'mode'
    """
    names = ("eigenvalue", "singular_value")
    values = look.variable(result, names, _SPECTRA, ("mode",), ("step",), arrays=True)
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
        look.legend_entry(ax, f"{missing} not found")
    name = wording.label_of(values)
    ax.set_xlabel(wording.coordinate_label(values, "mode"))
    ax.set_ylabel(f"|{name}|" if any(each.negative.any() for each in spectra) else name)
    return look.finished(ax)


class _Spectrum(NamedTuple):
    """What is drawn of one spectrum, with an entry for each mode."""

    modes: np.ndarray
    magnitude: np.ndarray  # NaN where no mode was found
    floor: float  # the magnitude below which rounding decides
    below: np.ndarray  # bool: below the floor, so that it is not drawn
    negative: np.ndarray  # bool
    unsure: np.ndarray  # bool: not converged
    bound: np.ndarray | None  # of the errors
    clusters: np.ndarray | None  # numbers that degenerate modes share


def _read(result: xr.Dataset | xr.DataArray, values: xr.DataArray) -> _Spectrum:
    details: Any = result if isinstance(result, xr.Dataset) else {}
    exact = 64 * np.finfo(values.dtype if values.dtype.kind == "f" else float).eps
    signed = values.values.astype(float)
    magnitude = np.abs(signed)
    largest = float(magnitude[np.isfinite(magnitude)].max(initial=0))
    floor = largest * float(result.attrs.get("noise_floor", exact))
    has_floor = isinstance(result, xr.Dataset) or "noise_floor" in result.attrs
    below = (magnitude < floor) & has_floor
    unsure = np.zeros(values.size, bool)
    if "converged" in details:
        unsure = ~details["converged"].values.astype(bool) & ~below & ~np.isnan(signed)
    return _Spectrum(
        modes=values["mode"].values if "mode" in values.coords else np.arange(1, values.size + 1),
        magnitude=magnitude,
        floor=floor if has_floor else 0.0,
        below=below,
        negative=signed < -floor,
        unsure=unsure,
        bound=details["residual"].values * largest if "residual" in details else None,
        clusters=details["cluster"].values if "cluster" in details else None,
    )


def _draw(ax: Any, each: _Spectrum, style: dict[str, Any]) -> None:
    shown = np.where(each.below, np.nan, each.magnitude)
    style = {
        "linewidth": 1,
        "marker": "o",
        "markersize": look.marker_size(len(each.modes)),
        "markevery": list(~each.negative & ~each.unsure),
        **style,
    }
    (line,) = ax.plot(each.modes, shown, **style)
    _mark_special(ax, line, each.negative, each.unsure)
    if each.bound is not None:
        look.bars(ax, each.modes, shown, each.bound, line.get_color())
    if each.clusters is not None:
        _mark_clusters(ax, each.modes, np.where(each.below, -1, each.clusters))
    _draw_floor(ax, each, line.get_color())


def _mark_special(ax: Any, line: Any, negative: np.ndarray, unsure: np.ndarray) -> None:
    """Mark modes that are negative or not converged; the legend has each meaning once."""
    (x, y), colour = line.get_data(), line.get_color()
    explained: list[str] = []
    for chosen, marker, hollow, meanings in (
        (negative & ~unsure, "v", False, ("negative",)),
        (~negative & unsure, "o", True, ("not converged",)),
        (negative & unsure, "v", True, ("negative", "not converged")),
    ):
        if chosen.any():
            new = [meaning for meaning in meanings if meaning not in explained]
            explained += new
            label = look.once(ax, ", ".join(new)) if new else None
            face = {"color": colour, "markerfacecolor": "white" if hollow else colour}
            size = line.get_markersize() + 1
            ax.plot(x[chosen], y[chosen], marker, markersize=size, label=label, **face)


def _mark_clusters(ax: Any, modes: np.ndarray, labels: np.ndarray) -> None:
    starts = np.flatnonzero(np.diff(labels, prepend=labels[:1] - 1))
    shade = {"color": "0.88", "linewidth": 0, "zorder": 0}
    for first, last in zip(starts, np.append(starts[1:], len(labels)) - 1, strict=True):
        if last > first and labels[first] >= 0:
            label = look.once(ax, "degenerate")
            ax.axvspan(modes[first] - 0.35, modes[last] + 0.35, label=label, **shade)


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

    from kpops.plot.locators import WholeDecades

    ax.set_xscale("log")
    if ax.xaxis.get_data_interval()[1] <= 200:
        ax.xaxis.set_major_locator(WholeDecades(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    # A zero operator has nothing to show on a logarithmic axis.
    if any((each.magnitude > 0).any() for each in spectra):
        look.log_values(ax)


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
        What :func:`kpops.spectral_density` returns: ``density(value)`` and, if present,
        ``stderr(value)``, ``outlier(mode)`` and the attributes ``bulk_edge`` and ``n_outliers``.
    ax : matplotlib Axes, default: in a new figure
    cumulative : bool
        Draw ``cumulative(value)``, the number of values above, instead.
    log : bool, optional
        Whether the vertical axis is logarithmic; default: if `cumulative`, or if the highest peak
        exceeds twenty times the mean.
    **style
        Passed to ``Axes.plot`` for the line, for example ``label``.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If the variables are missing or have other dimensions.

    Notes
    -----
    On a logarithmic grid (attribute ``scale``) the density is shown per decade, ``ln(10) value
    density``, so that the area under the line is the number of values on either axis. Leading
    modes are triangles at the foot: filled if they stand off the bulk, hollow if they belong to it.

    Examples
    --------
    >>> import numpy as np, kpops
    >>> result = kpops.spectral_density(np.diag(np.r_[30.0, np.linspace(1, 2, 99)]), outliers=2)
    >>> kpops.plot.density(result).get_xlabel()
    'eigenvalue'
    """
    wanted = "cumulative" if cumulative else "density"
    values = look.variable(result, (wanted,), "kpops.spectral_density", ("value",))
    ax = look.get_axes(ax)
    grid = values["value"].values
    decades = result.attrs.get("scale") == "log"
    error = result.get("cumulative_stderr" if cumulative else "stderr")
    factor = math.log(10) * grid if decades and not cumulative else np.ones(len(grid))
    height = factor * values.values

    error = None if error is None else factor * error.values
    default = {"color": look.free_colour(ax), "linewidth": 1, "label": wording.operator_of(result)}
    colour = look.curve(ax, grid, height, error, **{**default, **look.long_names(style)})
    ax.set_xscale("log" if decades else "linear")
    extent = np.ptp(np.log10(grid) if decades else grid)
    _height_axis(ax, values.values if cumulative else height, extent, cumulative, log)
    _draw_edge(ax, result)
    _draw_outliers(ax, result, colour)
    zeros = float(result.attrs.get("n_zeros", 0))
    if decades and zeros > 0:
        look.legend_entry(ax, f"{zeros:.0f} zeros\nnot shown")
    name = wording.coordinate_label(values, "value")
    ax.set_xlabel(name)
    per = "decade" if decades else "unit"
    ax.set_ylabel(wording.label_of(values) if cumulative else f"{name}s per {per}")
    return look.finished(ax)


def _height_axis(
    ax: Any, height: np.ndarray, extent: float, cumulative: bool, log: bool | None
) -> None:
    """Logarithmic from half a value, or one in all the grid, on: below is a tail of smoothing."""
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
    if 0 < edge < math.inf:
        two_sided = float(result["value"][0]) < -edge / 2
        dashed = {"color": look.GREY, "linestyle": "--", "linewidth": 0.8}
        for position in (edge, -edge) if two_sided else (edge,):
            ax.axvline(position, label=look.once(ax, "bulk edge"), **dashed)


def _draw_outliers(ax: Any, result: xr.Dataset, colour: Any) -> None:
    modes = result["outlier"].values if "outlier" in result else np.empty(0)
    modes = modes[np.isfinite(modes)]
    if ax.get_xscale() == "log":
        modes = modes[modes > 0]
    n = int(result.attrs.get("n_outliers", len(modes)))
    place = {"transform": ax.get_xaxis_transform(), "clip_on": False, "markersize": 4}
    for part, face, text in (
        (modes[:n], colour, "outlier"),
        (modes[n:], "white", "leading, in bulk"),
    ):
        if len(part):
            looks = {"color": colour, "markerfacecolor": face, "label": look.once(ax, text)}
            ax.plot(part, np.full(len(part), 0.03), "v", **looks, **place)
