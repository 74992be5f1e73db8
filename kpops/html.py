"""The tables and drawings of linearizations, operators and spaces in notebooks.

A drawing shows the path of the gradient, ``Err -> P* -> J* -> J -> P -> dh`` with ``K = J J*``, and
C at both ends of an operator on outputs. The factors of the operator at hand are filled. Colours
follow the page, light or dark.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from kpops.dynamics.resolvent import Resolvent
from kpops.engines.memory import readable
from kpops.kinds import table_of
from kpops.labels import Space
from kpops.linearization import Linearization
from kpops.operators import (
    ParameterJacobian,
    ParameterOperator,
    PartialTrace,
    ProbedGram,
    Propagator,
    ReadoutJacobian,
    TrajectoryOperator,
)
from kpops.operators.base import Adjoint, Product, Scaled, Sum

_STATES = ("P*", "J*", "J", "P")
_OUTPUTS = ("C*", *_STATES, "C")
_WIDTH, _GAP, _HEIGHT = 34, 24, 24  # of a box, between two, and of a box


@table_of.register
def _of_space(space: Space) -> str:
    table = {}
    for dim, size in space.sizes.items():
        names = [str(n) for n, c in space.coords.items() if dim in c.dims and n != dim]
        table[dim] = f"{size:,}" + (f", with {', '.join(names)}" if names else "")
    return _page(repr(space), "", table | {"size": f"{space.size:,}"})


@table_of.register
def _of_operator(op: TrajectoryOperator) -> str:
    rows, columns = op.shape
    size = op.dtype.itemsize
    kind = "positive semi-definite" if op.positive else "self-adjoint" if op.self_adjoint else ""
    dims = ", ".join(op.block_diagonal_dims)
    blocks = f"block diagonal over {dims}" if dims else ""
    origin = [f"{k} {op.attrs[k]}" for k in ("model", "measure", "engine") if k in op.attrs]
    table = {"from": repr(op.domain), "to": repr(op.codomain)}
    if op.domain == op.codomain:
        table = {"on": repr(op.domain)}
    table |= {
        "size": f"{rows:,} x {columns:,}, {op.dtype} on {op.device}",
        "known": ", ".join(filter(None, (kind, blocks))),
        "memory": f"{readable(columns * size)} for a vector, {readable(rows * columns * size)} "
        "for the matrix, if it were made",
        "model": ", ".join(origin).removeprefix("model "),
    }
    return _page(op.symbol, _drawing(factors(op)), table)


@table_of.register
def _of_linearization(lin: Linearization) -> str:
    n_parameters, names = lin.parameter_space.size, list(lin.parameters)
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    way = frozenset(_STATES if lin.readout is None else _OUTPUTS)
    table = {
        "states": repr(lin.space),
        "outputs": "" if lin.readout is None else repr(lin.output_space),
        "inputs": str(lin.reading).removeprefix(", "),
        "learning": f"{n_parameters:,} numbers in {', '.join(names[:8])}" + more,
        "size": f"{lin.space.size:,} states, {lin.attrs['dtype']} on {lin.device}",
        "measure": ", ".join(filter(None, (lin.measure, lin.attrs.get("forcing")))),
        "engine": f"{lin.engine.name}: {lin.engine_reason} {lin.engine.remark}",
        "known": ", ".join(name for name, holds in lin.structure.items() if holds),
        "memory": f"{readable(lin.space.size * lin.P.dtype.itemsize)} for a vector",
    }
    return _page(f"Linearization of {lin.attrs['model']}", _drawing(way), table)


def factors(op: TrajectoryOperator) -> frozenset[str]:
    """The steps of the path from error to state change that an operator consists of."""
    if isinstance(op, Adjoint):
        return frozenset(f"{name}*".removesuffix("**") for name in factors(op.parent))
    if isinstance(op, Product):
        return frozenset().union(*map(factors, op.factors))
    if isinstance(op, Sum):
        return frozenset().union(*map(factors, op.terms))
    if isinstance(op, Scaled):
        return factors(op.operator)
    if isinstance(op, PartialTrace | ProbedGram):
        return factors(op.parent)
    if isinstance(op, ParameterOperator):
        return frozenset({"J", "J*"})
    known = {Propagator: "P", Resolvent: "P", ParameterJacobian: "J", ReadoutJacobian: "C"}
    return frozenset({known[type(op)]} if type(op) in known else ())


def _drawing(filled: frozenset[str]) -> str:
    """The path from error to state change as SVG; empty if nothing of it is filled."""
    if not filled:
        return ""
    boxes = _OUTPUTS if filled & {"C", "C*"} else _STATES
    step = _WIDTH + _GAP
    top, left = 24, 62  # room for the bracket over J J*, and for Err
    middle = top + _HEIGHT / 2
    parts = [_text(left - _GAP - 4, middle, "Err", "end")]
    for i, name in enumerate(boxes):
        x = left + i * step
        opacity, weight = (0.3, 2) if name in filled else (0, 1)
        parts += [
            _arrow(x - _GAP, x, middle),
            f'<rect x="{x}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}" rx="4" fill="#4c78a8" '
            f'fill-opacity="{opacity}" stroke="currentColor" stroke-width="{weight}"/>',
            _text(x + _WIDTH / 2, middle, name),
        ]
    end = left + len(boxes) * step
    result = "dy" if "C" in boxes else "dh"
    parts += [_arrow(end - _GAP, end, middle), _text(end + 4, middle, result, "start")]
    start = left + boxes.index("J*") * step
    stop = start + step + _WIDTH
    parts += [
        f'<path d="M {start} {top - 3} v -4 H {stop} v 4" fill="none" stroke="currentColor"/>',
        _text((start + stop) / 2, top - 15, "K"),
    ]
    width, height = end + 30, top + _HEIGHT + 4
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(" ".join(n for n in boxes if n in filled))}">{"".join(parts)}</svg>'
    )


def _arrow(start: float, stop: float, y: float) -> str:
    return (
        f'<path d="M {start + 2} {y} H {stop - 3} m -4 -3 l 4 3 l -4 3" fill="none" '
        'stroke="currentColor"/>'
    )


def _text(x: float, y: float, words: str, anchor: str = "middle") -> str:
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" dominant-baseline="central" '
        f'font-family="sans-serif" font-size="13" fill="currentColor">{escape(words)}</text>'
    )


def _page(title: str, drawing: str, table: Mapping[str, str]) -> str:
    left = "text-align:left"
    rows = "".join(
        f'<tr><th style="{left};font-weight:normal;opacity:0.7;padding-right:1em">{escape(name)}'
        f'</th><td style="{left}">{escape(value.strip())}</td></tr>'
        for name, value in table.items()
        if value.strip()
    )
    return (
        f'<div style="font-size:90%"><strong>{escape(title)}</strong>'
        f"<div>{drawing}</div><table>{rows}</table></div>"
    )
