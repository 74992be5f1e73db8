"""Rules with random weights on the way back, for errors of the outputs, ``Err = dL/dy``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kpops.arrays import as_tensor
from kpops.engines.gated.feedback import FeedbackEngine
from kpops.engines.memory import check_allocation
from kpops.engines.random_vectors import RandomVectors
from kpops.learning.rules.through_time import backward, through, time_of
from kpops.linearization import Linearization
from kpops.models.gated import GatedRecurrence
from kpops.operators import DenseOperator, Propagator, TrajectoryOperator
from kpops.operators.feedback import OutputFeedback
from kpops.operators.history import LeakPropagator
from kpops.scalars import check_real


def output_feedback(
    lin: Linearization, *, steps: int | None = None, weights: Any = None, rng: Any = None
) -> TrajectoryOperator:
    """P K P* B: random weights B in place of C*; below, errors go back exactly, or k steps."""
    return through(lin, backward(lin, steps)) @ _feedback(lin, weights, RandomVectors(rng))


def feedback_alignment(
    lin: Linearization, *, weights: Any = None, rng: Any = None
) -> TrajectoryOperator:
    """P K P_B* B: random weights in place of every transposed one, recurrent ones included."""
    if not isinstance(lin.recurrence, GatedRecurrence):
        raise ValueError(
            f"feedback alignment of {type(lin.recurrence.module).__name__}, whose weights are not "
            "known: register a kpops.models.GatedRecurrence for it, or choose 'output feedback'"
        )
    time_of(lin)
    source = RandomVectors(rng)
    B = _feedback(lin, weights, source)
    engine = FeedbackEngine(lin.recurrence, lin.parameters, lin.trajectory, source)
    P_B = Propagator(engine, lin.space)
    P_B.symbol = "P_B"
    return through(lin, lin._rescaled(P_B, 1)) @ B


def rflo(
    lin: Linearization, *, leak: float, weights: Any = None, rng: Any = None
) -> TrajectoryOperator:
    """P K P_leak* B: errors by random weights B, and eligibility traces that decay by `leak`."""
    check_real("leak", leak)
    if not 0 <= leak <= 1:
        raise ValueError(f"leak={leak}: a unit keeps a fraction from 0 to 1, as 1 - alpha")
    time_of(lin)
    leaky = LeakPropagator(lin.engine, lin.space, float(leak))
    return through(lin, lin._rescaled(leaky, 1)) @ _feedback(lin, weights, RandomVectors(rng))


def random_update(
    lin: Linearization, *, error: str = "state", rng: Any = None
) -> TrajectoryOperator:
    """P J B P*, or P J B of output errors: a random matrix B gives the step of the parameters."""
    of = error_space(lin, error)
    like = lin.trajectory.states
    rows, columns = lin.parameter_space.size, of.size
    what = f"a random matrix of {rows} x {columns} numbers"
    remedy = "take fewer trials or steps, or fewer parameters by parameters="
    check_allocation(what, rows * columns * like.itemsize, like.device, remedy)
    valid = lin.trajectory.restrict(torch.ones(1, *of.shape, dtype=like.dtype, device=like.device))
    # J*, which B replaces before P*, is per rate where rates force.
    size = columns**0.5 * (lin.forcing_step if error == "state" else 1)
    drawn = RandomVectors(rng).normal(rows, range(columns), like) / size
    B = DenseOperator(drawn * valid.flatten(), of, lin.parameter_space, symbol="B")
    B.attrs = lin.attrs
    return lin.sensitivity @ B if error == "output" else lin.sensitivity @ B @ lin.P.H


def error_space(lin: Linearization, error: str) -> Any:
    """The space of errors of the states, or of the outputs."""
    if error not in ("state", "output"):
        raise ValueError(f"error={error!r}: choose 'state', for dL/dh, or 'output', for dL/dy")
    return lin.space if error == "state" else lin.output_space


def _feedback(lin: Linearization, weights: Any, source: RandomVectors) -> TrajectoryOperator:
    """B, given or drawn: to the units that the readout sees, normal with variance 1 over them."""
    like = lin.trajectory.states
    if lin.output_space.dims[:-1] != lin.space.dims[:-1]:
        raise ValueError(
            f"the outputs have the dimensions {lin.output_space.dims}, and feedback weights are "
            "(unit, output): pass a readout= that flattens them, such as lambda y: y.flatten(1)"
        )
    shape = lin.space.shape[-1], lin.output_space.shape[-1]
    if weights is None:
        drawn = source.normal(1, range(shape[0] * shape[1]), like).view(shape)
        probe = source.normal(1, range(lin.output_space.size), like).view(
            1, *lin.output_space.shape
        )
        seen = lin.C.apply_adjoint(probe).flatten(0, -2).any(0)
        B = drawn * seen[:, None] / seen.sum().clamp_min(1) ** 0.5
    else:
        B = as_tensor(weights, "weights").to(like)
        if tuple(B.shape) != shape:
            raise ValueError(
                f"weights has shape {tuple(B.shape)}, expected {shape}: one row for each unit, one "
                "column for each output"
            )
        _refuse_not_finite(B)
    feedback = OutputFeedback(lin.engine, B, lin.output_space, lin.space)
    feedback.attrs = lin.attrs
    return feedback


def _refuse_not_finite(weights: Tensor) -> None:
    if not weights.isfinite().all():
        raise ValueError("weights is not finite: pass the feedback weights as finite numbers")
