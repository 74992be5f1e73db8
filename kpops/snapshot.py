"""What linearize takes in: a private copy of the model, checked inputs, the states it runs through.

Everything that can be wrong with a model or its inputs is refused here, before any work is done.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from kpops.checks import (
    is_known,
    raise_changed,
    refuse_readout,
    refuse_step,
    refuse_trajectory,
    refuse_unfit,
)
from kpops.engines.base import Trajectory
from kpops.labels import Coordinate, Space, as_tensor, by_name, numpy_dtype
from kpops.models.network import Network
from kpops.models.readout import RowReadout
from kpops.models.recurrence import Recurrence, as_recurrence


def of_model(
    model: Any, dtype: torch.dtype | None, device: torch.device | str | None
) -> Recurrence:
    """Private copy of `model` as a recurrence, in `dtype` and on `device` where given."""
    if isinstance(model, nn.Module):
        refuse_unfit(model, "the model")
        # A copy first: to read a parametrised weight of the user's may already change its buffers.
        model = _copy(model)
    recurrence = as_recurrence(model)
    if dtype is not None:
        numpy_dtype(dtype)  # refuses what is not float32 or float64
        recurrence = recurrence.to(dtype)
    if device is not None:
        recurrence = recurrence.to(device)
    dtypes = {n: p.dtype for n, p in recurrence.module.named_parameters()}
    if len(set(dtypes.values())) > 1:
        raise TypeError(f"the parameters mix dtypes, {dtypes}: pass dtype= to choose one")
    return recurrence


def of_readout(
    readout: Any, recurrence: Recurrence, states: Tensor, *, convert: bool, of_sequences: bool
) -> tuple[Any, dict[str, Tensor]]:
    """Private copy of a readout of `states`, and those of its parameters that learn.

    With `convert`, a readout of another dtype is converted; else it is refused. `of_sequences`
    says whether it is used on (trial, time, hidden), which must be the same.
    """
    mine, learning = _copy_readout(readout, states, convert)
    refuse_readout(RowReadout(recurrence, mine), states, learning, of_sequences=of_sequences)
    return mine, learning


def refuse_tied(model: Any, readout: Any) -> None:
    """Refuse a weight that recurrence and readout share: their tangents would not add up."""
    if isinstance(model, nn.Module) and isinstance(readout, nn.Module):
        names = {id(p): n for n, p in model.named_parameters() if p.requires_grad}
        for name, parameter in readout.named_parameters():
            if id(parameter) in names:
                raise ValueError(
                    f"the readout's {name} is the recurrence's {names[id(parameter)]}: untie them, "
                    "or freeze the parameter by requires_grad_(False)"
                )


def convert_state(h0: Any, dtype: torch.dtype | None) -> Any:
    """Initial state in `dtype`, where the user has asked for one."""
    if h0 is None or dtype is None:
        return h0
    if isinstance(h0, tuple):
        return tuple(as_tensor(part).to(dtype) for part in h0)
    return as_tensor(h0).to(dtype)


def _copy_readout(readout: Any, like: Tensor, convert: bool) -> tuple[Any, dict[str, Tensor]]:
    if callable(readout):
        refuse_unfit(readout, "the readout")
    if isinstance(readout, nn.Module):
        dtypes = {p.dtype for p in readout.parameters()} - {like.dtype}
        if dtypes and not convert:
            raise TypeError(
                f"readout is {dtypes.pop()}, the model {like.dtype}: convert one of them, or pass "
                "dtype= to kpops.linearize"
            )
        mine = _copy(readout).to(like)
        learning = {n: p.detach() for n, p in mine.named_parameters() if p.requires_grad}
        return mine.requires_grad_(False), learning
    if callable(readout):
        return readout, {}
    raise TypeError(f"readout is a {type(readout).__name__}, expected an nn.Module or a callable")


def _copy(module: Any) -> Any:
    # After a training step PyTorch's layers still hold the weights that parametrizations made in
    # it, which cannot be copied with their graph. They make them anew.
    made = [w for m in module.modules() for w in getattr(m, "_flat_weights", ())]
    memo = {id(w): w.detach() for w in made if isinstance(w, Tensor) and not w.is_leaf}
    try:
        return copy.deepcopy(module, memo)
    except RuntimeError as error:
        raise ValueError(
            f"{type(module).__name__} cannot be copied ({error}): keep only parameters and "
            "buffers as its tensors, for example with torch.nn.utils.parametrizations"
        ) from error


def refuse_changed_network(network: Network) -> None:
    """Refuse a Network that does something else than its recurrent module and its readout."""
    if type(network).forward is not Network.forward or (
        network._forward_hooks or network._forward_pre_hooks
    ):
        raise ValueError(
            f"{type(network).__name__} has a forward or hooks of its own: linearise its recurrent "
            "module and pass readout="
        )


def learning_parameters(
    recurrence: Recurrence, wanted: Iterable[str] | Callable[[str], bool] | None
) -> dict[str, Tensor]:
    """The parameters that learn, in the order of ``named_parameters``."""
    every = recurrence.parameter_dict()
    if wanted is None:
        chosen = {n for n, p in every.items() if p.requires_grad}
        reason = "no parameter requires grad"
    elif callable(wanted):
        chosen = {n for n in every if wanted(n)}
        reason = "the predicate parameters= accepts no name"
    else:
        chosen = {wanted} if isinstance(wanted, str) else set(wanted)
        reason = "parameters= is empty"
    unknown = sorted(chosen - set(every))
    if unknown:
        raise ValueError(f"no parameter {unknown} in the model: choose from {list(every)}")
    if not chosen:
        raise ValueError(f"{reason}: name those that learn by parameters=, from {list(every)}")
    if not any(every[name].numel() for name in chosen):
        raise ValueError(f"the parameters {sorted(chosen)} have no entries: choose others")
    first = next(iter(every.values()))
    numpy_dtype(first.dtype)
    return {n: p.detach() for n, p in every.items() if n in chosen}


def unpack(inputs: Any, mask: Any, recurrence: Recurrence) -> tuple[Any, Any]:
    """Inputs and mask, where they come together as a PackedSequence."""
    if not isinstance(inputs, PackedSequence):
        return inputs, mask
    if mask is not None:
        raise ValueError("mask is given with a PackedSequence, which has its own lengths: drop it")
    padded, lengths = pad_packed_sequence(inputs, batch_first=not recurrence.time_major)
    return padded, torch.arange(int(lengths.max())) < lengths[:, None]


def read_inputs(
    inputs: Any, recurrence: Recurrence, like: Tensor, *, convert: bool
) -> tuple[Tensor, dict[str, Coordinate]]:
    """Inputs as (trial, time, feature) in the dtype and on the device of `like`, and labels.

    With `convert`, other floating dtypes are converted; else they are refused.
    """
    coords: dict[str, Coordinate] = {}
    time_major = recurrence.time_major
    if isinstance(inputs, xr.DataArray):
        if inputs.ndim != 3 or not {"trial", "time"} <= set(inputs.dims):
            raise ValueError(
                f"inputs has dims {inputs.dims}, expected trial, time and one of features"
            )
        inputs = inputs.transpose("trial", "time", ...)
        coords = {
            str(k): (tuple(map(str, c.dims)), c.values)
            for k, c in inputs.coords.items()
            if c.dims and set(c.dims) <= {"trial", "time"}
        }
        inputs, time_major = inputs.data, False
    x = as_tensor(inputs)
    if x.ndim != 3 or 0 in x.shape[:2]:
        expected = "(time, trial, feature)" if time_major else "(trial, time, feature)"
        raise ValueError(
            f"inputs has shape {tuple(x.shape)}, expected {expected} with no dim empty; for a "
            "single trial add a dim of size 1, for a model without inputs give 0 features"
        )
    if time_major:
        x = x.transpose(0, 1)
    if recurrence.input_size is not None and x.shape[2] != recurrence.input_size:
        raise ValueError(
            f"inputs has {x.shape[2]} features, the model takes {recurrence.input_size}"
        )
    if x.is_floating_point() and x.dtype != like.dtype and not convert:
        raise TypeError(
            f"inputs is {x.dtype}, the model {like.dtype}: convert one of them, or pass "
            f"dtype={like.dtype} to convert both"
        )
    # Row-major by trial and never shared with the user's array: this is a snapshot.
    x = x.to(device=like.device, dtype=like.dtype, copy=True)
    return recurrence.prepare_inputs(x.contiguous()), coords


def read_mask(mask: Any, x: Tensor, coords: dict[str, Coordinate]) -> Tensor | None:
    """Mask as a bool tensor (trial, time), or None when every step is valid."""
    if mask is None:
        return None
    if isinstance(mask, xr.DataArray):
        space = Space(("trial", "time"), (x.shape[0], x.shape[1]), coords)
        mask = by_name(mask, space, "mask")
    valid = as_tensor(mask).to(device=x.device)
    if tuple(valid.shape) != tuple(x.shape[:2]):
        raise ValueError(
            f"mask has shape {tuple(valid.shape)}, expected (trial, time) = {tuple(x.shape[:2])}"
        )
    if valid.dtype != torch.bool:
        if not ((valid == 0) | (valid == 1)).all():
            raise ValueError("mask has values other than 0 and 1: pass booleans")
        valid = valid.bool()
    if not valid[:, 0].all():
        trial = int((~valid[:, 0]).nonzero()[0, 0])
        raise ValueError(f"mask has no valid first step in trial {trial}: drop empty trials")
    if (valid[:, 1:] & ~valid[:, :-1]).any():
        trial = int((valid[:, 1:] & ~valid[:, :-1]).nonzero()[0, 0])
        raise ValueError(
            f"mask of trial {trial} is True after a False: valid steps must come first, padding "
            "last; to weight a loss, put the weights into the loss"
        )
    return None if valid.all() else valid.clone()


def run(
    recurrence: Recurrence, x: Tensor, h0: Any, valid: Tensor | None, learning: dict[str, Tensor]
) -> Trajectory:
    """Run the recurrence on `x` from the user's `h0`, and check what it does."""
    h = recurrence.initial_state(h0, len(x), x[:, 0])
    return run_from(recurrence, x, h, valid, learning)


@torch.no_grad()
def run_from(
    recurrence: Recurrence,
    x: Tensor,
    h: Tensor,
    valid: Tensor | None = None,
    learning: dict[str, Tensor] | None = None,
) -> Trajectory:
    """Run the recurrence on `x` from states h (trial, unit), and check what it does.

    At steps that are not valid, input and state repeat the trial's last valid step. Derivatives are
    checked by the state and by the parameters that are `learning`.
    """
    if valid is not None:
        last = valid.sum(1) - 1
        steps = torch.minimum(torch.arange(x.shape[1], device=x.device), last[:, None])
        x = x.gather(1, steps[..., None].expand_as(x))
    _refuse_nonfinite(x, "inputs")
    _refuse_nonfinite(h[:, None], "h0")
    never_run = None if is_known(recurrence) else recurrence.renewed()
    refuse_step(recurrence, x[:, 0], h)
    trajectory = run_on(recurrence, x, h, valid)
    # Again where h is not zero, and once for all steps together, as they are differentiated.
    refuse_step(recurrence, x[:, -1], trajectory.previous[:, -1])
    refuse_trajectory(recurrence, never_run, trajectory, learning or {})
    return trajectory


def run_on(recurrence: Recurrence, x: Tensor, h: Tensor, valid: Tensor | None) -> Trajectory:
    """Run a recurrence that has been checked; at steps that are not valid the state stays.

    That all is finite is checked still.
    """
    _refuse_nonfinite(x, "inputs")
    with torch.no_grad():
        previous: list[Tensor] = []
        states: list[Tensor] = []
        step = recurrence.along(x)
        for t in range(x.shape[1]):
            versions = _version(x), _version(h)
            new = step(t, h)
            if versions != (_version(x), _version(h)):
                name = type(recurrence.module).__name__
                raise_changed(name, "x" if versions[1] == _version(h) else "h")
            if t > 0 and valid is not None:
                ended = ~valid[:, t, None]
                h = torch.where(ended, previous[-1], h)
                new = torch.where(ended, states[-1], new)
            previous.append(h)
            states.append(new)
            h = new
    trajectory = Trajectory(x, torch.stack(previous, 1), torch.stack(states, 1), valid)
    _refuse_nonfinite(trajectory.states, "the state")
    return trajectory


def _version(tensor: Tensor) -> int:
    """How often a tensor, or what it is a view of, has been changed, if torch counts it."""
    return 0 if tensor.is_inference() else tensor._version


def _refuse_nonfinite(values: Tensor, what: str) -> None:
    bad = ~values.isfinite().all(-1)
    if bad.any():
        time = int(bad.any(0).nonzero()[0, 0])
        trial = int(bad[:, time].nonzero()[0, 0])
        where = f"trial {trial}" if what == "h0" else f"trial {trial}, time step {time + 1}"
        raise ValueError(
            f"{what} is not finite, first in {where} (steps count from 1): mask padded steps, "
            "scale the inputs, or check the weights"
        )
