"""What the figures share: axes, colours, lines, legends, heat maps, and the check of data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from kpops.kinds import described
from kpops.plot import wording

# Okabe and Ito (2008): distinct under every common colour blindness, and in grey by lightness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "0.45"
SIGNED, UNSIGNED = "RdBu_r", "viridis"
PADDING = "0.85"
"""Colour of masked steps. White would be a value of one colour map, and near one of the other."""

_DECADES = 6

# Inches and points of one column of a paper.
COLUMN, FONT_SIZE = 3.5, 8


def get_axes(ax: Any, width: float = COLUMN, height: float = 0.72 * COLUMN) -> Any:
    """Return `ax`, else the Axes of a new figure."""
    if ax is None:
        return new_axes(None, width, height).item()
    if not hasattr(ax, "lines"):
        raise TypeError(f"ax is {described(ax)}: pass Axes of matplotlib, or None for new ones")
    return ax


def new_axes(
    figure: Any, width: float, height: float, rows: int = 1, columns: int = 1, **layout: Any
) -> np.ndarray:
    """Grid of Axes in the user's figure, else in a new one with the font sizes of a paper."""
    import matplotlib.pyplot as plt

    if figure is not None:
        if not hasattr(figure, "subplots"):
            raise TypeError(f"figure is {described(figure)}: pass a Figure of matplotlib, or None")
        return figure.subplots(rows, columns, squeeze=False, **layout)
    figure = plt.figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **layout)
    for ax in axes.flat:
        for text in (ax.xaxis.label, ax.yaxis.label, ax.title):
            text.set_size(FONT_SIZE)
        ax.tick_params(which="both", labelsize=FONT_SIZE - 1)
    return axes


def plain(ax: Any) -> Any:
    """Remove the frame's upper and right sides, and return the Axes."""
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def finished(ax: Any, **legend: Any) -> Any:
    """Remove half the frame, put the legend, if there is one, to the right, and return the Axes."""
    if ax.get_legend_handles_labels()[1]:
        looks = {"fontsize": small(ax), "title_fontsize": small(ax), "handlelength": 1.5}
        place = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.02), "borderaxespad": 0}
        ax.legend(**{"frameon": False, **looks, **place, **legend})
    return plain(ax)


def free_colour(ax: Any) -> str:
    """First colour of the palette that no line or error bar of `ax` has yet."""
    from matplotlib.colors import to_hex

    used = {to_hex(line.get_color()).upper() for line in ax.lines}
    return next((c for c in COLOURS if c not in used), COLOURS[len(used) % len(COLOURS)])


def entries(
    ax: Any, values: xr.DataArray, dim: str, labels: Sequence[str | None]
) -> list[tuple[Any, str | None]]:
    """Colour and label for each entry of a dimension: many share a scale, and have no labels."""
    if len(labels) > len(COLOURS):
        return [(colour, None) for colour in scale_colours(ax, values, dim)]
    palette = COLOURS if len(labels) > 1 else [free_colour(ax)]
    return list(zip(palette, labels, strict=False))


def scale_colours(ax: Any, values: xr.DataArray, dim: str) -> list[Any]:
    """Colours of a scale for the entries of a dimension; draws the colour bar."""
    import matplotlib as mpl

    # The bright end cannot be seen on white.
    dark = mpl.colormaps[UNSIGNED](np.linspace(0, 0.9, 256))
    image = mpl.cm.ScalarMappable(cmap=mpl.colors.ListedColormap(dark))
    bar = colour_bar(image, ax, "")
    at = wording.positions(bar.ax.yaxis, values, dim)
    alone = 0.5 * (at.min() == at.max())
    image.set_clim(at.min() - alone, at.max() + alone)
    wording.positions(bar.ax.yaxis, values, dim)  # again, since a new range brings its own ticks
    return [mpl.colors.to_hex(colour) for colour in image.to_rgba(at)]


def long_names(style: dict[str, Any]) -> dict[str, Any]:
    """Keywords of a line under their long names (color, not c), so that they replace defaults."""
    from matplotlib.cbook import normalize_kwargs
    from matplotlib.lines import Line2D

    return normalize_kwargs(style, Line2D)


def small(ax: Any) -> float:
    """Font size of notes and legends."""
    return 0.9 * ax.xaxis.label.get_size()


def once(ax: Any, label: str) -> str:
    """Return `label` if the legend of `ax` lacks it, else a label that legends ignore."""
    return "_nolegend_" if label in ax.get_legend_handles_labels()[1] else label


def legend_entry(ax: Any, label: str, **style: Any) -> None:
    """Add an entry to the legend alone, unless it has one with this label."""
    ax.plot([], [], label=once(ax, label), **{"linestyle": "none", **style})


def zero_line(ax: Any, linewidth: float = 0.6) -> None:
    """Draw a thin grey line at zero."""
    ax.axhline(0, color=GREY, linewidth=linewidth, zorder=0)


def curve(ax: Any, x: Any, y: Any, error: Any, **style: Any) -> Any:
    """Draw a line with a band of one standard error, if that is known, and return its colour."""
    (line,) = ax.plot(x, y, **style)
    if error is not None:
        band(ax, x, y, error, line.get_color())
    return line.get_color()


def band(ax: Any, x: Any, y: Any, error: Any, colour: Any) -> None:
    """Shade one standard error about a line."""
    ax.fill_between(x, y - error, y + error, color=colour, alpha=0.25, linewidth=0)


def bars(ax: Any, x: Any, y: Any, error: Any, colour: Any) -> None:
    """Draw error bars on the markers of a line."""
    ax.errorbar(x, y, error, fmt="none", ecolor=colour, elinewidth=0.8, capsize=1.5)


def marker_size(n: int) -> int:
    """Size of `n` markers on a line: smaller where there are many."""
    return 4 if n <= 12 else 3 if n <= 60 else 2


def spans_decades(values: np.ndarray) -> bool:
    """Whether the nonzero `values` are positive and span a decade and a half."""
    known = values[np.isfinite(values) & (values != 0)]
    return known.size > 0 and known.min() > 0 and known.max() >= 10**1.5 * known.min()


def log_values(ax: Any) -> None:
    """Make the axis of values logarithmic."""
    ax.set_yscale("log")  # also renews the ticks of what was drawn before
    low, high = ax.dataLim.minposy, ax.dataLim.ymax
    if low < high < 1.01 * low or low == high:  # the ticks would be written alike
        low, high = low / 1.1, 1.1 * high
        ax.set_ylim(low, high, auto=True)
    plain_numbers(ax.yaxis, low, high)


def plain_numbers(axis: Any, low: float, high: float) -> None:
    """Write round plain numbers beside a logarithmic axis that is shorter than a decade."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    if high < 10 * low:
        axis.set_major_locator(MaxNLocator(5))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: wording.number(value, 4)))


def decades(values: np.ndarray) -> tuple[float, float, str]:
    """Ends of a logarithmic scale over at most six decades, and how its colour bar extends."""
    positive = values[values > 0]  # leaves NaN out, too
    largest = float(positive.max(initial=0)) or 1.0
    smallest = float(positive.min(initial=largest))
    low = min(max(smallest, largest / 10**_DECADES), largest / 2)
    return low, largest, "min" if smallest < low else "neither"


def heat_map(ax: Any, field: xr.DataArray, **style: Any) -> Any:
    """Draw a field, its first dimension downwards, its second to the right; return the image.

    Dimensions that are evenly spaced keep their numbers on the axis; others are counted and named.
    """
    edges = []
    for axis, dim in zip((ax.yaxis, ax.xaxis), field.dims, strict=True):
        at = wording.positions(axis, field, str(dim), even=True, nbins=5)
        half = (at[1] - at[0]) / 2 if len(at) > 1 else 0.5
        edges.append((at[0] - half, at[-1] + half))
    (top, bottom), (left, right) = edges
    look = {"aspect": "auto", "interpolation": "nearest", "extent": (left, right, bottom, top)}
    return ax.imshow(field.values, **{**look, **style})


def colour_bar(image: Any, axes: Any, label: str, **style: Any) -> Any:
    """Colour bar beside one or more Axes, with their font sizes."""
    shown = list(np.ravel(axes))
    axis = shown[0].yaxis
    bar = shown[0].figure.colorbar(image, ax=shown, shrink=0.9, pad=0.02, **style)
    bar.set_label(label, size=axis.label.get_size())
    bar.ax.tick_params(which="both", labelsize=axis.get_ticklabels()[0].get_size())
    bar.outline.set_visible(False)
    return bar


def variable(
    result: Any, names: Sequence[str], source: str, *dims: Any, arrays: bool = False
) -> xr.DataArray:
    """First of the named variables of a Dataset, checked by :func:`with_dims` if `dims` are given.

    `source` names what returns such Datasets. With `arrays`, any DataArray is accepted as well.
    """
    if isinstance(result, xr.Dataset):
        values = next((result[name] for name in names if name in result), None)
    elif arrays and isinstance(result, xr.DataArray):
        values = result
    else:
        raise ValueError(f"cannot plot a {type(result).__name__}: pass what {source} returns")
    if values is None:
        there = sorted(map(str, result.data_vars))
        other = f", or one variable, as result[{there[0]!r}]" if arrays and there else ""
        raise ValueError(
            f"the Dataset has the variables {there}, expected {' or '.join(names)}: pass what "
            f"{source} returns{other}"
        )
    if values.dtype.kind == "c":
        name = values.name or "values"
        raise ValueError(
            f"{name} is complex: draw its parts, {name}.real and {name}.imag, or abs({name})"
        )
    return with_dims(values, *dims) if dims else values


def with_dims(
    values: xr.DataArray, needed: Sequence[str], optional: Sequence[str] = (), others: int = 0
) -> xr.DataArray:
    """Values with the needed dimensions last; refuse what a figure cannot show, with the remedy.

    At most `others` dimensions may be neither needed nor optional.
    """
    dims = tuple(map(str, values.dims))
    missing = [d for d in needed if d not in dims]
    left = [d for d in dims if d not in (*needed, *optional)]
    if not missing and len(left) <= others:
        return values.transpose(..., *needed)
    expected = ", ".join(needed)
    if optional:
        expected += f", with or without {' and '.join(optional)}"
    if others:
        expected += f"{' and ' * bool(needed)}at most {others} others"
    text = f"{values.name or 'values'} has dims {dims}, expected {expected}"
    if missing:
        raise ValueError(f"{text}: {', '.join(missing)} is missing")
    choice = ", ".join(f"{d}=0" for d in left[others:])
    raise ValueError(f"{text}: choose entries of the others, for example by .isel({choice})")
