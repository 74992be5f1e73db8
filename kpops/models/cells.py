"""Cells of continuous-time rate networks, which PyTorch does not have."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kpops.models.gated import Affine, GatedRecurrence
from kpops.models.recurrence import ModuleRecurrence, Recurrence, as_recurrence

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}


class LeakyCell(nn.Module):
    """One Euler step of a continuous-time RNN (CTRNN), a leaky RNN.

    With alpha the step over the time constant and phi the activation,

    - ``form="rate"``:     ``r' = (1 - alpha) r + alpha phi(W r + U x + b)``
    - ``form="current"``:  ``u' = (1 - alpha) u + alpha (W phi(u) + U x + b)``

    Parameters
    ----------
    input_size, hidden_size : int
        Number of input features and of units.
    alpha : float
        Step over time constant, in (0, 1]; with 1 the rate form is ``nn.RNNCell`` with one bias.
    activation : {"tanh", "relu"}
        phi.
    form : {"rate", "current"}
        Whether the state is the firing rate r or the input current u.
    bias : bool
        Whether there is a b.

    Raises
    ------
    ValueError
        If `alpha`, `activation` or `form` is out of range.

    Notes
    -----
    Weights start as those of ``nn.RNNCell``, uniform in ``+-1/sqrt(hidden_size)``. The readout of a
    network in the current form sees u; apply phi in the readout if it should see rates.

    Examples
    --------
    >>> import torch, kpops
    >>> cell = kpops.models.LeakyCell(3, 8, alpha=0.2, form="current")
    >>> cell(torch.zeros(5, 3), torch.zeros(5, 8)).shape
    torch.Size([5, 8])
    >>> kpops.linearize(cell, torch.randn(5, 6, 3)).flow
    <P K P* (trial: 5, time: 6, unit: 8), float32 on cpu, PSD>
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        alpha: float,
        activation: str = "tanh",
        form: str = "rate",
        bias: bool = True,
    ) -> None:
        super().__init__()
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha={alpha}: the step over the time constant is in (0, 1]")
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation={activation!r}: choose from {sorted(_ACTIVATIONS)}")
        if form not in ("rate", "current"):
            raise ValueError(f"form={form!r}: choose 'rate' or 'current'")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.alpha = alpha
        self.activation = activation
        self.form = form
        self.weight_ih = nn.Parameter(torch.empty(hidden_size, input_size))
        self.weight_hh = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.bias = nn.Parameter(torch.empty(hidden_size)) if bias else None
        bound = 1 / math.sqrt(hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state; (trial, input), (trial, hidden) -> (trial, hidden)."""
        drive = F.linear(x, self.weight_ih, self.bias) + F.linear(self.rates(h), self.weight_hh)
        return self.moved(h, drive)

    def rates(self, h: Tensor) -> Tensor:
        """What the recurrent weights multiply: the state itself, or phi of the currents."""
        return h if self.form == "rate" else _ACTIVATIONS[self.activation](h)

    def moved(self, h: Tensor, drive: Tensor) -> Tensor:
        """The state, moved towards where the drive leads."""
        goal = _ACTIVATIONS[self.activation](drive) if self.form == "rate" else drive
        return h + self.alpha * (goal - h)

    def extra_repr(self) -> str:
        """Return the options, for the repr."""
        return (
            f"{self.input_size}, {self.hidden_size}, alpha={self.alpha}, "
            f"activation={self.activation!r}, form={self.form!r}"
        )


class _LeakyRecurrence(GatedRecurrence):
    """The structure of a LeakyCell."""

    def __init__(self, module: LeakyCell) -> None:
        bias = None if module.bias is None else "bias"
        super().__init__(module, [Affine("weight_hh", input="weight_ih", input_bias=bias)])

    def features(self, state: tuple[Tensor, ...]) -> Tensor:
        """What the recurrent weights multiply."""
        return self.module.rates(state[0])

    def gates(
        self, from_x: tuple[Tensor, ...], from_h: tuple[Tensor, ...], state: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Move the state by the step over the time constant."""
        return (self.module.moved(state[0], from_x[0] + from_h[0]),)


@as_recurrence.register
def _(model: LeakyCell) -> Recurrence:
    changed = type(model).forward is not LeakyCell.forward
    if changed or model._forward_hooks or model._forward_pre_hooks:
        return ModuleRecurrence(model)  # a cell of the user's own: only its forward knows the step
    return _LeakyRecurrence(model)
