"""Where the entries of a dimension stand on an axis, and which of them have ticks."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import xarray as xr

from kpops.plot import wording

_MOST_NAMES = 12
_LONG = 20
"""How many characters of names fit side by side below an axis."""


def places(
    axis: Any,
    values: xr.DataArray,
    dim: str,
    *,
    even: bool = False,
    nbins: int | Literal["auto"] = "auto",
) -> np.ndarray:
    """Label an axis for a dimension, set its ticks, and return where the entries stand on it.

    Finite numbers, dates and durations stand at their values. Names, and coordinates with missing
    or infinite entries, are counted from 0; with `even`, so is what is not evenly spaced. Durations
    take the unit that the axis has from an earlier call, else the one that fits.
    """
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.ticker import AutoLocator, ScalarFormatter

    from kpops.plot.locators import WholeNumbers

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
        locator = WholeNumbers(steps=[1, 2, 5, 10], integer=True) if whole else AutoLocator()
        locator.set_params(nbins=nbins)
        axis.set_major_locator(locator)
        axis.set_major_formatter(ScalarFormatter(useOffset=False))
    return numbers


def _numbers(axis: Any, coordinate: xr.DataArray) -> tuple[np.ndarray | None, str | None]:
    """Numbers that stand for the entries, None for names; and the unit of dates and durations."""
    from matplotlib.dates import date2num

    values = np.asarray(coordinate.values)
    units = None
    if values.dtype.kind == "M":
        numbers = np.asarray(date2num(values), float)
        # The ticks omit what all dates share, such as the year.
        units = None if np.isnat(values).any() else f"from {values.min().astype('M8[D]')}"
    elif values.dtype.kind == "m":
        units = axis.get_units()
        units = units if units in wording.DURATIONS else wording.fitting(values)
        axis.set_units(units)  # a later call on the same axis draws in the same unit
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
    """Write names at these places, only some of many; tilt long ones."""
    every = -(-len(names) // _MOST_NAMES)
    shown = names[::every]
    axis.set_ticks(at[::every], shown)
    if axis.axis_name == "x" and sum(map(len, shown)) > _LONG and len(shown) > 1:
        for text in axis.get_ticklabels():
            text.set(rotation=40, ha="right", rotation_mode="anchor")
