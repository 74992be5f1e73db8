"""Cells of continuous-time rate networks, of full and of low rank."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kpops.models.gated import Affine, Formula, GatedRecurrence, Tensors
from kpops.models.recurrence import as_recurrence, is_real, is_whole, unless_changed

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}


def check_sizes(least: int = 1, **sizes: Any) -> None:
    """Refuse, by its name, a size that is not an int of at least `least`."""
    for name, size in sizes.items():
        if not (is_whole(size) and size >= least):
            raise ValueError(f"{name}={size!r}: pass an int, {least} or more")


class Cell(nn.Module):
    """A cell with checked sizes, whose weights start uniform in ``+-1/sqrt(hidden_size)``."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        check_sizes(0, input_size=input_size)
        check_sizes(hidden_size=hidden_size)
        self.input_size = input_size
        self.hidden_size = hidden_size

    def _draw_uniform(self) -> None:
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def extra_repr(self) -> str:
        """Return the sizes, for the repr."""
        return f"{self.input_size}, {self.hidden_size}"


class LeakyCell(Cell):
    """One Euler step of a continuous-time RNN (CTRNN), a leaky RNN.

    With alpha the step over the time constant and phi the activation,

    - ``form="rate"``:     ``r' = (1 - alpha) r + alpha phi(W r + U x + b + xi)``
    - ``form="current"``:  ``u' = (1 - alpha) u + alpha (W phi(u) + U x + b + xi)``

    Parameters
    ----------
    input_size, hidden_size : int
        Number of input features (without the noise; may be 0) and of units.
    alpha : float
        Step over time constant, in (0, 1]; with 1 the rate form is ``nn.RNNCell`` with one bias.
    activation : {"tanh", "relu"}
        phi.
    form : {"rate", "current"}
        Whether the state is the firing rate r or the input current u.
    bias : bool
        Whether there is a b.
    noise : bool
        Whether there is a xi. It is the last ``hidden_size`` features of the input, one for each
        unit, so that the cell itself is not random.

    Raises
    ------
    ValueError
        If a size, `alpha`, `activation` or `form` is out of range.

    Notes
    -----
    Weights start like those of ``nn.RNNCell``, uniform in ``+-1/sqrt(hidden_size)``. A readout of
    the current form sees u; apply phi in the readout if it should see rates.

    For white noise that moves u by ``sigma sqrt(2 alpha)`` times a standard normal number in each
    step, draw xi as ``sigma sqrt(2 / alpha)`` times one. All operators are then those along this
    path of the noise, which is no parameter and adds nothing to K.

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
        super().__init__(input_size, hidden_size)
        if not (is_real(alpha) and 0 < alpha <= 1):
            raise ValueError(
                f"alpha={alpha}: the step over the time constant is one number in (0, 1]"
            )
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation={activation!r}: choose from {sorted(_ACTIVATIONS)}")
        if form not in ("rate", "current"):
            raise ValueError(f"form={form!r}: choose 'rate' or 'current'")
        self.input_size = input_size + hidden_size * noise
        self.alpha = alpha
        self.activation = activation
        self.form = form
        self.noise = noise
        self.weight_ih = nn.Parameter(torch.empty(hidden_size, input_size))
        self.connect()
        self.bias = nn.Parameter(torch.empty(hidden_size)) if bias else None
        self._draw_uniform()

    def connect(self) -> None:
        """Make the recurrent weights."""
        self.weight_hh = nn.Parameter(torch.empty(self.hidden_size, self.hidden_size))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state; (trial, input), (trial, hidden) -> (trial, hidden)."""
        return self.moved(h, self.driven(x) + self.recurrent(self.rates(h)))

    def driven(self, x: Tensor) -> Tensor:
        """The external drive: U x + b + xi."""
        if not self.noise:
            return F.linear(x, self.weight_ih, self.bias)
        x, xi = x.split([self.weight_ih.shape[1], self.hidden_size], dim=-1)
        return F.linear(x, self.weight_ih, self.bias) + xi

    def recurrent(self, rates: Tensor) -> Tensor:
        """The recurrent drive: W rates."""
        return F.linear(rates, self.weight_hh)

    def rates(self, h: Tensor) -> Tensor:
        """What the recurrent weights multiply: the state itself, or phi of the currents."""
        return h if self.form == "rate" else _ACTIVATIONS[self.activation](h)

    def moved(self, h: Tensor, drive: Tensor) -> Tensor:
        """The state, moved towards its goal under this drive."""
        goal = _ACTIVATIONS[self.activation](drive) if self.form == "rate" else drive
        return h + self.alpha * (goal - h)

    def extra_repr(self) -> str:
        """Return the options, for the repr."""
        return (
            f"{self.weight_ih.shape[1]}, {self.hidden_size}, alpha={self.alpha}, "
            f"activation={self.activation!r}, form={self.form!r}, noise={self.noise}"
        )


class LowRankCell(LeakyCell):
    """A :class:`LeakyCell` of low-rank connectivity ``W = M N^T / S``.

    In the current form, the default here, a step is

    ``u' = (1 - alpha) u + alpha (M N^T phi(u) / S + U x + b)``

    Parameters
    ----------
    input_size, hidden_size : int
        Number of input features and of units S.
    rank : int
        Number of columns R of M and N, from 1 to S.
    form : {"current", "rate"}
        Whether the state is the input current or the firing rate.
    **options
        ``alpha``, ``activation``, ``bias`` and ``noise`` as for :class:`LeakyCell`, as are the
        errors raised.

    Notes
    -----
    The parameters are ``M`` and ``N``, both (hidden, rank), ``weight_ih`` (U) and ``bias``: K is
    that of learning M and N, not that of learning their product. It couples units, since an entry
    of N moves all of them along a column of M. So J and K use automatic differentiation where M or
    N learns; P is always gated.

    M and N start standard normal, U and b uniform in ``+-1/sqrt(hidden_size)``.

    References
    ----------
    F. Mastrogiuseppe and S. Ostojic, Linking connectivity, dynamics, and computations in low-rank
    recurrent neural networks, Neuron 99 (2018). A. Dubreuil et al., The role of population
    structure in computations through neural dynamics, Nature Neuroscience 25 (2022).

    Examples
    --------
    >>> import torch, kpops
    >>> cell = kpops.models.LowRankCell(3, 50, rank=2, alpha=0.2)
    >>> lin = kpops.linearize(cell, torch.randn(5, 6, 3))
    >>> list(lin.K_by_parameter)
    ['weight_ih', 'M', 'N', 'bias']
    >>> torch.linalg.matrix_rank(cell.weight_hh).item()
    2
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        rank: int,
        *,
        form: str = "current",
        **options: Any,
    ) -> None:
        if not (is_whole(rank) and 1 <= rank <= hidden_size):
            raise ValueError(f"rank={rank}: choose from 1 to hidden_size={hidden_size}")
        self.rank = rank  # `connect` needs it
        super().__init__(input_size, hidden_size, form=form, **options)
        for thin in (self.M, self.N):
            nn.init.normal_(thin)

    @classmethod
    def from_leaky(cls, cell: LeakyCell, rank: int) -> LowRankCell:
        """The cell of the given rank that is nearest to a LeakyCell.

        Parameters
        ----------
        cell : LeakyCell
            It is not changed.
        rank : int
            Number of singular values of its recurrent weights to keep, from 1 to S; others raise a
            ValueError.

        Returns
        -------
        LowRankCell
            ``M N^T / S`` is the truncated singular value decomposition of the weights; M and N each
            take the root of every singular value. All else is as in `cell`.
        """
        new = cls(
            cell.weight_ih.shape[1],
            cell.hidden_size,
            rank,
            alpha=cell.alpha,
            activation=cell.activation,
            form=cell.form,
            bias=cell.bias is not None,
            noise=cell.noise,
        ).to(cell.weight_ih)
        with torch.no_grad():
            left, values, right = torch.linalg.svd(cell.weight_hh)
            roots = (cell.hidden_size * values[:rank]).sqrt()
            new.M.copy_(left[:, :rank] * roots)
            new.N.copy_(right[:rank].mT * roots)
            new.weight_ih.copy_(cell.weight_ih)
            if new.bias is not None and cell.bias is not None:
                new.bias.copy_(cell.bias)
        return new

    def connect(self) -> None:
        """Make M and N."""
        self.M = nn.Parameter(torch.empty(self.hidden_size, self.rank))
        self.N = nn.Parameter(torch.empty(self.hidden_size, self.rank))

    @property
    def weight_hh(self) -> Tensor:  # type: ignore[override]  # no parameter itself
        """The connectivity M N^T / S, shape (hidden, hidden)."""
        return self.M @ self.N.mT / self.hidden_size

    def recurrent(self, rates: Tensor) -> Tensor:
        """M N^T rates / S, without the (hidden, hidden) matrix."""
        return rates @ self.N @ self.M.mT / self.hidden_size

    def extra_repr(self) -> str:
        """Return the options, for the repr."""
        return f"{super().extra_repr()}, rank={self.rank}"


class _LeakyRecurrence(GatedRecurrence):
    """The structure of a LeakyCell or a LowRankCell."""

    def __init__(self, module: LeakyCell) -> None:
        bias = None if module.bias is None else "bias"
        super().__init__(module, [Affine("weight_hh", input="weight_ih", input_bias=bias)])
        self.input_size = module.input_size
        self.formula = Formula(module.form.upper(), module.activation, module.alpha)

    def features(self, state: Tensors) -> Tensor:
        return self.module.rates(state[0])

    def from_input(self, layer: int, x: Tensor) -> Tensors:
        return (self.module.driven(x),)

    def from_features(self, layer: int, state: Tensors) -> Tensors:
        return (self.module.recurrent(self.features(state)),)

    def gates(self, from_x: Tensors, from_h: Tensors, state: Tensors) -> Tensors:
        return (self.module.moved(state[0], from_x[0] + from_h[0]),)


as_recurrence.register(LeakyCell, unless_changed(LeakyCell, _LeakyRecurrence))
as_recurrence.register(LowRankCell, unless_changed(LowRankCell, _LeakyRecurrence))
