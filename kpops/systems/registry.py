"""Every system by name: its equation, parameters, initial state, time step and reference.

An equation is one function. Its positional arguments are the variables, its keyword arguments the
parameters with their default values; the files ``flows_*.py`` and ``maps.py`` hold one for each
system, under :func:`flow` or :func:`map_`.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kpops.kinds import described
from kpops.scalars import check_real

Equation = Callable[..., Any]


@dataclass(frozen=True)
class Entry:
    """What is known of a system before it is made.

    `kind` is "flow", "map" or the name of a solver of its own. `variables` is empty if the equation
    takes the whole state (.., unit), whose size is then that of the initial state. `literature` are
    trusted exponents with the digits that were printed, apart by spaces.
    """

    name: str
    kind: str
    equation: Equation
    variables: tuple[str, ...]
    defaults: Mapping[str, float]
    start: tuple[float, ...]
    dt: float | None
    n_substeps: int
    reference: str
    literature: str

    def values(self, given: Mapping[str, Any]) -> dict[str, float]:
        """Parameters, of which some are `given`."""
        for name, value in given.items():
            if name not in self.defaults:
                near = _near(name, list(self.defaults))
                known = ", ".join(f"{k}={v:.6g}" for k, v in self.defaults.items())
                raise TypeError(f"{self.name} has no parameter {name!r}{near}: it takes {known}")
            check_real(f"{name} of {self.name}", value)
            if not math.isfinite(value):
                raise ValueError(f"{name} of {self.name} is {value}: pass a finite number")
        return {name: float(given.get(name, value)) for name, value in self.defaults.items()}

    def rates(self, h: Tensor, values: Mapping[str, Any]) -> Tensor | tuple[Any, ...]:
        """What the equation returns at the state h (.., unit)."""
        if not self.variables:
            return self.equation(h, **values)
        return self.equation(*h.unbind(-1), **values)


ENTRIES: dict[str, Entry] = {}


def register(
    kind: str,
    name: str,
    start: tuple[float, ...],
    reference: str,
    *,
    dt: float | None = None,
    n_substeps: int = 1,
    literature: str = "",
) -> Callable[[Equation], Equation]:
    """Keep the decorated equation under a name."""

    def keep(equation: Equation) -> Equation:
        every = inspect.signature(equation).parameters.values()
        variables = tuple(p.name for p in every if p.kind is p.POSITIONAL_OR_KEYWORD)
        defaults = {p.name: float(p.default) for p in every if p.kind is p.KEYWORD_ONLY}
        ENTRIES[name] = Entry(
            name,
            kind,
            equation,
            () if variables == ("h",) else variables,
            defaults,
            start,
            dt,
            n_substeps,
            reference,
            literature,
        )
        return equation

    return keep


def flow(
    name: str, start: tuple[float, ...], reference: str, **options: Any
) -> Callable[[Equation], Equation]:
    """Keep the vector field of a flow; `dt`, `n_substeps` and `literature` are options."""
    return register("flow", name, start, reference, **options)


def map_(
    name: str, start: tuple[float, ...], reference: str, literature: str = ""
) -> Callable[[Equation], Equation]:
    """Keep a map."""
    return register("map", name, start, reference, literature=literature)


def find(name: Any) -> Entry:
    """Entry of a name, which must be known."""
    if not isinstance(name, str):
        raise TypeError(f"name is {described(name)}: pass one of kpops.systems.names()")
    if name not in ENTRIES:
        near = _near(name, list(ENTRIES)) or ": kpops.systems.names() lists all"
        raise ValueError(f"no system has the name {name!r}{near}")
    return ENTRIES[name]


def _near(name: str, known: list[str]) -> str:
    """The nearest names, as a question; capitals do not count."""
    plain = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), list(plain), n=3, cutoff=0.6)
    return f": did you mean {', '.join(plain[n] for n in near)}?" if near else ""
