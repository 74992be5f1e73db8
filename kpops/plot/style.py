"""What the figures share: what they take, axes, colours, legends and heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from kpops.kinds import described
from kpops.plot import wording

# Okabe and Ito (2008): told apart under every common colour blindness, and in grey by lightness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "0.45"
SIGNED, UNSIGNED = "RdBu_r", "viridis"
PADDING = "0.85"
"""Colour of steps that a mask leaves out: white is a value of both colour maps, or near one."""

# Inches and points of one column of a paper.
COLUMN, FONT_SIZE = 3.5, 8


def get_axes(ax: Any) -> Any:
    """Return `ax`, else the Axes of a new figure as wide as a column."""
    if ax is None:
        return new_axes(None, COLUMN, 0.72 * COLUMN).item()
    if not hasattr(ax, "lines"):
        raise TypeError(f"ax is {described(ax)}: pass Axes of matplotlib, or None for new ones")
    return ax


def new_axes(
    figure: Any, width: float, height: float, rows: int = 1, columns: int = 1, **layout: Any
) -> np.ndarray:
    """Grid of Axes in a figure of the user, else in a new one, with letters of a paper's size."""
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
    """Take away the frame's upper and right sides."""
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def free_colour(ax: Any) -> str:
    """First colour of the palette that no line or error bar of `ax` has yet."""
    from matplotlib.colors import to_hex

    used = {to_hex(line.get_color()).upper() for line in ax.lines}
    return next((c for c in COLOURS if c not in used), COLOURS[len(used) % len(COLOURS)])


def colours(ax: Any, values: xr.DataArray, dim: str) -> list[Any]:
    """A colour for each entry of a dim: of the palette, of many of a scale with its bar."""
    n = values.sizes[dim]
    if n == 1:
        return [free_colour(ax)]
    return list(COLOURS[:n]) if n <= len(COLOURS) else scale_colours(ax, values, dim)


def scale_colours(ax: Any, values: xr.DataArray, dim: str) -> list[Any]:
    """Colours of a scale for the entries of a dim, whose bar is drawn."""
    import matplotlib as mpl

    from kpops.plot.ticks import places

    # The bright end cannot be seen on white.
    dark = mpl.colormaps[UNSIGNED](np.linspace(0, 0.9, 256))
    image = mpl.cm.ScalarMappable(cmap=mpl.colors.ListedColormap(dark))
    bar = colour_bar(image, ax, "")
    at = places(bar.ax.yaxis, values, dim)
    alone = 0.5 * (at.min() == at.max())
    image.set_clim(at.min() - alone, at.max() + alone)
    places(bar.ax.yaxis, values, dim)  # again, since a new range brings its own ticks
    return [mpl.colors.to_hex(colour) for colour in image.to_rgba(at)]


def long_names(style: dict[str, Any]) -> dict[str, Any]:
    """Keywords of a line by their long names (color, not c), so that they replace defaults."""
    from matplotlib.cbook import normalize_kwargs
    from matplotlib.lines import Line2D

    return normalize_kwargs(style, Line2D)


def small(ax: Any) -> float:
    """Font size of notes and legends."""
    return 0.9 * ax.xaxis.label.get_size()


def once(ax: Any, label: str) -> str:
    """Return `label` if the legend of `ax` lacks it, else a label that legends leave out."""
    return "_nolegend_" if label in ax.get_legend_handles_labels()[1] else label


def legend_outside(ax: Any) -> None:
    """Put the legend, if there is anything to tell, to the right of the data."""
    if ax.get_legend_handles_labels()[1]:
        ax.legend(
            loc="upper left",
            bbox_to_anchor=(1.01, 1.02),
            borderaxespad=0,
            frameon=False,
            fontsize=small(ax),
            handlelength=1.5,
        )


def spans_decades(values: Any, decades: float = 1.5) -> bool:
    """Whether `values` span so many decades, but for zeros, and none of them is negative."""
    known = np.asarray(values)[np.isfinite(values) & (np.asarray(values) != 0)]
    return known.size > 0 and known.min() > 0 and known.max() >= 10**decades * known.min()


def log_values(ax: Any) -> None:
    """Make the axis of values logarithmic."""
    ax.set_yscale("log")  # also renews the ticks of what was drawn before
    low, high = ax.dataLim.minposy, ax.dataLim.ymax
    if low < high < 1.01 * low or low == high:  # ticks would differ in digits that are not written
        low, high = low / 1.1, 1.1 * high
        ax.set_ylim(low, high, auto=True)
    plain_numbers(ax.yaxis, low, high)


def plain_numbers(axis: Any, low: float, high: float) -> None:
    """Put round plain numbers beside a logarithmic axis, where it is short of a decade."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    if high < 10 * low:
        axis.set_major_locator(MaxNLocator(5))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: wording.number(value, 4)))


def heat_map(ax: Any, field: xr.DataArray, **style: Any) -> Any:
    """Image of a field: its first dim downwards, its second to the right; the image is returned.

    Dims that are evenly spaced keep their numbers on the axis; others are counted and named.
    """
    from kpops.plot.ticks import places

    rows, columns = (
        places(axis, field, str(dim), even=True, nbins=5)
        for axis, dim in zip((ax.yaxis, ax.xaxis), field.dims, strict=True)
    )
    (top, bottom), (left, right) = _edges(rows), _edges(columns)
    look = {"aspect": "auto", "interpolation": "nearest", "extent": (left, right, bottom, top)}
    return ax.imshow(field.values, **{**look, **style})


def _edges(at: np.ndarray) -> tuple[float, float]:
    """Outer edges of cells about evenly spaced numbers."""
    half = (at[1] - at[0]) / 2 if len(at) > 1 else 0.5
    return at[0] - half, at[-1] + half


def colour_bar(image: Any, axes: Any, label: str, **style: Any) -> Any:
    """Colour bar beside one or more Axes, with letters of their size."""
    shown = list(np.ravel(axes))
    axis = shown[0].yaxis
    bar = shown[0].figure.colorbar(image, ax=shown, shrink=0.9, pad=0.02, **style)
    bar.set_label(label, size=axis.label.get_size())
    bar.ax.tick_params(which="both", labelsize=axis.get_ticklabels()[0].get_size())
    bar.outline.set_visible(False)
    return bar


def band(ax: Any, x: Any, y: Any, error: Any, colour: Any) -> None:
    """Shade one standard error about a line."""
    ax.fill_between(x, y - error, y + error, color=colour, alpha=0.25, linewidth=0)


# What figures take.


def variable(
    result: Any, names: Sequence[str], source: str, *, arrays: bool = False
) -> xr.DataArray:
    """First of the named variables that a Dataset has; `source` makes such Datasets.

    With `arrays`, the figure takes any variable of a Dataset, too.
    """
    if not isinstance(result, xr.Dataset):
        raise ValueError(f"cannot plot a {type(result).__name__}: pass what {source} returns")
    for name in names:
        if name in result:
            return real(result[name])
    there = sorted(map(str, result.data_vars))
    other = f", or one variable, as result[{there[0]!r}]" if arrays and there else ""
    raise ValueError(
        f"the Dataset has the variables {there}, expected {' or '.join(names)}: pass what "
        f"{source} returns{other}"
    )


def real(values: xr.DataArray) -> xr.DataArray:
    """Refuse what is no real number."""
    if values.dtype.kind == "c":
        name = values.name or "values"
        raise ValueError(
            f"{name} is complex: draw its parts, {name}.real and {name}.imag, or abs({name})"
        )
    return values


def with_dims(
    values: xr.DataArray, needed: Sequence[str], optional: Sequence[str] = (), others: int = 0
) -> xr.DataArray:
    """Values with the needed dims last; refuse, with the remedy, what a figure cannot show.

    Of the dims that are neither needed nor optional there may be as many as `others`.
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
