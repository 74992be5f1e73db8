"""Cells of continuous-time rate networks, which PyTorch does not have."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kpops.models.gated import Affine, GatedRecurrence
from kpops.models.recurrence import as_recurrence, unless_changed
from kpops.models.sizes import check_sizes, is_real

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}


class LeakyCell(nn.Module):
    """One Euler step of a continuous-time RNN (CTRNN), a leaky RNN.

    With alpha the step over the time constant and phi the activation,

    - ``form="rate"``:     ``r' = (1 - alpha) r + alpha phi(W r + U x + b + xi)``
    - ``form="current"``:  ``u' = (1 - alpha) u + alpha (W phi(u) + U x + b + xi)``

    Parameters
    ----------
    input_size, hidden_size : int
        Number of input features (without the noise; 0 for none) and of units.
    alpha : float
        Step over time constant, in (0, 1]; with 1 the rate form is ``nn.RNNCell`` with one bias.
    activation : {"tanh", "relu"}
        phi.
    form : {"rate", "current"}
        Whether the state is the firing rate r or the input current u.
    bias : bool
        Whether there is a b.
    noise : bool
        Whether there is a xi. It is given as the last ``hidden_size`` features of the input, one
        for each unit, so that the cell itself is not random.

    Raises
    ------
    ValueError
        If a size, `alpha`, `activation` or `form` is out of range.

    Notes
    -----
    Weights start as those of ``nn.RNNCell``, uniform in ``+-1/sqrt(hidden_size)``. The readout of a
    network in the current form sees u; apply phi in the readout if it should see rates.

    For white noise that moves u by ``sigma sqrt(2 alpha)`` times a standard normal number in each
    step, draw xi as ``sigma sqrt(2 / alpha)`` times one. All operators are then those along this
    one path of the noise, which is no parameter and adds nothing to K.

    Examples
    --------
    >>> import torch, kpops
    >>> cell = kpops.models.LeakyCell(3, 8, alpha=0.2, form="current")
    >>> cell(torch.zeros(5, 3), torch.zeros(5, 8)).shape
    torch.Size([5, 8])
    >>> kpops.linearize(cell, torch.randn(5, 6, 3)).flow
    <P K P* (trial: 5, time: 6, unit: 8), float32 on cpu, PSD>

    With noise beside the three inputs:

    >>> noisy = kpops.models.LeakyCell(3, 8, alpha=0.2, noise=True)
    >>> xi = 0.1 * (2 / noisy.alpha) ** 0.5 * torch.randn(5, 6, 8)
    >>> kpops.linearize(noisy, torch.cat([torch.randn(5, 6, 3), xi], dim=-1)).P
    <P (trial: 5, time: 6, unit: 8), float32 on cpu>
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
        noise: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(hidden_size=hidden_size)
        check_sizes(0, input_size=input_size)
        if not (is_real(alpha) and 0 < alpha <= 1):
            raise ValueError(
                f"alpha={alpha}: the step over the time constant is one number in (0, 1]"
            )
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r}: choose from {sorted(ACTIVATIONS)}")
        if form not in ("rate", "current"):
            raise ValueError(f"form={form!r}: choose 'rate' or 'current'")
        self.input_size = input_size + hidden_size * noise
        self.hidden_size = hidden_size
        self.alpha = alpha
        self.activation = activation
        self.form = form
        self.noise = noise
        self.weight_ih = nn.Parameter(torch.empty(hidden_size, input_size))
        self.connect()
        self.bias = nn.Parameter(torch.empty(hidden_size)) if bias else None
        bound = 1 / math.sqrt(hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def connect(self) -> None:
        """Make the recurrent weights."""
        self.weight_hh = nn.Parameter(torch.empty(self.hidden_size, self.hidden_size))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state; (trial, input), (trial, hidden) -> (trial, hidden)."""
        return self.moved(h, self.driven(x) + self.recurrent(self.rates(h)))

    def driven(self, x: Tensor) -> Tensor:
        """The drive from outside: U x + b + xi."""
        if not self.noise:
            return F.linear(x, self.weight_ih, self.bias)
        x, xi = x.split([self.weight_ih.shape[1], self.hidden_size], dim=-1)
        return F.linear(x, self.weight_ih, self.bias) + xi

    def recurrent(self, rates: Tensor) -> Tensor:
        """The drive from other units: W rates."""
        return F.linear(rates, self.weight_hh)

    def rates(self, h: Tensor) -> Tensor:
        """What the recurrent weights multiply: the state itself, or phi of the currents."""
        return h if self.form == "rate" else ACTIVATIONS[self.activation](h)

    def moved(self, h: Tensor, drive: Tensor) -> Tensor:
        """The state, moved towards where the drive leads."""
        goal = ACTIVATIONS[self.activation](drive) if self.form == "rate" else drive
        return h + self.alpha * (goal - h)

    def extra_repr(self) -> str:
        """Return the options, for the repr."""
        return (
            f"{self.weight_ih.shape[1]}, {self.hidden_size}, alpha={self.alpha}, "
            f"activation={self.activation!r}, form={self.form!r}, noise={self.noise}"
        )


class LeakyRecurrence(GatedRecurrence):
    """The structure of a LeakyCell."""

    def __init__(self, module: LeakyCell) -> None:
        bias = None if module.bias is None else "bias"
        super().__init__(module, [Affine("weight_hh", input="weight_ih", input_bias=bias)])
        self.input_size = module.input_size

    def features(self, state: tuple[Tensor, ...]) -> Tensor:
        """What the recurrent weights multiply."""
        return self.module.rates(state[0])

    def from_input(self, layer: int, x: Tensor) -> tuple[Tensor, ...]:
        """The drive from outside."""
        return (self.module.driven(x),)

    def from_features(self, layer: int, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The drive from other units."""
        return (self.module.recurrent(self.features(state)),)

    def gates(
        self, from_x: tuple[Tensor, ...], from_h: tuple[Tensor, ...], state: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Move the state by the step over the time constant."""
        return (self.module.moved(state[0], from_x[0] + from_h[0]),)


as_recurrence.register(LeakyCell, unless_changed(LeakyCell, LeakyRecurrence))
