"""Baseline: Jacobian operators of curvlinops, for a model whose output is the trajectory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks import cells
from benchmarks.cases import Case
from benchmarks.contenders import Contender, UnavailableError


class _Fused(nn.Module):
    """The module's own forward, without the last state."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.module = case.module()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.module(inputs)[0]


class _Unrolled(nn.Module):
    """All states, even if the fused module hides some of them or cannot be differentiated."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.kind = case.kind
        self.module = case.module()
        self.names = [name for name, _ in self.module.named_parameters()]

    def forward(self, inputs: Tensor) -> Tensor:
        weights = {name: getattr(self.module, name) for name in self.names}
        return cells.trajectory(self.kind, weights, inputs)


def curvlinops(case: Case) -> Contender:
    """flow = J J^T with J = dh/dtheta; curvlinops knows neither P nor K."""
    fused = case.kind != "LSTM" and case.device == "cpu"
    model = _Fused(case) if fused else _Unrolled(case)
    jacobian, transposed = jacobians(model, case.drive())

    def flow(q: Tensor) -> Tensor:
        if len(q) == 1:
            return (jacobian @ (transposed @ q.flatten())).reshape(q.shape)
        return (jacobian @ (transposed @ q.flatten(1).T)).T.reshape(q.shape)

    why = "curvlinops has Jacobians of a model with respect to its parameters, no propagator"
    return Contender(
        "curvlinops",
        {"flow": flow},
        dashes=dict.fromkeys(("P", "P*", "K"), why),
        divisible=True,
        temporaries=8,
        note="of the fused module" if fused else "of the unrolled cell",
    )


def jacobians(model: nn.Module, inputs: Tensor) -> tuple:
    """J and J^T as the library makes them."""
    try:
        from curvlinops import JacobianLinearOperator, TransposedJacobianLinearOperator
    except ImportError as error:
        raise UnavailableError("not installed") from error
    data = [(inputs, torch.empty(len(inputs)))]  # it requires targets, but does not use them
    arguments = (model, list(model.parameters()), data)
    return tuple(
        operator(*arguments, check_deterministic=False)
        for operator in (JacobianLinearOperator, TransposedJacobianLinearOperator)
    )
