"""The recurrent part and the readout of a network that takes whole sequences, also in a wrapper.

Most networks are one module from inputs to outputs, ``self.fc(self.gru(x)[0])``, and wrapped for
training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from kpops.models.compare import as_it_is
from kpops.models.network import Network
from kpops.models.recurrence import arguments, as_recurrence
from kpops.models.structure import is_registered, original, recurrent_paths
from kpops.models.whole_run import Run

_WRAPPERS = (
    nn.DataParallel,
    nn.parallel.DistributedDataParallel,
    torch.optim.swa_utils.AveragedModel,
)


@dataclass(frozen=True)
class Parts:
    """The parts of a model that are linearised."""

    recurrent: Any  # the user's recurrent part, or the model itself
    readout: Any = None  # of the hidden states
    path: str = ""  # of the recurrent part, without which parameters are named
    time_major: bool | None = None  # None: as the recurrent part has it
    remark: str = ""  # how the model was understood
    of_sequences: bool = False  # whether the model uses its readout on (trial, time, hidden)

    def own_names(self, parameters: Any) -> Any:
        """The user's ``parameters=``, with names in the model as names in the recurrent part."""
        if not self.path or callable(parameters) or not isinstance(parameters, Iterable):
            return parameters
        names = [parameters] if isinstance(parameters, str) else parameters
        prefix = f"{self.path}."
        return [n.removeprefix(prefix) if isinstance(n, str) else n for n in names]


def take_apart(
    model: Any,
    private_copy: Callable[[Any], Any],
    *,
    inputs: Any = None,
    readout: Any = None,
    h0: Any = None,
) -> Parts:
    """Parts of a model; if it takes whole sequences, found by running a `private_copy` of it.

    `inputs`, `readout` and `h0` are the user's. Without inputs the copy is run on random ones; a
    readout replaces that of the model. A model is refused if it is scripted (TypeError), or takes
    whole sequences and is not a recurrent part with a readout of its states (ValueError).
    """
    model, outer = unwrap(model)
    if not isinstance(model, nn.Module) or is_registered(model):
        return Parts(model, readout, outer)
    if _is_plain_network(model):
        path, own = _joined(outer, "recurrent"), readout is None
        used = model.readout if own else readout
        return Parts(model.recurrent, used, path, time_major=False, of_sequences=own)
    required, most = arguments(model)
    if most >= 2:  # an input and a state: a cell, unless it has a layer inside and is none
        known = recurrent_paths(model)
        if required > 2 or not known or _takes_a_step(private_copy(model), known[0], h0):
            return Parts(model, readout, outer)
    run = Run(model, private_copy(model), inputs)
    if readout is None:
        readout, remark = run.readout()
    else:  # whatever the model makes of its states
        run.compare_derivatives([], None, as_it_is)
        remark = f"{run.path} as recurrence"
    return Parts(
        original(model.get_submodule(run.path)),
        readout,
        _joined(outer, run.path),
        run.time_major,
        f"model {type(model).__name__}: {remark}",
    )


def unwrap(model: Any) -> tuple[Any, str]:
    """The module that wrappers run, and its path in them."""
    path = ""
    while (name := _wrapped(model)) is not None:
        path, model = _joined(path, name), getattr(model, name)
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "model is a scripted module, whose steps kpops cannot differentiate: pass the module "
            "that it was made from"
        )
    return model, path


def _wrapped(model: Any) -> str | None:
    if isinstance(model, _WRAPPERS):
        return "module"
    if not isinstance(model, nn.Module):
        return None
    if original(model) is not model:
        return "_orig_mod"
    # A LightningModule often has no forward, but one network beside losses and metrics.
    owner = next(c for c in type(model).__mro__ if "forward" in vars(c))
    if owner is nn.Module or owner.__name__ == "LightningModule":
        networks = [
            n for n, child in model.named_children() if any(True for _ in child.parameters())
        ]
        return networks[0] if len(networks) == 1 else None
    return None


def _joined(outer: str, inner: str) -> str:
    return ".".join(part for part in (outer, inner) if part)


def _is_plain_network(model: nn.Module) -> bool:
    hooks = model._forward_hooks or model._forward_pre_hooks
    return type(model).forward is Network.forward and not hooks and "forward" not in vars(model)


def _takes_a_step(model: nn.Module, known: str, h0: Any) -> bool:
    """Whether forward(x_t, h) returns a state of the shape of h; `known` is a recurrent part."""
    try:
        step, inner = as_recurrence(model), as_recurrence(model.get_submodule(known))
        x = next(model.parameters()).new_zeros(7, step.input_size or inner.input_size or 1)
        if step.state_size is not None:
            h0 = None
        elif isinstance(h0, tuple):
            h0 = tuple(x.new_zeros(7, np.shape(part)[-1]) for part in h0)
        else:  # the size is that of h0, or of the cell inside
            h0 = x.new_zeros(7, (inner.state_size or 1) if h0 is None else np.shape(h0)[-1])
        with torch.no_grad():
            step(x, step.initial_state(h0, 7, x))
    except Exception:  # whatever a user's forward raises
        return False
    return True
