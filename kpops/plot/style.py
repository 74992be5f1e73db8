"""What the figures share: axes, colours, labels, legends, error bars and heat maps."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

# Okabe and Ito (2008): told apart under every common colour blindness, and in grey by lightness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "0.45"
SIGNED, UNSIGNED = "RdBu_r", "viridis"

# Inches and points of one column of a paper.
COLUMN, FONT_SIZE = 3.5, 8

# Characters of an axis label that fit beside axes of that size.
_LABEL_WIDTH = 30


def get_axes(ax: Any) -> Any:
    """Return `ax`, else the Axes of a new figure as wide as a column."""
    return new_axes(None, COLUMN, 0.72 * COLUMN).item() if ax is None else ax


def new_axes(
    figure: Any, width: float, height: float, rows: int = 1, columns: int = 1, **layout: Any
) -> np.ndarray:
    """Grid of Axes in a figure of the user, else in a new one, with letters of a paper's size."""
    import matplotlib.pyplot as plt

    if figure is not None:
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


def label_of(values: xr.DataArray) -> str:
    """Axis label: the long name with the unit of measure, else the name, in short lines."""
    text = str(values.attrs.get("long_name", "" if values.name is None else values.name))
    units = values.attrs.get("units", "1")
    return textwrap.fill(text if units == "1" else f"{text} ({units})", _LABEL_WIDTH)


def coordinate_label(values: xr.DataArray, dim: str) -> str:
    """Label of the axis of a dim."""
    stem = dim.removesuffix("_in")
    default = {"step": "training iteration"}.get(stem, stem.replace("_", " "))
    if stem != dim:
        default = f"input {default}"
    return str(values[dim].attrs.get("long_name", default))


def free_colour(ax: Any) -> str:
    """First colour of the palette that no line or error bar of `ax` has yet."""
    from matplotlib.colors import to_hex

    used = {to_hex(line.get_color()).upper() for line in ax.lines}
    return next((c for c in COLOURS if c not in used), COLOURS[len(used) % len(COLOURS)])


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


def number(value: float, digits: int = 3) -> str:
    """Few digits of a number, as mathematics sets it."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.{max(digits, 4) if abs(value) >= 1000 else digits}g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return rf"${float(mantissa):g} \times 10^{{{int(exponent)}}}$"


def spans_decades(values: Any, decades: float = 1.0) -> bool:
    """Whether `values` are positive and their logarithms tell more than they."""
    finite = np.asarray(values)[np.isfinite(values)]
    return finite.size > 0 and finite.min() > 0 and finite.max() >= 10**decades * finite.min()


def log_values(ax: Any) -> None:
    """Make the axis of values logarithmic."""
    ax.set_yscale("log")  # also renews the ticks of what was drawn before
    plain_numbers(ax.yaxis, ax.dataLim.minposy, ax.dataLim.ymax)


def plain_numbers(axis: Any, low: float, high: float) -> None:
    """Put round plain numbers beside a logarithmic axis, where it is short of a decade."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    if high < 10 * low:
        axis.set_major_locator(MaxNLocator(5))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: number(value, 4)))


def edges(positions: np.ndarray) -> tuple[float, float] | None:
    """Outer edges of cells about evenly spaced numbers; None where they are not that."""
    if positions.dtype.kind not in "iuf" or not np.isfinite(positions).all():
        return None
    if len(positions) == 1:
        return float(positions[0]) - 0.5, float(positions[0]) + 0.5
    gaps = np.diff(positions.astype(float))
    if not np.allclose(gaps, gaps[0]) or gaps[0] <= 0:
        return None
    return float(positions[0]) - gaps[0] / 2, float(positions[-1]) + gaps[0] / 2


def heat_map(ax: Any, field: xr.DataArray, **style: Any) -> Any:
    """Image of a field: its first dim downwards, its second to the right; the image is returned.

    Dims with evenly spaced numbers keep them on the axis; others are counted and named.
    """
    from matplotlib.ticker import AutoLocator

    positions = [np.asarray(field[d].values) for d in field.dims]
    (top, bottom), (left, right) = (edges(p) or (-0.5, len(p) - 0.5) for p in positions)
    look = {"aspect": "auto", "interpolation": "nearest", "extent": (left, right, bottom, top)}
    image = ax.imshow(field.values, **{**look, **style})
    for axis, dim, names in zip((ax.yaxis, ax.xaxis), field.dims, positions, strict=True):
        axis.set_label_text(coordinate_label(field, str(dim)))
        if edges(names) is None:
            _name_ticks(axis, names)
        else:  # a new locator: on a shared axis, another map's names may be the ticks
            locator = AutoLocator()
            locator.set_params(integer=True, nbins=5)
            axis.set_major_locator(locator)
    return image


def _name_ticks(axis: Any, names: np.ndarray) -> None:
    every = -(-len(names) // 12)
    shown = np.arange(0, len(names), every)
    texts = [str(names[i]) for i in shown]
    axis.set_ticks(shown, texts)
    if axis.axis_name == "x" and sum(map(len, texts)) > 20:
        for text in axis.get_ticklabels():
            text.set(rotation=40, ha="right", rotation_mode="anchor")


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


def refuse_dims(values: xr.DataArray, expected: str) -> None:
    """Raise for dims that a figure cannot show."""
    raise ValueError(f"{values.name or 'values'} has dims {values.dims}, expected {expected}")


def variable(result: xr.Dataset, names: Sequence[str]) -> xr.DataArray:
    """First of the named variables that a Dataset has."""
    for name in names:
        if name in result:
            return result[name]
    raise ValueError(
        f"the Dataset has the variables {sorted(map(str, result.data_vars))}, expected "
        f"{' or '.join(names)}"
    )
