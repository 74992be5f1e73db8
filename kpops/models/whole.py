"""From what users hold to what is linearised: wrappers, and models over whole sequences.

A network is mostly written as one module from inputs to outputs, ``self.fc(self.gru(x)[0])``, and
wrapped for training. What kpops linearises is its recurrent part, with a readout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

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
    """A model as what is linearised of it.

    Parameters
    ----------
    recurrent : nn.Module or Recurrence
        The user's recurrent part, or the model itself where it is one.
    readout : nn.Module, callable or None
        What makes outputs of its hidden states.
    path : str
        Where the recurrent part is in the model. Parameters have the names that the part gives
        them.
    time_major : bool or None
        Whether the model takes (time, trial, feature); None where the recurrent part tells.
    remark : str
        How the model was understood.
    """

    recurrent: Any
    readout: Any = None
    path: str = ""
    time_major: bool | None = None
    remark: str = ""

    def own_names(self, parameters: Any) -> Any:
        """The user's ``parameters=``, names in the whole model as names in the recurrent part."""
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
    """Parts of a model, seen from a run of a copy where it takes whole sequences.

    Parameters
    ----------
    model : Any
        What the user calls a model.
    private_copy : callable
        Makes a copy, which is run.
    inputs, readout, h0 : optional
        What the user gives besides. Without inputs the copy is run on random ones; a readout takes
        the place of the model's.

    Raises
    ------
    ValueError
        If the model takes whole sequences, and is not a recurrent part and a readout of its states.
    TypeError
        If the model is scripted.
    """
    model, outer = _unwrap(model)
    if not isinstance(model, nn.Module) or is_registered(model):
        return Parts(model, readout, outer)
    if _is_plain_network(model):
        own = model.readout if readout is None else readout
        return Parts(model.recurrent, own, _joined(outer, "recurrent"), time_major=False)
    required, most = arguments(model)
    if most >= 2:  # an input and a state: a cell, unless it has a layer inside and is none
        known = recurrent_paths(model)
        if required > 2 or not known or _takes_a_step(private_copy(model), known[0], h0):
            return Parts(model, readout, outer)
    run = Run(model, private_copy(model), inputs)
    if readout is None:
        readout, remark = run.readout()
    else:
        remark = run.states_alone()
    return Parts(
        original(model.get_submodule(run.path)),
        readout,
        _joined(outer, run.path),
        run.time_major,
        f"model {type(model).__name__}: {remark}",
    )


def _unwrap(model: Any) -> tuple[Any, str]:
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
    if getattr(model.forward, "__name__", "") == "_forward_unimplemented":
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
    """Whether forward(x_t, h) gives a state of the shape of h; `known` is a recurrent part."""
    try:
        step, inner = as_recurrence(model), as_recurrence(model.get_submodule(known))
        x = next(model.parameters()).new_zeros(7, step.input_size or inner.input_size or 1)
        if step.state_size is None:  # h0 tells it
            parts = h0 if isinstance(h0, tuple) else (h0,)
            zero = tuple(x.new_zeros(7, part.shape[-1]) for part in parts)
            h0 = zero if isinstance(h0, tuple) else zero[0]
        else:
            h0 = None
        with torch.no_grad():
            step(x, step.initial_state(h0, 7, x))
    except Exception:  # whatever a user's forward raises
        return False
    return True
