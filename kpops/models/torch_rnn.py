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
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kpops.models.gated import Affine, Formula, GatedRecurrence, Tensors
from kpops.models.recurrence import as_recurrence, is_hooked, matching

Gates = Callable[[Tensors, Tensors, Tensors], Tensors]


def _rnn(activation: Callable[[Tensor], Tensor]) -> Gates:
    return lambda from_x, from_h, state: (activation(from_x[0] + from_h[0]),)


def _gru(from_x: Tensors, from_h: Tensors, state: Tensors) -> Tensors:
    x_r, x_z, x_n = from_x
    h_r, h_z, h_n = from_h
    update = torch.sigmoid(x_z + h_z)
    new = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
    return (new + update * (state[0] - new),)


def _lstm(from_x: Tensors, from_h: Tensors, state: Tensors) -> Tensors:
    i, f, g, o = (x + h for x, h in zip(from_x, from_h, strict=True))
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


_GATES: dict[str, Gates] = {
    "RNN_TANH": _rnn(torch.tanh),
    "RNN_RELU": _rnn(torch.relu),
    "GRU": _gru,
    "LSTM": _lstm,
}
_FORMULAS = {
    "RNN_TANH": Formula("RATE", "tanh"),
    "RNN_RELU": Formula("RATE", "relu"),
    "GRU": Formula("GRU"),
    "LSTM": Formula("LSTM"),
}


class TorchRecurrence(GatedRecurrence):
    """nn.RNN, nn.GRU, nn.LSTM (any number of layers) and their Cell classes.

    Parameters
    ----------
    module : nn.RNNBase or nn.RNNCellBase
        The user's module.
    mode : {"RNN_TANH", "RNN_RELU", "GRU", "LSTM"}
        Kind of cell, as PyTorch names it.
    """

    def __init__(self, module: Any, mode: str) -> None:
        self._refuse_unsupported(module)
        # A Cell names its weights without the layer: weight_hh instead of weight_hh_l0.
        n_layers = getattr(module, "num_layers", None)
        suffixes = [""] if n_layers is None else [f"_l{i}" for i in range(n_layers)]
        names = ["weight_hh", "weight_ih", *(["bias_hh", "bias_ih"] if module.bias else [])]
        layers = [Affine(*(name + suffix for name in names)) for suffix in suffixes]
        super().__init__(
            module,
            layers,
            variables=("h", "c") if mode == "LSTM" else ("h",),
            time_major=not getattr(module, "batch_first", True),
        )
        self.mode = mode
        if type(self) is TorchRecurrence:
            self.formula = _FORMULAS[mode]

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
        if is_hooked(module):
            raise ValueError(
                f"{name} has hooks, which may change its step or its gradient: remove them "
                "(pruning: prune.remove), or reparametrise with torch.nn.utils.parametrize"
            )
        plain = (nn.RNN, nn.GRU, nn.LSTM, nn.RNNCell, nn.GRUCell, nn.LSTMCell)
        own = "forward" in vars(module)  # of this one object
        called = type(module).__call__ is not nn.Module.__call__
        if own or called or type(module).forward not in [cls.forward for cls in plain]:
            parent = type(module).__mro__[0 if own else 1].__name__
            method = "__call__" if called else "forward"
            raise ValueError(
                f"{name} overrides the {method} of {parent}, so its step is unknown: register a "
                "Recurrence for it with kpops.models.as_recurrence"
            )

    def gates(self, from_x: Tensors, from_h: Tensors, state: Tensors) -> Tensors:
        """New state variables of a layer, as PyTorch defines them."""
        return _GATES[self.mode](from_x, from_h, state)

    def output(self, h: Tensor) -> Tensor:
        """Hidden state of the last layer, which is what the module returns."""
        last = h.chunk(len(self.layers), dim=-1)[-1]
        return last[..., : self.hidden_size]

    def initial_state(self, h0: Any, n_trials: int, like: Tensor) -> Tensor:
        """Bring `h0` to (trial, unit); it may also have the form that the module itself takes.

        That is (layer, trial, hidden), and for an LSTM the pair of h0 and c0.
        """
        if h0 is None or (not isinstance(h0, tuple) and np.ndim(h0) < 3):
            return super().initial_state(h0, n_trials, like)
        parts = h0 if isinstance(h0, tuple) else (h0,)
        if len(parts) != len(self.variables):
            raise ValueError(
                f"h0 has {len(parts)} part(s), expected {len(self.variables)}: "
                + ", ".join(f"{v}0" for v in self.variables)
            )
        shape = (len(self.layers), n_trials, self.hidden_size)
        tensors = []
        for variable, part in zip(self.variables, parts, strict=True):
            tensor = matching(part, like, f"{variable}0")
            tensor = tensor[None] if tensor.ndim == 2 and len(self.layers) == 1 else tensor
            if tuple(tensor.shape) != shape:
                raise ValueError(
                    f"{variable}0 has shape {tuple(tensor.shape)}, expected "
                    f"(layer, trial, hidden) = {shape}"
                )
            tensors.append(tensor)
        # (variable, layer, trial, hidden) -> (trial, layer, variable, hidden)
        return torch.stack(tensors).permute(2, 1, 0, 3).reshape(n_trials, -1)


for _layers in (nn.RNN, nn.GRU, nn.LSTM):
    as_recurrence.register(_layers, lambda model: TorchRecurrence(model, model.mode))
as_recurrence.register(
    nn.RNNCell, lambda model: TorchRecurrence(model, f"RNN_{model.nonlinearity}".upper())
)
as_recurrence.register(nn.GRUCell, partial(TorchRecurrence, mode="GRU"))
as_recurrence.register(nn.LSTMCell, partial(TorchRecurrence, mode="LSTM"))
