"""How fast a system contracts volumes, without its exponents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kpops.engines.rowwise import Rowwise
from kpops.models.ode import NeuralODE
from kpops.systems.models import Flow, Map

_ROWS = 2**16  # states at a time


def jacobians(field: nn.Module, h: Tensor) -> Tensor:
    """Jacobians (row, unit, unit) of a vector field or a map at states (row, unit)."""
    rows = Rowwise(lambda _, x, state: field(None, state), {}, h[:, :0], h)
    return rows.state_jacobians()


def divergence(field: nn.Module, h: Tensor) -> Tensor:
    """Trace of the Jacobian of a vector field at states (row, unit), by differentiation."""
    return jacobians(field, h).diagonal(dim1=1, dim2=2).sum(1)


@torch.no_grad()
def contraction(model: Any, states: Tensor) -> Tensor:
    r"""Rate at which volumes grow in the step from each of the states (row, unit).

    For a map, ``log |det Df(h)|``. For a flow, the mean of the divergence over the step,

    .. math:: \frac{1}{dt} \int_0^{dt} \mathrm{tr}\, Df(h(t)) \, dt,

    as a further variable that the solver integrates beside h. It is of the order of the solver, and
    takes no Jacobian of a step. For a semilinear flow the divergence must be constant.
    """
    return torch.cat([_of_rows(model, rows) for rows in states.split(_ROWS)])


def _of_rows(model: Any, h: Tensor) -> Tensor:
    if isinstance(model, Map):
        return torch.linalg.slogdet(jacobians(model.field, h)).logabsdet
    if not isinstance(model, Flow):
        return divergence(model.field, h)
    solver = NeuralODE(_WithVolume(model.field), model.dt, "rk4", n_substeps=model.n_substeps)
    begin = torch.cat([h, torch.zeros_like(h[:, :1])], 1)
    return solver(h.new_zeros(len(h), 1), begin)[:, -1] / model.dt


class _WithVolume(nn.Module):
    """The field, and the divergence as the rate of one more unit."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, t: Any, h: Tensor) -> Tensor:
        state = h[:, :-1]
        rate = self.field(t, state)
        return torch.cat([rate, divergence(self.field, state)[:, None]], 1)
