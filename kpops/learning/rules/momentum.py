"""Momentum: gradient descent in the augmented state (h, velocity)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kpops.labels import Coordinate, Space
from kpops.learning.rules.through_time import gradient_descent
from kpops.linearization import Linearization
from kpops.operators import TrajectoryOperator
from kpops.scalars import check_count, check_real

Pair = Float[Tensor, "block two *dims"]


class Momentum(TrajectoryOperator):
    """Steps of gradient descent with momentum, on pairs along the first dimension ``part``.

    With the velocity v of the optimizer seen on the trajectories, ``u = P J v``, a step is

        u <- m u + (1 - d) Phi Err,     h <- h - eta u,     or  h <- h - eta (Phi Err + m u)

    by Nesterov. To first order in eta, several of them share Phi and Err, and map (Err, u) to
    (-dh / eta, u after them) by four numbers: ``((c Phi, d I), (s Phi, m^k I))``.

    Parameters
    ----------
    flow : TrajectoryOperator
        Phi.
    numbers : Tensor, shape (2, 2)
        In float64: rows -dh / eta and velocity, columns Err and velocity.
    """

    def __init__(self, lin: Linearization, flow: TrajectoryOperator, numbers: Tensor) -> None:
        own = flow.domain
        part = Coordinate(("part",), np.array(["state", "velocity"], dtype=object))
        space = Space(("part", *own.dims), (2, *own.shape), {"part": part, **own.coords})
        super().__init__(space, space, symbol=f"momentum of {flow.symbol}", **flow.alike())
        self.flow = flow
        self.numbers = numbers
        self.trajectory = lin.trajectory
        self.block_diagonal_dims = flow.block_diagonal_dims

    is_composed = True

    def _apply(self, q: Pair) -> Pair:
        error, velocity = q.unbind(1)
        moved, kept = self.flow.apply(error), self.trajectory.restrict(velocity)
        (c, d), (s, m) = self.numbers.tolist()
        return torch.stack([c * moved + d * kept, s * moved + m * kept], 1)

    def _apply_adjoint(self, q: Pair) -> Pair:
        state, velocity = q.unbind(1)
        (c, d), (s, m) = self.numbers.tolist()
        back = self.flow.apply_adjoint(c * state + s * velocity)
        return torch.stack([back, self.trajectory.restrict(d * state + m * velocity)], 1)


def momentum(
    lin: Linearization,
    *,
    momentum: float = 0.9,
    dampening: float = 0.0,
    nesterov: bool = False,
    steps: int = 1,
) -> TrajectoryOperator:
    """`steps` steps of heavy-ball or Nesterov momentum, on (Err, P J velocity)."""
    check_count("steps", steps, 1)
    for name, value in (("momentum", momentum), ("dampening", dampening)):
        check_real(name, value)
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value}: choose a number from 0 to 1")
    if momentum == 0:
        dampening = 0  # torch then keeps no velocity, and steps along the whole gradient
    gradient, velocity = torch.eye(2, dtype=torch.float64)
    moved = torch.zeros(2, dtype=torch.float64)
    for _ in range(steps):
        velocity = momentum * velocity + (1 - dampening) * gradient
        moved = moved + (gradient + momentum * velocity if nesterov else velocity)
    return Momentum(lin, gradient_descent(lin), torch.stack([moved, velocity]))
