"""Figures of learning: what leading modes capture, and ranks within their bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from kpops.plot import style as look
from kpops.plot import wording

_FRACTIONS = {
    "state_change_captured": "state change",
    "loss_decrease_captured": "loss decrease",
    "error_captured": "error",
    "explained": "variance",
}
_SOURCE = "kpops.truncated_flow or kpops.trajectory_dimension"
_FEW_MODES = 30
_BARS = {  # height, colour and label of the bar of a variable; the bounds lie behind the rank
    "bound": (0.8, "0.88", "bound by\nthe features"),
    "bound_at_tol": (0.8, "0.72", "bound above\nthe tolerance"),
    "rank": (0.4, look.COLOURS[0], "numerical rank"),
}


def captured(result: xr.Dataset, ax: Any = None, **style: Any) -> Any:
    """Plot the fraction that the leading modes capture together against their number.

    Parameters
    ----------
    result : Dataset
        From :func:`kpops.truncated_flow`: state change, decrease of the loss, and error. From
        :func:`kpops.trajectory_dimension`: variance of the states, marked at the wanted fraction.
    ax : matplotlib Axes, default: in a new figure
    **style
        Passed to ``Axes.plot``. ``label`` names the result, so that several can share the axes;
        the three lines of a truncated flow then share one colour.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If `result` has neither.

    Examples
    --------
    >>> import torch, kpops
    >>> ax = kpops.plot.captured(kpops.trajectory_dimension(torch.randn(5, 10, 8)))
    >>> ax.get_xlabel()
    'number of leading modes'
    """
    from matplotlib.ticker import StrMethodFormatter

    lines = _fractions(result)
    ax = look.get_axes(ax)
    style = look.long_names(style)
    name = style.pop("label", None)
    modes = wording.positions(ax.xaxis, next(iter(lines.values())), "mode")
    few = len(modes) <= _FEW_MODES
    shared = {"color": look.free_colour(ax)} if name else {}
    for (what, values), dashes in zip(lines.items(), ("-", "--", ":"), strict=False):
        own = shared and {"linestyle": dashes}
        label = what if name is None else name if len(lines) == 1 else f"{name}: {what}"
        marker = "." if few and not own else ""
        default = {"color": look.free_colour(ax), "linewidth": 1, "marker": marker}
        ax.plot(modes, values.values, **{**default, **shared, **own, "label": label, **style})
    if "n_components" in result:
        _mark_threshold(ax, int(result["n_components"]), values)
    if not few or ax.get_xscale() == "log":
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.set_ylim(0, 1.04)
    ax.set_xlabel("number of leading modes")
    ax.set_ylabel("fraction captured" if len(lines) > 1 else f"fraction of the {next(iter(lines))}")
    return look.finished(ax) if len(lines) > 1 or name else look.plain(ax)


def _fractions(result: xr.Dataset) -> dict[str, xr.DataArray]:
    look.variable(result, tuple(_FRACTIONS), _SOURCE)  # refuses what has none of them
    found = {
        text: look.variable(result, (name,), _SOURCE, ("mode",))
        for name, text in _FRACTIONS.items()
        if name in result
    }
    if "variance" in found:
        found["variance"] = found["variance"].cumsum("mode")
    return found


def _mark_threshold(ax: Any, count: int, values: xr.DataArray) -> None:
    if 1 <= count <= values.size:
        reached, colour = float(values[count - 1]), ax.lines[-1].get_color()
        ax.plot([count, count], [0, reached], color=colour, linestyle=":", linewidth=0.8)
        ax.plot([count], [reached], "o", color=colour, markersize=4, markerfacecolor="white")


def rank_bounds(result: xr.Dataset, ax: Any = None) -> Any:
    """Plot the ranks of the parameters' operators within the bounds from their features.

    Parameters
    ----------
    result : Dataset
        What :func:`kpops.rank_bounds` returns.
    ax : matplotlib Axes, default: in a new figure

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If `result` is something else.

    Notes
    -----
    The numbers on the right are the shares of the parameters in the trace of K.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(3, 4, batch_first=True), torch.randn(5, 6, 3))
    >>> ax = kpops.plot.rank_bounds(kpops.rank_bounds(lin))
    >>> [label.get_text() for label in ax.get_yticklabels()][-1]
    'K'
    """
    for name in (*_BARS, "participation", "participation_stderr", "trace_share"):
        look.variable(result, (name,), "kpops.rank_bounds", ("parameter",))
    names = [*wording.names(result["parameter"]), "K"]
    ax = look.get_axes(ax, 1.75 * look.COLUMN, 0.7 + 0.36 * len(names))
    y = np.arange(len(names))
    for variable, (height, colour, label) in _BARS.items():
        values = _with_sum(result, variable)
        known = np.isfinite(values)
        ax.barh(y[known], values[known], height, color=colour, label=label)
    participation = _with_sum(result, "participation")
    error = _with_sum(result, "participation_stderr")
    dots = {"fmt": "o", "color": look.COLOURS[1], "markersize": 4, "capsize": 2}
    ax.errorbar(participation, y, xerr=error, label="participation\nratio", **dots)
    ax.set_xscale("log")
    ax.set_xlim(left=0.8)
    texts = [f"{name}  ({u})" for name, u in zip(names, result["features"].values, strict=False)]
    ax.set_yticks(y, [*texts, "K"])
    ax.invert_yaxis()
    size = look.small(ax)
    place = {"xycoords": ax.get_yaxis_transform(), "va": "center"}
    for at, share in enumerate(result["trace_share"].values):
        ax.annotate(f"{100 * share:.0f} %", (1.01, at), fontsize=size, **place)
    place = {"xycoords": "axes fraction", "va": "bottom"}
    ax.annotate("share of\ntr K", (1.01, 1.0), fontsize=size, **place)
    ax.set_xlabel("rank")
    return look.finished(ax, bbox_to_anchor=(1.18, 1.02), handlelength=None)


def _with_sum(result: xr.Dataset, variable: str) -> np.ndarray:
    """The values of the parameters, then that of K, or NaN if it has none."""
    total = float(result[f"{variable}_of_sum"]) if f"{variable}_of_sum" in result else np.nan
    return np.append(result[variable].values, total)
