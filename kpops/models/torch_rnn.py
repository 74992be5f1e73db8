"""PyTorch's own recurrent modules, recomputed in plain operations.

The fused kernels of nn.RNN, nn.GRU and nn.LSTM lack forward-mode derivatives on one device or
another, so the step is written out from their weights. With gates stacked as PyTorch stacks them,

- RNN:  ``h' = phi(W_ih x + b_ih + W_hh h + b_hh)``, phi = tanh or relu
- GRU:  ``r, z = sigmoid(...)``, ``n = tanh(W_in x + b_in + r (W_hn h + b_hn))``,
  ``h' = (1 - z) n + z h``
- LSTM: ``i, f, o = sigmoid(...)``, ``g = tanh(...)``, ``c' = f c + i g``, ``h' = o tanh(c')``

The state of a stack is layer by layer; that of an LSTM layer is h, then c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kpops.models.recurrence import Recurrence, as_recurrence, matching

Gates = Callable[[Tensor, Tensor, Tensor], Tensor]


def _rnn(activation: Callable[[Tensor], Tensor]) -> Gates:
    return lambda from_x, from_h, h: activation(from_x + from_h)


def _gru(from_x: Tensor, from_h: Tensor, h: Tensor) -> Tensor:
    x_r, x_z, x_n = from_x.chunk(3, dim=-1)
    h_r, h_z, h_n = from_h.chunk(3, dim=-1)
    update = torch.sigmoid(x_z + h_z)
    new = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
    return new + update * (h - new)


def _lstm(from_x: Tensor, from_h: Tensor, state: Tensor) -> Tensor:
    i, f, g, o = (from_x + from_h).chunk(4, dim=-1)
    c = torch.sigmoid(f) * state.chunk(2, dim=-1)[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.cat([torch.sigmoid(o) * torch.tanh(c), c], dim=-1)


_GATES: dict[str, Gates] = {
    "RNN_TANH": _rnn(torch.tanh),
    "RNN_RELU": _rnn(torch.relu),
    "GRU": _gru,
    "LSTM": _lstm,
}


class TorchRecurrence(Recurrence):
    """nn.RNN, nn.GRU, nn.LSTM (any number of layers) and their Cell classes.

    Parameters
    ----------
    module : nn.RNNBase or nn.RNNCellBase
        The user's module.
    mode : {"RNN_TANH", "RNN_RELU", "GRU", "LSTM"}
        Which cell, in PyTorch's own words.
    """

    module: Any

    def __init__(self, module: Any, mode: str) -> None:
        self._refuse_unsupported(module)
        # A Cell names its weights without the layer: weight_hh instead of weight_hh_l0.
        layers = getattr(module, "num_layers", None)
        suffixes = [""] if layers is None else [f"_l{i}" for i in range(layers)]
        variables = ("h", "c") if mode == "LSTM" else ("h",)
        super().__init__(
            module,
            state_size=module.hidden_size * len(variables) * len(suffixes),
            input_size=module.input_size,
            time_major=not getattr(module, "batch_first", True),
        )
        self.mode = mode
        self.suffixes = suffixes
        self.variables = variables

    @staticmethod
    def _refuse_unsupported(module: Any) -> None:
        name = type(module).__name__
        if getattr(module, "bidirectional", False):
            raise ValueError(
                f"{name} has bidirectional=True: its states depend on future inputs, so they are "
                "no recurrence in time; linearise one direction"
            )
        if getattr(module, "proj_size", 0):
            raise ValueError(f"{name} has proj_size={module.proj_size}: use proj_size=0")
        if module.training and getattr(module, "dropout", 0) and module.num_layers > 1:
            raise ValueError(
                f"{name} has dropout={module.dropout} and is in training mode, so its step is "
                "random: call model.eval() first"
            )
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(
                f"{name} has forward hooks, which may change its step: remove them (pruning: "
                "prune.remove), or reparametrise by torch.nn.utils.parametrize"
            )
        plain = (nn.RNN, nn.GRU, nn.LSTM, nn.RNNCell, nn.GRUCell, nn.LSTMCell)
        if type(module).forward not in [cls.forward for cls in plain]:
            raise ValueError(
                f"{name} overrides the forward of {type(module).__mro__[1].__name__}, so its step "
                "is unknown: register a Recurrence for it with kpops.models.as_recurrence"
            )

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state of every row; (row, feature), (row, unit) -> (row, unit)."""
        gates = _GATES[self.mode]
        states = []
        for suffix, state in zip(self.suffixes, h.chunk(len(self.suffixes), dim=-1), strict=True):
            hidden = state[..., : self.module.hidden_size]
            from_x = self._affine("ih" + suffix, x)
            from_h = self._affine("hh" + suffix, hidden)
            states.append(gates(from_x, from_h, state))
            x = states[-1][..., : self.module.hidden_size]  # the next layer's input
        return states[0] if len(states) == 1 else torch.cat(states, dim=-1)

    def _affine(self, suffix: str, u: Tensor) -> Tensor:
        bias = getattr(self.module, f"bias_{suffix}") if self.module.bias else None
        return F.linear(u, getattr(self.module, f"weight_{suffix}"), bias)

    def output(self, h: Tensor) -> Tensor:
        """Hidden state of the last layer, which is what the module returns."""
        last = h.chunk(len(self.suffixes), dim=-1)[-1]
        return last[..., : self.module.hidden_size]

    def initial_state(self, h0: Any, n_trials: int, like: Tensor) -> Tensor:
        """Bring `h0` to (trial, unit).

        Beside what every recurrence takes, `h0` may be what the module itself takes:
        (layer, trial, hidden), and for an LSTM the pair of h0 and c0.
        """
        if h0 is None or (not isinstance(h0, tuple) and np.ndim(h0) < 3):
            return super().initial_state(h0, n_trials, like)
        parts = h0 if isinstance(h0, tuple) else (h0,)
        if len(parts) != len(self.variables):
            raise ValueError(
                f"h0 has {len(parts)} part(s), expected {len(self.variables)}: "
                + ", ".join(f"{v}0" for v in self.variables)
            )
        hidden = self.module.hidden_size
        shape = (len(self.suffixes), n_trials, hidden)
        tensors = []
        for variable, part in zip(self.variables, parts, strict=True):
            tensor = matching(part, like, f"{variable}0")
            tensor = tensor[None] if tensor.ndim == 2 and len(self.suffixes) == 1 else tensor
            if tuple(tensor.shape) != shape:
                raise ValueError(
                    f"{variable}0 has shape {tuple(tensor.shape)}, expected "
                    f"(layer, trial, hidden) = {shape}"
                )
            tensors.append(tensor)
        # (variable, layer, trial, hidden) -> (trial, layer, variable, hidden)
        return torch.stack(tensors).permute(2, 1, 0, 3).reshape(n_trials, -1)

    def unit_coords(self, state_size: int) -> dict[str, np.ndarray]:
        """Layer (from 0) and variable ("h" or "c") of every unit."""
        hidden, variables = self.module.hidden_size, len(self.variables)
        names = np.array(self.variables, dtype=object)  # Zarr has no fixed-width strings yet
        return {
            "layer": np.repeat(np.arange(len(self.suffixes)), hidden * variables),
            "variable": np.tile(np.repeat(names, hidden), len(self.suffixes)),
        }


@as_recurrence.register(nn.RNN)
@as_recurrence.register(nn.GRU)
@as_recurrence.register(nn.LSTM)
def _from_layers(model: nn.RNNBase) -> Recurrence:
    return TorchRecurrence(model, model.mode)


@as_recurrence.register(nn.RNNCell)
@as_recurrence.register(nn.GRUCell)
@as_recurrence.register(nn.LSTMCell)
def _from_cell(model: nn.RNNCellBase) -> Recurrence:
    modes = {nn.GRUCell: "GRU", nn.LSTMCell: "LSTM"}
    mode = next((m for cls, m in modes.items() if isinstance(model, cls)), None)
    return TorchRecurrence(model, mode or f"RNN_{model.nonlinearity}".upper())
