"""A selective state-space layer together with what its queries read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kpops.maturity import experimental
from kpops.models.diagonal import DiagonalRecurrence, Rng, SelectiveSSM
from kpops.models.linear_attention import AttentionReadout
from kpops.models.recurrence import as_recurrence, unless_changed
from kpops.scalars import generator as random_generator


@experimental
class SelectiveLayer(nn.Module):
    """A :class:`SelectiveSSM` with its outputs, which depend on the input (Mamba's S6).

    ``y_c = sum_n C_n(x) h_cn``, with ``C(x) = W x`` and h the states of the selective layer.

    Parameters
    ----------
    input_size : int
        Number of channels of inputs and outputs.
    n_states : int
        States N of each channel.
    rng : int, Generator or None
        Seed or source of the weights.

    Raises
    ------
    ValueError
        If a size is no positive int.

    Attributes
    ----------
    ssm : SelectiveSSM
        The selective layer.
    readout : nn.Module
        The outputs as a function of the state, from (..., unit) to (..., channel): pass it as the
        readout of :func:`kpops.linearize`.

    Notes
    -----
    The state holds that of the selective layer, channel by channel, then C of the latest input. So
    the output is a function of the state alone, and all weights are seen by K. Units are not
    coupled, and P is a scan.

    It is gated linear attention with keys ``B(x)``, queries ``C(x)`` and values ``delta x``, whose
    gates differ from channel to channel. The direct path ``D x`` of the paper passes the state by
    and is left out. The weights of C start as those of B.

    References
    ----------
    A. Gu and T. Dao, Mamba: linear-time sequence modeling with selective state spaces, 2023 (arXiv
    2312.00752, algorithm 2).

    Examples
    --------
    >>> import torch, kpops
    >>> layer = kpops.models.SelectiveLayer(3, 4, rng=0)
    >>> lin = kpops.linearize(layer, torch.randn(2, 50, 3), readout=layer.readout)
    >>> lin.engine.name, lin.outputs.shape
    ('scan', (2, 50, 3))
    """

    def __init__(self, input_size: int, n_states: int, *, rng: Rng = None) -> None:
        super().__init__()
        generator = random_generator(rng)
        self.ssm = SelectiveSSM(input_size, n_states, rng=generator)
        self.input_size = input_size
        self.n_states = n_states
        self.state_size = self.ssm.state_size + n_states
        bound = 1 / math.sqrt(input_size)
        drawn = torch.from_numpy(generator.uniform(-bound, bound, (n_states, input_size)))
        self.query_weight = nn.Parameter(drawn.to(torch.get_default_dtype()))
        self.readout = ChannelReadout(n_states, normalised=False)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state; (row, channel), (row, unit) -> (row, unit)."""
        states = self.ssm(x, h[..., : self.ssm.state_size])
        return torch.cat([states, F.linear(x, self.query_weight)], dim=-1)

    def extra_repr(self) -> str:
        """Return the options, for the repr."""
        return f"{self.input_size}, {self.n_states}"


class ChannelReadout(AttentionReadout):
    """What the query reads from a memory that is stored channel by channel."""

    def split(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Memory (..., state, channel) and query (..., state)."""
        memory, query = h.tensor_split([h.shape[-1] - self.key_size], dim=-1)
        return memory.unflatten(-1, (-1, self.key_size)).mT, query


class _LayerRecurrence(DiagonalRecurrence):
    """The structure of a SelectiveLayer."""

    module: Any

    def unit_coords(self, state_size: int) -> dict[str, np.ndarray]:
        """As of linear attention: the state n is the key, the channel the value."""
        states, channels = self.module.n_states, self.module.input_size
        names = ["memory"] * (channels * states) + ["query"] * states
        return {
            "variable": np.array(names, dtype=object),  # Zarr has no fixed-width strings yet
            "key": np.tile(np.arange(states), channels + 1),
            "value": np.repeat([*range(channels), -1], states),
        }


as_recurrence.register(SelectiveLayer, unless_changed(SelectiveLayer, _LayerRecurrence))
