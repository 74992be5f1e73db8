"""Where the entries of a dim stand on an axis, and which of them have ticks.

Imports matplotlib, so it is imported by the functions that draw, not at the head of a file.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import xarray as xr
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.ticker import AutoLocator, LogLocator, MaxNLocator, ScalarFormatter

from kpops.plot import wording

_MOST_NAMES = 12
_LONG = 20
"""Characters of all names together that fit below an axis side by side."""


class WholeNumbers(MaxNLocator):
    """Ticks at whole numbers only; a single one where all data stand at one place."""

    def __init__(self, nbins: int | Literal["auto"] = "auto") -> None:
        super().__init__(nbins, steps=[1, 2, 5, 10], integer=True)

    def __call__(self) -> Any:
        """Ticks of the axis as it is now."""
        place = _only_place(self.axis)
        return place if place.size else super().__call__()

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """Whole numbers among the round ones of an interval."""
        return _whole(super().tick_values(vmin, vmax))


class WholeDecades(LogLocator):
    """The same on a logarithmic axis: 1, 2, 5, 10, 20 and so on."""

    def __init__(self) -> None:
        super().__init__(subs=(1, 2, 5))

    def __call__(self) -> Any:
        """Ticks of the axis as it is now."""
        place = _only_place(self.axis)
        return place if place.size else super().__call__()

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """Whole numbers among the round ones of an interval."""
        return _whole(super().tick_values(vmin, vmax))


def _only_place(axis: Any) -> np.ndarray:
    low, high = axis.get_data_interval()
    return np.array([low] if low == high else [])


def _whole(ticks: Any) -> np.ndarray:
    return np.unique(np.round(ticks)[np.abs(ticks - np.round(ticks)) < 1e-9])


def places(
    axis: Any,
    values: xr.DataArray,
    dim: str,
    *,
    even: bool = False,
    nbins: int | Literal["auto"] = "auto",
) -> np.ndarray:
    """Label an axis for a dim, set its ticks, and return where on it the entries stand.

    Numbers, dates and durations stand at their values; names, and what is missing or infinite, are
    counted from 0. With `even`, so is what is not evenly spaced. Durations are in the unit that
    the axis has from an earlier call, else in the one that fits.
    """
    coordinate = values[dim]
    numbers, units = _numbers(axis, coordinate)
    axis.set_label_text(wording.coordinate_label(values, dim, units))
    if numbers is None or (even and not _is_even(coordinate.values)):
        numbers = np.arange(coordinate.size, dtype=float)
        name_ticks(axis, numbers, wording.names(coordinate))
    elif axis.get_scale() != "linear":
        pass  # the caller's own
    elif even and coordinate.size == 1:
        name_ticks(axis, numbers, wording.names(coordinate))
    elif coordinate.dtype.kind == "M":
        locator = AutoDateLocator(minticks=3, maxticks=6)
        axis.set_major_locator(locator)
        axis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))
    else:
        whole = coordinate.dtype.kind in "iu"
        ticks = WholeNumbers(nbins) if whole else AutoLocator()
        if nbins != "auto":
            ticks.set_params(nbins=nbins)
        axis.set_major_locator(ticks)
        axis.set_major_formatter(ScalarFormatter(useOffset=False))
    return numbers


def _numbers(axis: Any, coordinate: xr.DataArray) -> tuple[np.ndarray | None, str | None]:
    """Numbers that stand for the entries, None for names; and the unit of times without one."""
    values = np.asarray(coordinate.values)
    units = None
    if values.dtype.kind == "M":
        numbers = np.asarray(date2num(values), float)
        # The ticks leave out what all of them share, such as the year.
        units = None if np.isnat(values).any() else f"from {values.min().astype('M8[D]')}"
    elif values.dtype.kind == "m":
        units = (
            axis.get_units() if axis.get_units() in wording.DURATIONS else wording.fitting(values)
        )
        axis.set_units(units)  # a later call, on the same axis, draws in the same unit
        numbers = wording.durations(values, units)
    elif values.dtype.kind in "iuf":
        numbers = values.astype(float)
    else:
        return None, None
    return (numbers if np.isfinite(numbers).all() else None), units


def _is_even(values: np.ndarray) -> bool:
    gaps = np.diff(values).astype(float)
    return not gaps.size or bool(gaps[0] > 0 and np.allclose(gaps, gaps[0], rtol=1e-3, atol=0))


def name_ticks(axis: Any, at: np.ndarray, names: list[str]) -> None:
    """Write names at some places, of many every few; long ones stand aslant."""
    every = -(-len(names) // _MOST_NAMES)
    shown = names[::every]
    axis.set_ticks(at[::every], shown)
    if axis.axis_name == "x" and sum(map(len, shown)) > _LONG and len(shown) > 1:
        for text in axis.get_ticklabels():
            text.set(rotation=40, ha="right", rotation_mode="anchor")
