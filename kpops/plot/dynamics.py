"""Lyapunov exponents: the spectrum, its convergence, the variation of growth, and angles."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import xarray as xr

from kpops.plot import style as look
from kpops.plot import wording

_SOURCE = "kpops.lyapunov_spectrum"
_ALONE, _GIVEN = "alone", "label"
"""Dimensions of the labels of a single result, which has none, and of a mapping."""
_VIOLIN = "#9ECAE1"
_MOST_BINS = 60


def lyapunov_spectrum(
    result: xr.Dataset | Mapping[Any, xr.Dataset], ax: Any = None, **style: Any
) -> Any:
    """Plot Lyapunov exponents against the mode, with error bars and the Kaplan-Yorke dimension.

    Parameters
    ----------
    result : Dataset, or mapping of labels to Datasets
        What :func:`kpops.lyapunov_spectrum` returns, or ``exponent(mode)`` of
        :func:`kpops.covariant_lyapunov_vectors`. With one more dimension, such as ``step`` of
        :func:`kpops.over_training`, or with a mapping, each entry has a spectrum.
    ax : matplotlib Axes, default: in a new figure
    **style
        Passed to ``Axes.plot`` for the line through the modes, for example ``label``.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If there are no exponents, they have other dimensions, or the mapping is empty.

    Notes
    -----
    Error bars are one standard error. A triangle marks the Kaplan-Yorke dimension, if it is known
    and not zero: the number of modes, linearly interpolated, whose exponents add up to zero.
    Exponents of minus infinity are not drawn, but counted in the legend. With ``exponent`` renamed
    to ``estimate``, :func:`kpops.plot.over_training` draws a line for each mode over checkpoints.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(3, 8, batch_first=True), torch.randn(5, 60, 3))
    >>> kpops.plot.lyapunov_spectrum(kpops.lyapunov_spectrum(lin)).get_ylabel()
    'Lyapunov exponent (1/step)'
    """
    entries, over = _entries(result)
    ax = look.get_axes(ax)
    look.zero_line(ax)
    dim = str(over.dims[0])
    labels = [None] if dim == _ALONE else wording.names(over[dim])
    style = look.long_names(style)
    for entry, (colour, label) in zip(entries, look.entries(ax, over, dim, labels), strict=True):
        _draw_spectrum(ax, entry, {"color": colour, "label": label, **style}, len(entries) == 1)
    if len(entries) > 1 and any(_dimension(entry) for entry in entries):
        look.legend_entry(ax, "Kaplan-Yorke\ndimension", marker="v", color=look.GREY, markersize=4)
    ax.set_ylabel(wording.label_of(entries[0]["exponent"]))
    title = None if dim in (_ALONE, _GIVEN) else wording.coordinate_label(over, dim)
    return look.finished(ax, title=title)


def _entries(
    result: xr.Dataset | Mapping[Any, xr.Dataset],
) -> tuple[list[xr.Dataset], xr.DataArray]:
    """Spectra (mode), and an array of one dimension that labels them."""
    if isinstance(result, Mapping) and not isinstance(result, xr.Dataset):
        if not result:
            raise ValueError(f"the mapping is empty: pass labels and what {_SOURCE} returns")
        for label, entry in result.items():
            if not isinstance(entry, xr.Dataset):
                raise ValueError(f"there is no Dataset at {label!r}: pass what {_SOURCE} returns")
            look.variable(entry, ("exponent",), _SOURCE, ("mode",))
        labels = np.array(list(result))  # numbers stay numbers, unless texts are among them
        labels = labels if labels.ndim == 1 else np.array([str(label) for label in result])
        over = xr.DataArray(labels, {_GIVEN: labels}, (_GIVEN,))
        over[_GIVEN].attrs["long_name"] = ""  # the labels speak for themselves
        return list(result.values()), over
    values = look.with_dims(look.variable(result, ("exponent",), _SOURCE), ("mode",), others=1)
    if values.ndim == 1:
        return [result], xr.DataArray([0], dims=(_ALONE,))
    dim = values.dims[0]
    entries = [result.isel({dim: i}) for i in range(result.sizes[dim])]
    return entries, values.isel(mode=0, drop=True)


def _draw_spectrum(ax: Any, entry: xr.Dataset, style: dict[str, Any], alone: bool) -> None:
    values = entry["exponent"].values
    ends = np.isneginf(values)
    modes, values = wording.positions(ax.xaxis, entry["exponent"], "mode")[~ends], values[~ends]
    markers = {"marker": "o", "markersize": look.marker_size(len(values))}
    (line,) = ax.plot(modes, values, **{"linewidth": 1, **markers, **style})
    colour = line.get_color()
    if "stderr" in entry:
        look.bars(ax, modes, values, entry["stderr"].values[~ends], colour)
    if ends.any():
        look.legend_entry(ax, f"{ends.sum()} at $-\\infty$\nnot shown")
    dimension = _dimension(entry)
    if dimension:
        label = f"Kaplan-Yorke\ndimension {wording.number(dimension)}" if alone else None
        place = {"transform": ax.get_xaxis_transform(), "clip_on": False, "linestyle": "none"}
        ax.plot(dimension, 0.03, "v", color=colour, markersize=5, label=label, **place)


def _dimension(entry: xr.Dataset) -> float:
    """Kaplan-Yorke dimension; zero if it is not known."""
    return float(np.nan_to_num(entry.get("kaplan_yorke_dimension", 0.0)))


def lyapunov_history(result: xr.Dataset, ax: Any = None, **style: Any) -> Any:
    """Plot the exponents as if the run had ended earlier, against the time of its end.

    Parameters
    ----------
    result : Dataset
        What :func:`kpops.lyapunov_spectrum` returns, or ``.sel(mode=[1, 2])`` of it.
    ax : matplotlib Axes, default: in a new figure
    **style
        Passed to ``Axes.plot``.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If there is no history, or it has other dimensions.

    Notes
    -----
    The bands are one standard error about the final values. A line that enters its band at the very
    end, or still drifts within it, shows that the run or the transient was too short.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(3, 8, batch_first=True), torch.randn(5, 60, 3))
    >>> kpops.plot.lyapunov_history(kpops.lyapunov_spectrum(lin, k=2)).get_xlabel()
    'time (step)'
    """
    history = look.variable(result, ("history",), _SOURCE, ("time", "mode"))
    ax = look.get_axes(ax)
    look.zero_line(ax)
    time = wording.positions(ax.xaxis, history, "time")
    style = look.long_names(style)
    labels = [f"mode {mode}" for mode in wording.names(history["mode"])]
    for i, (colour, label) in enumerate(look.entries(ax, history, "mode", labels)):
        default = {"color": colour, "linewidth": 1, "label": label}
        (line,) = ax.plot(time, history.isel(mode=i).values, **{**default, **style})
        if {"exponent", "stderr"} <= set(result):
            final, error = (float(result[name][i]) for name in ("exponent", "stderr"))
            look.band(ax, time[[0, -1]], final, error, line.get_color())
    ax.set_ylabel(wording.label_of(history))
    return look.finished(ax)


def finite_time_exponents(result: xr.Dataset, ax: Any = None) -> Any:
    """Plot the distribution of the growth of tangents over windows and trials.

    Parameters
    ----------
    result : Dataset
        What :func:`kpops.lyapunov_spectrum` returns, or ``.sel(mode=[1, 2])`` of it.
    ax : matplotlib Axes, default: in a new figure

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If there are no finite-time exponents, or they have other dimensions.

    Notes
    -----
    The outline of a mode is the density of its exponents in all windows of all trials, scaled to
    the same greatest width; a dot is the exponent of one trial over all its windows. Windows of
    minus infinity are omitted.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(3, 8, batch_first=True), torch.randn(5, 60, 3))
    >>> kpops.plot.finite_time_exponents(kpops.lyapunov_spectrum(lin, k=2)).get_ylabel()
    'finite-time exponent (1/step)'
    """
    values = look.variable(result, ("finite_time_exponent",), _SOURCE, ("trial", "time", "mode"))
    trials = look.variable(result, ("trial_exponent",), _SOURCE, ("trial", "mode"))
    ax = look.get_axes(ax)
    look.zero_line(ax)
    modes = wording.positions(ax.xaxis, values, "mode")
    samples = [column[np.isfinite(column)] for column in values.values.reshape(-1, len(modes)).T]
    there = [i for i, sample in enumerate(samples) if sample.size]
    if there:
        shown = [samples[i] for i in there]
        parts = ax.violinplot(shown, modes[there], widths=0.8, showextrema=False)
        for body in parts["bodies"]:
            body.set(facecolor=_VIOLIN, edgecolor=look.COLOURS[0], linewidth=0.6, alpha=1)
        parts["bodies"][0].set_label("windows")
    # Dots side by side can be counted, dots on top of one another cannot.
    aside = np.linspace(-0.15, 0.15, len(trials)) if len(trials) > 1 else np.zeros(1)
    x = (modes + aside[:, None]).ravel()
    y = np.where(np.isfinite(trials), trials, np.nan).ravel()
    dots = {"markersize": 2.5 if trials.size <= 60 else 1.5, "markeredgewidth": 0}
    ax.plot(x, y, "o", color=look.COLOURS[1], label="trials", **dots)
    ax.set_ylabel(wording.label_of(values.assign_attrs(long_name="finite-time exponent")))
    return look.finished(ax)


def covariant_angles(result: xr.Dataset, ax: Any = None) -> Any:
    """Plot the angles between covariant Lyapunov vectors: their densities, or the smallest.

    Parameters
    ----------
    result : Dataset
        What :func:`kpops.covariant_lyapunov_vectors` returns with ``angles=True``.
    ax : matplotlib Axes, default: in a new figure

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If there are no angles, or only one vector.

    Notes
    -----
    Up to four vectors have, for each pair, the density of its angle over trials and times; more
    have a matrix of the smallest angles. Where expanding and contracting directions come near one
    another, the dynamics are not hyperbolic.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(3, 8, batch_first=True), torch.randn(5, 60, 3))
    >>> vectors = kpops.covariant_lyapunov_vectors(lin, k=3, angles=True)
    >>> [text.get_text() for text in kpops.plot.covariant_angles(vectors).get_legend().get_texts()]
    ['1 and 2', '1 and 3', '2 and 3']
    """
    source = "kpops.covariant_lyapunov_vectors(..., angles=True)"
    dims = ("trial", "time", "mode", "mode_in")
    angle = look.variable(result, ("covariant_angle",), source, dims)
    pairs = list(combinations(range(angle.sizes["mode"]), 2))
    if not pairs:
        raise ValueError("one vector has no angle: compute two vectors or more, by k=2")
    ax = look.get_axes(ax)
    if len(pairs) > len(look.COLOURS):
        return _draw_smallest(ax, angle)
    modes = wording.names(angle["mode"])
    n_bins = int(np.clip(math.sqrt(angle[..., 0, 0].size), 10, _MOST_BINS))
    for (i, j), colour in zip(pairs, look.COLOURS, strict=False):
        known = angle.values[..., i, j]
        heights, edges = np.histogram(known[np.isfinite(known)], n_bins, (0, np.pi / 2))
        heights = heights / max(heights.sum(), 1) / np.diff(edges)
        ax.stairs(heights, edges, color=colour, label=f"{modes[i]} and {modes[j]}")
    ax.set_xlim(0, np.pi / 2)
    ax.set_ylim(bottom=0)
    ax.set_xticks(np.arange(5) * np.pi / 8, ["0", "π/8", "π/4", "3π/8", "π/2"])
    ax.set_xlabel(wording.label_of(angle))
    ax.set_ylabel("density (1/rad)")
    return look.finished(ax, title="modes")


def _draw_smallest(ax: Any, angle: xr.DataArray) -> Any:
    smallest = angle.min(("trial", "time"))
    shown = smallest.where(smallest["mode"] != smallest["mode_in"])
    image = look.heat_map(ax, shown, aspect="equal", cmap=look.UNSIGNED, vmin=0)
    ax.set_xlabel(ax.get_ylabel())  # a list against itself: neither is input
    name = f"smallest {angle.attrs.get('long_name', 'angle')}"
    look.colour_bar(image, ax, wording.label_of(angle.assign_attrs(long_name=name)))
    return ax
