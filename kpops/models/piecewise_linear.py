"""Piecewise-linear recurrent networks for the reconstruction of dynamical systems.

Their steps have kinks where an argument of a relu is zero. The derivative there is taken to be 0,
as in PyTorch, so that A and J are those of the linear piece in which the unit is silent.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kpops.maturity import experimental
from kpops.models.cells import Cell, check_sizes
from kpops.models.gated import Affine, GatedRecurrence, Tensors
from kpops.models.recurrence import as_recurrence, is_whole, unless_changed


class PLRNNCell(Cell):
    """A piecewise-linear RNN (PLRNN), or an almost-linear one (AL-RNN).

    ``h' = A h + W phi(h) + C x + b``, with A diagonal, and phi the relu of the last `rectified`
    units and the identity of the others

    Parameters
    ----------
    input_size, hidden_size : int
        Number of input features and of units S. Numbers out of range raise a ValueError.
    rectified : int, optional
        Number of units that pass through a relu, from 0 to S. Default: all, the PLRNN; fewer make
        the AL-RNN, which has ``2**rectified`` linear pieces.

    Notes
    -----
    The parameters are ``A`` (hidden,), the diagonal; ``W`` (hidden, hidden); ``C`` (hidden, input)
    and ``b`` (hidden,). In Durstewitz's PLRNN the diagonal of W is zero: register
    :class:`kpops.models.Masked` on W for it. Its thresholds, ``relu(h - theta)``, are a shift of
    the state, which is this form with ``b = (A - 1) theta``. A starts uniform between 0.5 and
    0.9, all else in ``+-1/sqrt(hidden_size)``.

    The derivative of the relu at 0 is taken to be 0. P is gated. J and K are gated where A does not
    learn, and otherwise use automatic differentiation.

    References
    ----------
    D. Durstewitz, A state space approach for piecewise-linear recurrent neural networks for
    identifying computational dynamics from neural measurements, PLoS Computational Biology 13
    (2017). M. Brenner et al., Almost-linear RNNs yield highly interpretable symbolic codes in
    dynamical systems reconstruction, NeurIPS 2024 (arXiv 2410.14240).

    Examples
    --------
    >>> import torch, kpops
    >>> cell = kpops.models.PLRNNCell(3, 8, rectified=2)
    >>> lin = kpops.linearize(cell, torch.randn(5, 6, 3))
    >>> lin.flow
    <P K P* (trial: 5, time: 6, unit: 8), float32 on cpu, PSD>
    """

    def __init__(self, input_size: int, hidden_size: int, *, rectified: int | None = None) -> None:
        super().__init__(input_size, hidden_size)
        rectified = hidden_size if rectified is None else rectified
        if not (is_whole(rectified) and 0 <= rectified <= hidden_size):
            raise ValueError(f"rectified={rectified}: choose from 0 to hidden_size={hidden_size}")
        self.rectified = rectified
        self.A = nn.Parameter(torch.empty(hidden_size))
        self.W = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.C = nn.Parameter(torch.empty(hidden_size, input_size))
        self.b = nn.Parameter(torch.empty(hidden_size))
        self._draw_uniform()
        nn.init.uniform_(self.A, 0.5, 0.9)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state; (trial, input), (trial, hidden) -> (trial, hidden)."""
        return self.A * h + F.linear(self.phi(h), self.W) + F.linear(x, self.C, self.b)

    def phi(self, h: Tensor) -> Tensor:
        """Relu of the last units, the others as they are."""
        linear = self.hidden_size - self.rectified
        return torch.cat([h[..., :linear], torch.relu(h[..., linear:])], dim=-1)

    def extra_repr(self) -> str:
        """Return the options, for the repr."""
        return f"{super().extra_repr()}, rectified={self.rectified}"


@experimental
class ShallowPLRNNCell(Cell):
    """A shallow piecewise-linear RNN: one hidden layer of relus between steps.

    - ``h' = A h + W1 relu(W2 h + b2) + b1 + C x``, with A diagonal;
    - clipped: ``h' = A h + W1 [relu(W2 h + b2) - relu(W2 h)] + b1 + C x``, whose states stay
      bounded for bounded inputs if all ``|A_i| < 1``.

    Parameters
    ----------
    input_size, hidden_size : int
        As for :class:`PLRNNCell`.
    expansion : int
        Number of relus L.
    clipped : bool
        Whether to take the second form.

    Notes
    -----
    The parameters are ``A`` (hidden,), the diagonal; ``W1`` (hidden, expansion), ``W2`` (expansion,
    hidden), ``b1`` (hidden,), ``b2`` (expansion,) and ``C`` (hidden, input). A starts uniform
    between 0.5 and 0.9, all else in ``+-1/sqrt(hidden_size)``.

    The derivative of the relu at 0 is taken to be 0. With two maps in a row it is no gated cell and
    uses the general engines.

    References
    ----------
    F. Hess et al., Generalized teacher forcing for learning chaotic dynamics, ICML 2023 (arXiv
    2306.04406).

    Examples
    --------
    >>> import torch, kpops
    >>> cell = kpops.models.ShallowPLRNNCell(1, 3, 50)
    >>> autonomous = torch.zeros(5, 20, 1)
    >>> kpops.linearize(cell, autonomous, h0=torch.randn(5, 3)).P
    <P (trial: 5, time: 20, unit: 3), float32 on cpu>
    """

    def __init__(
        self, input_size: int, hidden_size: int, expansion: int, *, clipped: bool = False
    ) -> None:
        super().__init__(input_size, hidden_size)
        check_sizes(expansion=expansion)
        self.expansion = expansion
        self.clipped = clipped
        self.A = nn.Parameter(torch.empty(hidden_size))
        self.W1 = nn.Parameter(torch.empty(hidden_size, expansion))
        self.W2 = nn.Parameter(torch.empty(expansion, hidden_size))
        self.b1 = nn.Parameter(torch.empty(hidden_size))
        self.b2 = nn.Parameter(torch.empty(expansion))
        self.C = nn.Parameter(torch.empty(hidden_size, input_size))
        self._draw_uniform()
        nn.init.uniform_(self.A, 0.5, 0.9)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state; (trial, input), (trial, hidden) -> (trial, hidden)."""
        seen = F.linear(h, self.W2)
        bent = torch.relu(seen + self.b2)
        if self.clipped:
            bent = bent - torch.relu(seen)
        return self.A * h + F.linear(bent, self.W1, self.b1) + F.linear(x, self.C)

    def extra_repr(self) -> str:
        """Return the options, for the repr."""
        return f"{super().extra_repr()}, {self.expansion}, clipped={self.clipped}"


class _PLRNNRecurrence(GatedRecurrence):
    """The structure of a PLRNNCell."""

    def __init__(self, module: PLRNNCell) -> None:
        super().__init__(module, [Affine("W", input="C", input_bias="b")])

    def features(self, state: Tensors) -> Tensor:
        return self.module.phi(state[0])

    def gates(self, from_x: Tensors, from_h: Tensors, state: Tensors) -> Tensors:
        return (self.module.A * state[0] + from_h[0] + from_x[0],)


as_recurrence.register(PLRNNCell, unless_changed(PLRNNCell, _PLRNNRecurrence))
