"""What figures write: labels of axes, names of entries, numbers and durations."""

from __future__ import annotations

import textwrap

import numpy as np
import xarray as xr

OPERATORS = ("operator", "operator2")
"""Coordinates that say of which operator a result is; an alignment is of two."""

DURATIONS = {"d": 864e11, "h": 36e11, "min": 6e10, "s": 1e9, "ms": 1e6, "µs": 1e3, "ns": 1.0}
"""Nanoseconds of a unit."""

# Characters of an axis label that fit beside axes as wide as a column.
_LABEL_WIDTH = 30


def label_of(values: xr.DataArray) -> str:
    """Axis label: the long name with the unit of measure, else the name, in short lines."""
    text = str(values.attrs.get("long_name", "" if values.name is None else values.name))
    units = values.attrs.get("units", "1")
    return textwrap.fill(text if units == "1" else f"{text} ({units})", _LABEL_WIDTH)


def coordinate_label(values: xr.DataArray, dim: str, units: str | None = None) -> str:
    """Label of the axis of a dim, with the unit of measure if it has one."""
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
    """Largest unit of which durations hold two at least."""
    longest = np.nanmax(np.abs(durations / np.timedelta64(1, "ns")), initial=0)
    return next((u for u, length in DURATIONS.items() if longest >= 2 * length), "ns")


def durations(values: np.ndarray, units: str) -> np.ndarray:
    """Durations as numbers of a unit."""
    return values / np.timedelta64(1, "ns") / DURATIONS[units]


def operator_of(values: xr.Dataset | xr.DataArray) -> str | None:
    """Symbol of the operator, or the two, that a result is of, if it is of one alone."""
    there = [values.coords[name] for name in OPERATORS if name in values.coords]
    symbols = [str(symbol.item()) for symbol in there if not symbol.ndim]
    return ", ".join(symbols) if symbols and len(symbols) == len(there) else None


def number(value: float, digits: int = 3) -> str:
    """Few digits of a number, as mathematics sets it."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.{max(digits, 4) if abs(value) >= 1000 else digits}g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return rf"${float(mantissa):g} \times 10^{{{int(exponent)}}}$"
