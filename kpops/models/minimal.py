"""Cells with fewer gates than a GRU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kpops.maturity import experimental
from kpops.models.cells import Cell
from kpops.models.gated import Affine, GatedRecurrence, Tensors
from kpops.models.recurrence import as_recurrence, unless_changed


@experimental
class MinGRUCell(Cell):
    """The minGRU, whose gate and candidate see only the input.

    ``h' = (1 - z) h + z c``, with ``z = sigmoid(W_z x + b_z)`` and ``c = W_c x + b_c``

    Parameters
    ----------
    input_size, hidden_size : int
        Number of input features and of units. Sizes out of range raise a ValueError.
    bias : bool
        Whether there are b_z and b_c.

    Notes
    -----
    The parameters are ``weight_ih`` (2 * hidden, input), W_z above W_c, and ``bias_ih``; they start
    uniform in ``+-1/sqrt(hidden_size)``. The state enters unit by unit and linearly: A is the
    diagonal ``1 - z``, the same at every state, and P couples no units.

    References
    ----------
    L. Feng et al., Were RNNs all we needed?, arXiv 2410.01201.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(kpops.models.MinGRUCell(3, 8), torch.randn(5, 6, 3))
    >>> lin.flow
    <P K P* (trial: 5, time: 6, unit: 8), float32 on cpu, PSD>
    """

    def __init__(self, input_size: int, hidden_size: int, *, bias: bool = True) -> None:
        super().__init__(input_size, hidden_size)
        self.weight_ih = nn.Parameter(torch.empty(2 * hidden_size, input_size))
        self.bias_ih = nn.Parameter(torch.empty(2 * hidden_size)) if bias else None
        self._draw_uniform()

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state; (trial, input), (trial, hidden) -> (trial, hidden)."""
        gate, candidate = F.linear(x, self.weight_ih, self.bias_ih).chunk(2, dim=-1)
        return self.mixed(gate, candidate, h)

    def mixed(self, gate: Tensor, candidate: Tensor, h: Tensor) -> Tensor:
        """The state and its candidate, mixed by the gate."""
        return h + torch.sigmoid(gate) * (candidate - h)

    def extra_repr(self) -> str:
        """Return the options, for the repr."""
        return f"{super().extra_repr()}, bias={self.bias_ih is not None}"


@experimental
class MGUCell(Cell):
    """The minimal gated unit: a GRU with a single gate.

    ``h' = (1 - f) h + f c``, with ``f = sigmoid(W_f h + U_f x + b_f)`` and
    ``c = tanh(W_c (f h) + U_c x + b_c)``

    Parameters
    ----------
    input_size, hidden_size : int
        As for :class:`MinGRUCell`.

    Notes
    -----
    The parameters are ``weight_ih`` (2 * hidden, input), U_f above U_c, ``weight_hh`` (2 * hidden,
    hidden), W_f above W_c, and ``bias`` (2 * hidden,); they start uniform in
    ``+-1/sqrt(hidden_size)``. Since W_c multiplies a gated state, it is no gated cell in the sense
    of :class:`GatedRecurrence` and uses the general engines.

    References
    ----------
    G.-B. Zhou et al., Minimal gated unit for recurrent neural networks, International Journal of
    Automation and Computing 13 (2016), arXiv 1603.09420.

    Examples
    --------
    >>> import torch, kpops
    >>> kpops.linearize(kpops.models.MGUCell(3, 8), torch.randn(5, 6, 3)).P
    <P (trial: 5, time: 6, unit: 8), float32 on cpu>
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.weight_ih = nn.Parameter(torch.empty(2 * hidden_size, input_size))
        self.weight_hh = nn.Parameter(torch.empty(2 * hidden_size, hidden_size))
        self.bias = nn.Parameter(torch.empty(2 * hidden_size))
        self._draw_uniform()

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state; (trial, input), (trial, hidden) -> (trial, hidden)."""
        to_gate, to_candidate = F.linear(x, self.weight_ih, self.bias).chunk(2, dim=-1)
        of_gate, of_candidate = self.weight_hh.chunk(2)
        gate = torch.sigmoid(to_gate + F.linear(h, of_gate))
        candidate = torch.tanh(to_candidate + F.linear(gate * h, of_candidate))
        return h + gate * (candidate - h)


class _MinGRURecurrence(GatedRecurrence):
    """The structure of a MinGRUCell."""

    def __init__(self, module: MinGRUCell) -> None:
        bias = None if module.bias_ih is None else "bias_ih"
        maps = Affine(None, input="weight_ih", input_bias=bias)
        super().__init__(module, [maps], hidden_size=module.hidden_size)

    def gates(self, from_x: Tensors, from_h: Tensors, state: Tensors) -> Tensors:
        return (self.module.mixed(*from_x, state[0]),)


as_recurrence.register(MinGRUCell, unless_changed(MinGRUCell, _MinGRURecurrence))
