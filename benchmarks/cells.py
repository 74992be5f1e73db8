"""The three cells in plain PyTorch operations, from the weights of nn.RNN, nn.GRU and nn.LSTM.

The baselines use these, so that none of them shares code with kpops. Fused kernels lack
forward-mode derivatives on some devices.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Weights = dict[str, Tensor]


def weights_of(module: nn.RNNBase) -> Weights:
    """The parameters of a single layer, detached, in their order."""
    return {name: p.detach() for name, p in module.named_parameters()}


def from_inputs(weights: Weights, inputs: Tensor) -> Tensor:
    """Contribution of the inputs to the gates, for all rows at once."""
    return F.linear(inputs, weights["weight_ih_l0"], weights["bias_ih_l0"])


def next_state(kind: str, weights: Weights, from_x: Tensor, state: Tensor) -> Tensor:
    """One step; the state of an LSTM is h, then c."""
    h, *cell = state.chunk(2, dim=-1) if kind == "LSTM" else (state,)
    from_h = F.linear(h, weights["weight_hh_l0"], weights["bias_hh_l0"])
    if kind == "RNN":
        return torch.tanh(from_x + from_h)
    if kind == "GRU":
        x_r, x_z, x_n = from_x.chunk(3, dim=-1)
        h_r, h_z, h_n = from_h.chunk(3, dim=-1)
        new = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
        return new + torch.sigmoid(x_z + h_z) * (h - new)
    i, f, g, o = (from_x + from_h).chunk(4, dim=-1)
    c = torch.sigmoid(f) * cell[0] + torch.sigmoid(i) * torch.tanh(g)
    return torch.cat([torch.sigmoid(o) * torch.tanh(c), c], dim=-1)


def trajectory(
    kind: str, weights: Weights, inputs: Tensor, forcing: Tensor | None = None
) -> Tensor:
    """States (trial, time, unit) from zero, with `forcing` added to the state at each step."""
    hidden = weights["weight_hh_l0"].shape[1]
    state = inputs.new_zeros(len(inputs), hidden * (2 if kind == "LSTM" else 1))
    # unbind, not indexing: the derivative of one index is as large as all time steps together.
    pushes = [None] * inputs.shape[1] if forcing is None else forcing.unbind(1)
    states = []
    for from_x, push in zip(from_inputs(weights, inputs).unbind(1), pushes, strict=True):
        state = next_state(kind, weights, from_x, state)
        if push is not None:
            state = state + push
        states.append(state)
    return torch.stack(states, dim=1)


def rows(kind: str, weights: Weights, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and previous states of every step as rows r = (trial, time)."""
    states = trajectory(kind, weights, inputs)
    previous = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], dim=1)
    return inputs.flatten(0, 1), previous.flatten(0, 1)
