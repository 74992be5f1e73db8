"""Rules that follow a preconditioned gradient, with the preconditioner frozen at the step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from kpops.arrays import as_tensor, to_numpy
from kpops.kinds import described
from kpops.learning.rules.optimizers import next_step
from kpops.linearization import Linearization
from kpops.operators import TrajectoryOperator
from kpops.operators.base import Product
from kpops.operators.preconditioner import Factors, Preconditioner


class OptimizerStep(Product):
    """P J M J* P* of an optimizer's next step, and the part that does not depend on the error.

    Attributes
    ----------
    drift : DataArray
        P J d: the state change per learning rate, with ``dh = -eta (R Err + drift)``, by what is
        left of earlier gradients.
    """

    def __init__(self, lin: Linearization, M: TrajectoryOperator, rest: Tensor) -> None:
        super().__init__(lin.sensitivity, M, lin.sensitivity.H)
        drift = to_numpy(lin.sensitivity.apply(rest[None])[0])
        self.drift: xr.DataArray = lin.space.label(
            drift, name="drift", long_name="state change by earlier gradients, per learning rate"
        )


def optimizer(lin: Linearization, *, optimizer: Any, model: Any) -> TrajectoryOperator:
    """P J M J* P*, with M of the next step of SGD, Adam, AdamW, RMSprop or Adagrad of torch."""
    diagonals, rest = next_step(optimizer, model, lin.parameters)
    return OptimizerStep(lin, Preconditioner(lin.parameter_space, diagonals), rest)


def preconditioned(lin: Linearization, *, preconditioner: Any) -> TrajectoryOperator:
    """P J M J* P*, with M by the parameters' names, as one diagonal, or as an operator."""
    if isinstance(preconditioner, TrajectoryOperator):
        return lin.sensitivity @ preconditioner @ lin.sensitivity.H
    if isinstance(preconditioner, Mapping):
        if set(preconditioner) != set(lin.parameters):
            raise ValueError(
                f"preconditioner is for {sorted(map(str, preconditioner))}: give one for each of "
                f"{list(lin.parameters)}"
            )
        factors = [_factors(lin, name, preconditioner[name]) for name in lin.parameters]
    else:
        diagonal = _read(lin, "preconditioner", preconditioner)
        size = lin.parameter_space.size
        if tuple(diagonal.shape) != (size,):
            raise ValueError(
                f"preconditioner has shape {tuple(diagonal.shape)}, expected ({size},), one number "
                "for each parameter; or pass a dict by their names, or an operator"
            )
        parts = diagonal.split([p.numel() for p in lin.parameters.values()])
        factors = [d.view_as(p) for d, p in zip(parts, lin.parameters.values(), strict=True)]
    M = Preconditioner(lin.parameter_space, factors)
    return lin.sensitivity @ M @ lin.sensitivity.H


def _factors(lin: Linearization, name: str, given: Any) -> Factors:
    """Numbers of the parameter's shape, or a matrix for each of its dimensions."""
    shape = lin.parameters[name].shape
    if isinstance(given, tuple):
        matrices = tuple(_read(lin, name, matrix) for matrix in given)
        shapes = [tuple(m.shape) for m in matrices]
        expected = [(n, n) for n in shape]
        if shapes != expected:
            raise ValueError(
                f"the preconditioner of {name} has matrices of shapes {shapes}, expected {expected}"
            )
        return matrices
    numbers = _read(lin, name, given)
    if numbers.shape != shape:
        raise ValueError(
            f"the preconditioner of {name} has shape {tuple(numbers.shape)}, expected "
            f"{tuple(shape)}, or a tuple of matrices, one for each dimension"
        )
    return numbers


def _read(lin: Linearization, name: str, values: Any) -> Tensor:
    if not hasattr(values, "__len__") or isinstance(values, str):
        raise TypeError(
            f"the preconditioner {name} is {described(values)}: pass an array, a dict of arrays by "
            "the names of the parameters, or an operator"
        )
    numbers = as_tensor(values, name).to(lin.trajectory.states)
    if not torch.isfinite(numbers).all():
        raise ValueError(f"the preconditioner {name} is not finite: pass finite numbers")
    return numbers
