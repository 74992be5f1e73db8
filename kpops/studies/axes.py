"""The axes of a study: their values, its points, and the random numbers of a point."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kpops.kinds import described

Value = float | int | str | bool
Axes = dict[str, list[Value]]
Position = tuple[int, ...]
RESERVED = ("done", "status", "rng")
"""Names that the store or the call of a measure uses."""


def read_axes(axes: Mapping[str, Any]) -> Axes:
    """Names and values of axes as plain Python, which JSON can hold."""
    for name in axes:
        if name in RESERVED or not name.isidentifier():
            raise ValueError(f"{name!r} is no name for an axis: choose another")
    return {name: _values(name, given) for name, given in axes.items()}


def _values(name: str, given: Any) -> list[Value]:
    if isinstance(given, str | bytes | Mapping) or not np.iterable(given):
        raise TypeError(f"{name} is {described(given)}: pass the values of this axis as a list")
    entries = np.asarray(given).tolist() if hasattr(given, "__array__") else list(given)
    kinds = {kind_of(entry) for entry in entries}
    if len(kinds) != 1 or None in kinds:
        types = sorted({type(entry).__name__ for entry in entries}) or "none"
        raise TypeError(
            f"{name} has {len(entries)} values of types {types}: an axis has numbers, strings or "
            "booleans, all alike"
        )
    number = int if all(isinstance(entry, int | np.integer) for entry in entries) else float
    plain: dict[str | None, Any] = {"numbers": number, "booleans": bool, "strings": str.__str__}
    values = [plain[kind_of(entry)](entry) for entry in entries]
    if any(value != value for value in values):
        raise ValueError(f"{name} has the value nan: a point must be equal to itself, leave it out")
    if len(set(values)) < len(values):
        twice = next(value for value in values if values.count(value) > 1)
        raise ValueError(f"{name} has the value {twice!r} twice: pass each value once")
    return values


def kind_of(value: Any) -> str | None:
    """Whether a value is a number, a string or a boolean; None for all else."""
    if isinstance(value, bool | np.bool_):
        return "booleans"
    if isinstance(value, int | float | np.integer | np.floating):
        return "numbers"
    return "strings" if isinstance(value, str) else None


def joined(stored: Axes, planned: Axes) -> Axes:
    """Values of both, the stored ones first; refuses another kind of values."""
    grown = {}
    for name, values in stored.items():
        known, ours = set(values), planned.get(name, values)
        theirs, mine = kind_of(values[0]), kind_of(ours[0])
        if mine != theirs:
            raise ValueError(
                f"{name} has {theirs} in the store and {mine} here: use another name or store"
            )
        grown[name] = values + [value for value in ours if value not in known]
    return grown


def coordinate(values: Sequence[Value]) -> np.ndarray:
    """The values of an axis as an array that files can hold."""
    array = np.array(values, dtype=object if isinstance(values[0], str) else None)
    integers = [value for value in values if isinstance(value, int)]
    if array.dtype.kind == "f" and len(integers) == len(values):  # which NumPy rounds
        return np.array(values, np.uint64 if min(integers) >= 0 else object)
    return array


def generator_of(seed: int, point: Mapping[str, Value]) -> np.random.Generator:
    """Random generator of a point: a function of the seed and of its coordinates alone.

    A seed sequence spawned under a key that is a hash of the coordinates, so that a study may grow
    and run in any order.
    """
    text = json.dumps([[name, _canonical(point[name])] for name in sorted(point)])
    digest = hashlib.sha256(text.encode()).digest()
    key = tuple(int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4))
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _canonical(value: Value) -> str:
    """The same text for 1 and 1.0, which are one value of an axis."""
    if isinstance(value, bool | str) or (isinstance(value, float) and not math.isfinite(value)):
        return repr(value)
    return repr(int(value)) if value == int(value) else repr(value)


def written(point: Mapping[str, Value]) -> str:
    """Write a point for people: ``g=0.5, seed=3``."""
    return ", ".join(f"{name}={value!r}" for name, value in point.items())
