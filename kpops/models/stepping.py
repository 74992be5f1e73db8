"""Recurrent layers of torch that call a part of their own at every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kpops.kinds import described
from kpops.models.recurrence import Recurrence, as_recurrence

_LAYERS = (nn.RNN, nn.GRU, nn.LSTM)


def let_step(module: nn.Module) -> None:
    """Let the recurrent layers of `module` compute step by step, and call ``step`` at each.

    The fused layers have no derivatives of the kinds that operators take, and a run through them
    has no place where a state could be changed. ``step`` returns its argument, the state.
    """
    for layer in list(module.modules()):
        if type(layer) in _LAYERS and not hasattr(layer, "step"):
            try:
                recurrence = as_recurrence(layer)
            except ValueError:  # bidirectional, or with projections
                continue
            layer.add_module("step", nn.Identity())
            # Not a module: its parameters are those of the layer.
            layer.__dict__["forward"] = Stepped(recurrence)


class Stepped:
    """The forward of ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM``, in plain operations."""

    def __init__(self, recurrence: Recurrence) -> None:
        self.recurrence = recurrence

    def __call__(self, x: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """Outputs of all steps and the last state, as the layer itself returns them."""
        layer: Any = self.recurrence.module
        if not isinstance(x, Tensor) or x.ndim != 3:
            raise ValueError(
                f"{type(layer).__name__} reads {described(x)}, and in a network with sites a "
                "tensor of 3 dimensions: pad sequences to one length, keep the dimension of trials"
            )
        x = x if layer.batch_first else x.transpose(0, 1)
        gated = isinstance(layer, nn.LSTM)
        if hx is None:
            h = self.recurrence.initial_state(None, len(x), x[:, 0])
        else:  # (variable, layer, trial, unit); units are layer by layer
            h = torch.stack(hx if gated else (hx,)).permute(2, 1, 0, 3).flatten(1)
        step, outputs = self.recurrence.along(x), []
        for t in range(x.shape[1]):
            h = layer.step(step(t, h))
            outputs.append(self.recurrence.output(h))
        last = h.unflatten(1, (layer.num_layers, 1 + gated, -1)).permute(2, 1, 0, 3)
        stacked = torch.stack(outputs, 1 if layer.batch_first else 0)
        return stacked, (last[0], last[1]) if gated else last[0]
