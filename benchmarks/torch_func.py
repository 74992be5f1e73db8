"""Baseline: torch.func on the model itself, as a careful user would write it.

With theta -> h(theta) the whole trajectory as a function of the parameters, the flow operator is
``(dh/dtheta) (dh/dtheta)^T``: a VJP gives dtheta, a JVP maps it back. P is the derivative of the
trajectory with respect to a forcing added to the state at each step, and K is a VJP and a JVP of
one step for all rows at once. The forward pass behind the VJPs runs once and is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, jvp, linearize, vjp, vmap

from benchmarks import cells
from benchmarks.cases import Case
from benchmarks.contenders import UNSUPPORTED, Contender, Product


class Maps(NamedTuple):
    """A derivative and its transpose, for one vector."""

    push: Callable[[Any], Tensor]
    pull: Callable[[Tensor], Any]


def maps(function: Callable[[Any], Tensor], point: Any, *, traced: bool = False) -> Maps:
    """Derivative of `function` at `point`.

    Forward mode evaluates the function again for each product. With `traced`, it is evaluated once,
    and each product replays what is linear in the tangent.
    """
    pullback = vjp(function, point)[1]
    if traced:
        push = linearize(function, point)[1]
    else:

        def push(tangent: Any) -> Tensor:
            return jvp(function, (point,), (tangent,))[1]

    return Maps(push, lambda cotangent: pullback(cotangent)[0])


def twice_reverse(function: Callable[[Any], Tensor], point: Any) -> Maps:
    """The same by reverse mode alone: a pullback is linear, and its own pullback is the push."""
    output, pullback = vjp(function, point)
    transpose = vjp(lambda c: pullback(c)[0], torch.zeros_like(output))[1]
    return Maps(lambda tangent: transpose(tangent)[0], lambda cotangent: pullback(cotangent)[0])


def over_blocks(action: Callable[[Tensor], Tensor]) -> Product:
    """Apply an action to a block by vmap, and to a single vector directly."""

    def product(q: Tensor) -> Tensor:
        return action(q[0])[None] if len(q) == 1 else vmap(action)(q)

    return product


def unrolled(case: Case, *, traced: bool = False) -> Contender:
    """The cell in a loop over time."""
    weights, drive = cells.weights_of(case.module()), case.drive()
    x, previous = cells.rows(case.kind, weights, drive)
    shape = (case.trials, case.steps, case.state_size)

    def of_parameters(theta: cells.Weights) -> Tensor:
        return cells.trajectory(case.kind, theta, drive)

    def of_forcing(forcing: Tensor) -> Tensor:
        return cells.trajectory(case.kind, weights, drive, forcing)

    def one_step(theta: cells.Weights) -> Tensor:
        states = cells.next_state(case.kind, theta, cells.from_inputs(theta, x), previous)
        return states.unflatten(0, shape[:2])

    whole = maps(of_parameters, weights, traced=traced)
    forced = maps(of_forcing, drive.new_zeros(shape), traced=traced)
    step = maps(one_step, weights, traced=traced)
    return Contender(
        "torch.func traced" if traced else "torch.func unrolled",
        {
            "P": over_blocks(forced.push),
            "P*": over_blocks(forced.pull),
            "K": over_blocks(lambda q: step.push(step.pull(q))),
            "flow": over_blocks(lambda q: whole.push(whole.pull(q))),
        },
        divisible=True,
        temporaries=8,
    )


def fused(case: Case) -> Contender:
    """nn.RNN, nn.GRU or nn.LSTM called once on the sequence."""
    module, drive = case.module(), case.drive()
    weights = cells.weights_of(module)

    def outputs(theta: cells.Weights) -> Tensor:
        return functional_call(module, theta, (drive,))[0]

    note = ""
    of_outputs = maps(outputs, weights)
    try:
        of_outputs.push(weights)
    except UNSUPPORTED:  # no forward mode in the oneDNN layer of nn.LSTM
        of_outputs, note = twice_reverse(outputs, weights), "by two reverse passes"

    def flow(q: Tensor) -> Tensor:
        moved = of_outputs.push(of_outputs.pull(q[..., : case.hidden]))
        unseen = case.state_size - case.hidden  # c of an LSTM: only the last comes out
        return torch.nn.functional.pad(moved, (0, unseen)) if unseen else moved

    if case.kind == "LSTM":
        note = f"{note}, between h and h: the module does not return c".lstrip(", ")
    return Contender(
        "torch.func fused",
        {"flow": over_blocks(flow)},
        dashes={
            "P": "the fused module takes no forcing",
            "P*": "the fused module takes no forcing",
            "K": "the fused module shows no single steps; see the unrolled cell",
        },
        divisible=True,
        hidden_only=case.kind == "LSTM",
        temporaries=8,
        note=note,
    )
