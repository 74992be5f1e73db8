"""What figures write: labels, names, numbers, durations; and where entries stand on an axis."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import xarray as xr

OPERATORS = ("operator", "operator2")
"""Coordinates that name the operator of a result, or the two of an alignment."""

DURATIONS = {"d": 864e11, "h": 36e11, "min": 6e10, "s": 1e9, "ms": 1e6, "µs": 1e3, "ns": 1.0}
"""Nanoseconds of a unit."""

# Characters that fit along an axis in a line of its label, and in the names of its ticks together.
_LABEL_WIDTH, _NAMES_WIDTH = 30, 20
_MOST_NAMES = 12


def label_of(values: xr.DataArray) -> str:
    """Axis label in short lines: the long name, else the name, with the unit of measure."""
    text = str(values.attrs.get("long_name", "" if values.name is None else values.name))
    units = values.attrs.get("units", "1")
    return textwrap.fill(text if units == "1" else f"{text} ({units})", _LABEL_WIDTH)


def coordinate_label(values: xr.DataArray, dim: str, units: str | None = None) -> str:
    """Label of the axis of a dimension, with the unit of measure if it has one."""
    stem = dim.removesuffix("_in")
    default = {"step": "training iteration"}.get(stem, stem.replace("_", " "))
    attrs = {**(values[stem].attrs if stem in values.coords else {}), **values[dim].attrs}
    text = str(attrs.get("long_name", default))
    if stem != dim and not text.startswith("input "):
        text = f"input {text}"
    units = str(attrs.get("units", "1")) if units is None else units
    return text if units in ("1", "", stem) else f"{text} ({units})"


def names(coordinate: xr.DataArray) -> list[str]:
    """Texts of the entries of a coordinate, as short as they are unambiguous."""
    values = np.asarray(coordinate.values)
    if values.dtype.kind == "M":
        known = values[~np.isnat(values)]
        lengths = ("D", "m", "s", "ms", "us", "ns")
        exact = next(u for u in lengths if (known.astype(f"M8[{u}]") == known).all())
        texts = values.astype(f"M8[{exact}]").astype(str)
        return ["NaT" if text == "NaT" else text.replace("T", " ") for text in texts]
    if values.dtype.kind == "m":
        units = fitting(values)
        return [f"{number(value, 6)} {units}" for value in durations(values, units)]
    if values.dtype.kind == "f":
        return [f"{value:.6g}" for value in values]
    entries = values.tolist()
    return [", ".join(map(str, e)) if isinstance(e, tuple) else str(e) for e in entries]


def fitting(durations: np.ndarray) -> str:
    """Largest unit of which some duration holds at least two."""
    longest = np.nanmax(np.abs(durations / np.timedelta64(1, "ns")), initial=0)
    return next((u for u, length in DURATIONS.items() if longest >= 2 * length), "ns")


def durations(values: np.ndarray, units: str) -> np.ndarray:
    """Durations in a unit."""
    return values / np.timedelta64(1, "ns") / DURATIONS[units]


def operator_of(values: xr.Dataset | xr.DataArray) -> str | None:
    """Symbol of the operator of a result, or of its two, if all entries share it."""
    there = [values.coords[name] for name in OPERATORS if name in values.coords]
    symbols = [str(symbol.item()) for symbol in there if not symbol.ndim]
    return ", ".join(symbols) if symbols and len(symbols) == len(there) else None


def number(value: float, digits: int = 3) -> str:
    """A number with few digits, in mathematical notation."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.{max(digits, 4) if abs(value) >= 1000 else digits}g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return rf"${float(mantissa):g} \times 10^{{{int(exponent)}}}$"


def positions(
    axis: Any, values: xr.DataArray, dim: str, *, even: bool = False, nbins: int | str = "auto"
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
    axis.set_label_text(coordinate_label(values, dim, units))
    if numbers is None or (even and not _is_even(coordinate.values)):
        numbers = np.arange(coordinate.size, dtype=float)
        name_ticks(axis, numbers, names(coordinate))
    elif axis.get_scale() != "linear":
        pass  # the caller's own
    elif even and coordinate.size == 1:
        name_ticks(axis, numbers, names(coordinate))
    elif coordinate.dtype.kind == "M":
        dates = AutoDateLocator(minticks=3, maxticks=6)
        axis.set_major_locator(dates)
        axis.set_major_formatter(ConciseDateFormatter(dates, show_offset=False))
    else:
        whole = coordinate.dtype.kind in "iu"
        locator: Any = WholeNumbers(steps=[1, 2, 5, 10], integer=True) if whole else AutoLocator()
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
        units = units if units in DURATIONS else fitting(values)
        axis.set_units(units)  # a later call on the same axis draws in the same unit
        numbers = durations(values, units)
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
    if axis.axis_name == "x" and sum(map(len, shown)) > _NAMES_WIDTH and len(shown) > 1:
        for text in axis.get_ticklabels():
            text.set(rotation=40, ha="right", rotation_mode="anchor")
