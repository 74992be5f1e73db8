"""Linear attention as a recurrence, whose state is the memory that its queries read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kpops.maturity import experimental
from kpops.models.cells import check_sizes
from kpops.models.diagonal import DiagonalRecurrence, Rng
from kpops.models.recurrence import as_recurrence, unless_changed
from kpops.scalars import generator as random_generator

_TEMPERATURE = 16  # of the gates, as in their paper


@experimental
class LinearAttention(nn.Module):
    r"""Causal linear attention: plain, normalised, gated, or both.

    With query q, key k and value v of a token x, the memory is a matrix that every token adds to,
    and the output is what the query reads from it:

    - ``M' = D M + k v^T`` and ``y = M'^T q``;
    - normalised: ``n' = D n + k`` and ``y = M'^T q / (n' . q)`` as well.

    Parameters
    ----------
    input_size : int
        Number of features of a token.
    key_size, value_size : int
        Sizes of keys and queries, and of values and outputs.
    gated : bool
        Whether D is ``diag(sigmoid(G x + g)^(1/16))``, a decay of each entry of the keys that
        depends on the token. Otherwise D = 1, and nothing is forgotten.
    normalised : bool
        Whether outputs are averages of values. Keys and queries are then positive,
        ``elu(u) + 1`` of linear maps u of x. Otherwise they are these maps.
    rng : int, Generator or None
        Seed or source of the weights. They are drawn in float64 and rounded.

    Raises
    ------
    ValueError
        If a size is no positive int.

    Attributes
    ----------
    readout : nn.Module
        The outputs as a function of the state, from (..., unit) to (..., value): pass it as the
        readout of :func:`kpops.linearize`.

    Notes
    -----
    Written out, ``y_t = sum_{s <= t} (q_t . k_s) v_s``, the attention of a causal mask without its
    softmax; the normaliser divides by ``sum_{s <= t} q_t . k_s``, and gates put their product from
    s + 1 to t between q and k.

    The state holds M key by key, with the normaliser as one more column, the memory of a value that
    is always 1; then q of the latest token. As the query is part of the state, the output is a
    function of the state alone, and all weights are seen by K. Every unit decays by its own factor,
    which is 1 or a gate in the memory and 0 in the query: units are not coupled, A does not depend
    on the state, and P is a scan.

    Weights start uniform in ``+-1/sqrt(input_size)``, those of the gates too.

    References
    ----------
    A. Katharopoulos et al., Transformers are RNNs, ICML 2020 (arXiv 2006.16236). S. Yang et al.,
    Gated linear attention transformers with hardware-efficient training, ICML 2024 (arXiv
    2312.06635), whose gates have a weight of low rank.

    Examples
    --------
    >>> import torch, kpops
    >>> layer = kpops.models.LinearAttention(3, 4, 2, normalised=True, rng=0)
    >>> lin = kpops.linearize(layer, torch.randn(2, 50, 3), readout=layer.readout)
    >>> lin.engine.name, lin.outputs.shape
    ('scan', (2, 50, 2))
    >>> lin.output_ntk
    <C P K P* C* (trial: 2, time: 50, output: 2), float32 on cpu, PSD>
    """

    def __init__(
        self,
        input_size: int,
        key_size: int,
        value_size: int,
        *,
        gated: bool = False,
        normalised: bool = False,
        rng: Rng = None,
    ) -> None:
        super().__init__()
        check_sizes(input_size=input_size, key_size=key_size, value_size=value_size)
        self.input_size = input_size
        self.key_size = key_size
        self.value_size = value_size
        self.gated = gated
        self.normalised = normalised
        self.state_size = key_size * (value_size + normalised) + key_size
        generator, bound = random_generator(rng), 1 / math.sqrt(input_size)

        def drawn(*shape: int) -> nn.Parameter:
            values = torch.from_numpy(generator.uniform(-bound, bound, shape))
            return nn.Parameter(values.to(torch.get_default_dtype()))

        self.query_weight = drawn(key_size, input_size)
        self.key_weight = drawn(key_size, input_size)
        self.value_weight = drawn(value_size, input_size)
        if gated:
            self.gate_weight = drawn(key_size, input_size)
            self.gate_bias = drawn(key_size)
        self.readout = AttentionReadout(key_size, normalised=normalised)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state; (row, input), (row, unit) -> (row, unit)."""
        query, key = (self._features(F.linear(x, w)) for w in (self.query_weight, self.key_weight))
        value = F.linear(x, self.value_weight)
        if self.normalised:
            value = torch.cat([value, torch.ones_like(value[..., :1])], dim=-1)
        memory, _ = self.readout.split(h)
        if self.gated:
            gate = torch.sigmoid(F.linear(x, self.gate_weight, self.gate_bias))
            memory = (gate ** (1 / _TEMPERATURE))[..., None] * memory
        memory = memory + key[..., None] * value[..., None, :]
        return torch.cat([memory.flatten(-2), query], dim=-1)

    def _features(self, u: Tensor) -> Tensor:
        return F.elu(u) + 1 if self.normalised else u

    def extra_repr(self) -> str:
        """Return the options, for the repr."""
        return (
            f"{self.input_size}, {self.key_size}, {self.value_size}, gated={self.gated}, "
            f"normalised={self.normalised}"
        )


class AttentionReadout(nn.Module):
    """What the query of a state of linear attention reads from its memory."""

    def __init__(self, key_size: int, *, normalised: bool) -> None:
        super().__init__()
        self.key_size = key_size
        self.normalised = normalised

    def forward(self, h: Tensor) -> Tensor:
        """Outputs; (..., unit) -> (..., value)."""
        memory, query = self.split(h)
        read = torch.einsum("...k,...kv->...v", query, memory)
        return read[..., :-1] / read[..., -1:] if self.normalised else read

    def split(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Memory (..., key, value), the normaliser its last column, and query (..., key)."""
        memory, query = h.tensor_split([h.shape[-1] - self.key_size], dim=-1)
        return memory.unflatten(-1, (self.key_size, -1)), query


class _AttentionRecurrence(DiagonalRecurrence):
    """The structure of a LinearAttention."""

    module: Any

    def unit_coords(self, state_size: int) -> dict[str, np.ndarray]:
        """Variable, key and value of every unit; the value is -1 where there is none."""
        keys, values = self.module.key_size, self.module.value_size
        row = ["memory"] * values + ["normaliser"] * self.module.normalised
        names = [*row * keys, *["query"] * keys]
        columns = [*range(values), *[-1] * self.module.normalised]
        return {
            "variable": np.array(names, dtype=object),  # Zarr has no fixed-width strings yet
            "key": np.concatenate([np.repeat(np.arange(keys), len(row)), np.arange(keys)]),
            "value": np.array([*columns * keys, *[-1] * keys]),
        }


as_recurrence.register(LinearAttention, unless_changed(LinearAttention, _AttentionRecurrence))
