"""Gradient descent, and rules that differ from it in how the error goes back through time."""

from __future__ import annotations

from kpops.dynamics.resolvent import FixedPointLinearization
from kpops.linearization import Linearization
from kpops.operators import TrajectoryOperator
from kpops.operators.base import Scaled
from kpops.operators.history import TruncatedPropagator
from kpops.scalars import check_count


def gradient_descent(lin: Linearization) -> TrajectoryOperator:
    """P K P*: a step along the gradient, dtheta = -eta J* P* Err."""
    return unscaled(lin, lin.flow)


def functional_gradient(lin: Linearization) -> TrajectoryOperator:
    """P P*: every step is pushed along its own adjoint, as if it had parameters of its own."""
    return lin.P @ lin.P.H


def truncated_bptt(lin: Linearization, *, steps: int) -> TrajectoryOperator:
    """P K P_k*: every error goes back through k = `steps` steps, its own included; P K for one."""
    return through(lin, backward(lin, steps))


def detached_bptt(lin: Linearization, *, steps: int) -> TrajectoryOperator:
    """P K P_k*: the state is detached every k = `steps` steps, and errors go back to there."""
    return through(lin, backward(lin, steps, detached=True))


def backward(
    lin: Linearization, steps: int | None, *, detached: bool = False
) -> TrajectoryOperator:
    """P with a history of so many steps, or of all."""
    if steps is None:
        return lin.P
    check_count("steps", steps, 1)
    if steps >= time_of(lin):
        return lin.P
    return lin._rescaled(TruncatedPropagator(lin.engine, lin.space, steps, detached=detached), 1)


def through(lin: Linearization, backward: TrajectoryOperator) -> TrajectoryOperator:
    """P K A*, with A* what stands for backpropagation."""
    return lin.P @ unscaled(lin, lin.K) @ backward.H


def unscaled(lin: Linearization, op: TrajectoryOperator) -> TrajectoryOperator:
    """An operator with K in it, under ``measure="sum"``, which is that of a real step."""
    return op if lin._scale == 1 else Scaled(op, 1 / lin._scale)


def time_of(lin: Linearization) -> int:
    """Number of steps; refuses spaces without time, and fixed points."""
    if "time" not in lin.space.dims:
        raise ValueError(
            f"the states have the dimensions {lin.space.dims}, and this rule is about time: "
            "linearise a recurrent network, or choose a rule without steps"
        )
    if isinstance(lin, FixedPointLinearization):
        raise ValueError(
            "at fixed points P is the limit of all steps, and this rule is about single ones: pass "
            "n_steps to kpops.linearize_at, or choose a rule without steps"
        )
    return lin.space.sizes["time"]
