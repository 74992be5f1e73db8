"""Runs of gated cells whose formula is known, compiled for the CPU; the loops in `state_kernels`.

They return the diagonals of :mod:`kpops.engines.gated.gates`, too, which torch would make from maps
that it has to compute again.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kpops.arrays import numpy_dtype
from kpops.engines import threads
from kpops.engines.cpu.arguments import Span
from kpops.engines.gated.gates import Pairs, Pattern
from kpops.models.gated import GatedRecurrence

Diagonals = Float[Tensor, "trial time role hidden"]

# Where the kernels put which diagonal of a cell: C_vw, D_vg, E_vg and F_w, by (v, w), (v, g) and w.
_LSTM = {(0, 0): 2, (0, 1): 3, (0, 2): 4, (0, 3): 5, (1, 0): 6, (1, 1): 7, (1, 2): 8}
_ROLES: dict[str, tuple[dict[tuple[int, int], int], ...]] = {
    "RATE": ({(0, 0): 0}, {(0, 0): 1}, {(0, 0): 1}),
    "CURRENT": ({(0, 0): 0}, {(0, 0): 1}, {(0, 0): 1}),
    "GRU": ({(0, 0): 0}, {(0, 0): 1, (0, 1): 2, (0, 2): 3}, {(0, 0): 1, (0, 1): 2, (0, 2): 4}),
    "LSTM": ({(0, 1): 0, (1, 1): 1}, _LSTM, _LSTM),
}
_SLOPE = 2  # of a leaky cell in the current form
_SIZES = {"RATE": 2, "CURRENT": 3, "GRU": 5, "LSTM": 9}


def run(
    recurrence: GatedRecurrence,
    x: Float[Tensor, "trial time feature"],
    h: Float[Tensor, "trial unit"],
) -> tuple[Float[Tensor, "trial time unit"], list[Diagonals]]:
    """States after every step from h, and diagonals of every layer, of a cell with a formula."""
    from kpops.engines.cpu import blas, state_kernels

    formula, hidden = recurrence.formula, recurrence.hidden_size
    assert formula is not None
    kernel: Callable[..., None] = state_kernels.run_trials
    kind = getattr(state_kernels, formula.cell)
    how = kind, formula.activation == "relu", float(formula.alpha)
    gemm = blas.gemm_address(numpy_dtype(h.dtype))
    states = h.new_empty(*x.shape[:2], h.shape[1])
    by_variable = states.unflatten(-1, (-1, hidden))
    start = h.unflatten(-1, (len(recurrence.layers), -1, hidden))
    n_trials, n_variables = len(h), len(recurrence.variables)
    diagonals: list[Diagonals] = []
    for index, maps in enumerate(recurrence.layers):
        variable = index * n_variables
        below = x if index == 0 else by_variable[:, :, variable - n_variables]
        from_x = torch.stack(recurrence.from_input(index, below), dim=2).detach()
        bias = h.new_zeros(from_x.shape[2:])
        if maps.recurrent_bias is not None:
            bias += recurrence.weight(maps.recurrent_bias).detach().view_as(bias)
        weight = recurrence.weight(maps.recurrent).detach().mT.contiguous()
        d = h.new_empty(*x.shape[:2], _SIZES[formula.cell], hidden)
        diagonals.append(d)
        room = (
            start[:, index].clone(memory_format=torch.contiguous_format).numpy(),
            h.new_empty(n_trials, 1, hidden).numpy(),
            h.new_empty(n_trials, *bias.shape).numpy(),
        )
        given = *how, *(a.numpy() for a in (weight, bias, from_x)), room
        into = by_variable.numpy(), d.numpy(), variable
        work = 2 * n_trials * x.shape[1] * weight.numel()
        bounds = threads.split(n_trials, threads.enough(work), n_trials)
        spans = [Span(*pair) for pair in pairwise(bounds)]

        def task(i: int, given: Any = given, into: Any = into, spans: Any = spans) -> None:
            kernel(gemm, *given, *into, spans[i])

        threads.each(task, len(spans))
    return states, diagonals


def by_role(cell: str, pattern: Pattern) -> Pattern:
    """The pattern of a layer with the places of its diagonals among those of :func:`run`."""

    def placed(pairs: Pairs, places: dict[tuple[int, int], int]) -> Pairs:
        return tuple((v, i, places[v, i]) for v, i, _ in pairs)

    carry, recurrent, inputs = _ROLES[cell]
    return pattern._replace(
        carry=placed(pattern.carry, carry),
        recurrent=placed(pattern.recurrent, recurrent),
        inputs=placed(pattern.inputs, inputs),
        slopes=tuple((w, None if p is None else _SLOPE) for w, p in pattern.slopes),
        size=_SIZES[cell],
    )


def assert_near(compiled: Tensor, plain: Tensor, what: str) -> None:
    """Compare the first steps of a compiled run with those of torch."""
    error = float((compiled - plain).abs().amax())
    if not error <= torch.finfo(plain.dtype).eps ** 0.5 * max(1.0, float(plain.abs().amax())):
        raise AssertionError(f"compiled {what} differ by {error:.2g} from those of torch")
