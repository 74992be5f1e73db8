"""A private copy of the model and its run through the inputs.

Unfit models are refused here, before any work is done; unfit inputs in :mod:`kpops.read_inputs`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kpops.arrays import numpy_dtype
from kpops.checks import (
    is_known,
    raise_changed,
    refuse_readout,
    refuse_step,
    refuse_trajectory,
    refuse_unfit,
    refuse_unready,
)
from kpops.distributed.agreement import Processes, fingerprint
from kpops.engines.memory import named_allocations
from kpops.engines.threads import enough_for
from kpops.engines.trajectory import Trajectory
from kpops.kinds import described
from kpops.labels import Coordinate, Space
from kpops.models.readout import RowReadout
from kpops.models.recurrence import Recurrence, as_recurrence
from kpops.models.structure import recurrent_class
from kpops.models.whole import Parts
from kpops.models.whole import take_apart as _take_apart
from kpops.read_inputs import trajectory_space, valid_steps


def take_apart(
    model: Any,
    inputs: Any = None,
    dtype: torch.dtype | None = None,
    *,
    readout: Any = None,
    h0: Any = None,
) -> Parts:
    """The parts of `model` to linearise. Every function takes models through this one."""

    def private_copy(model: nn.Module) -> nn.Module:
        mine = copied(model) if dtype is None else copied(model).to(dtype)
        refuse_mixed(mine)
        return mine

    if isinstance(model, nn.Module):
        refuse_unready(model)
    return _take_apart(model, private_copy, inputs=inputs, readout=readout, h0=h0)


def of_model(
    parts: Parts, dtype: torch.dtype | None, device: torch.device | str | None
) -> Recurrence:
    """Private copy of the recurrent part, in `dtype` and on `device` where given."""
    model = parts.recurrent
    if isinstance(model, nn.Module):
        refuse_unfit(model, "the model")
        # A copy first: reading a parametrised weight may already change its buffers.
        model = copied(model)
    recurrence = as_recurrence(model)
    if parts.time_major is not None:
        recurrence.time_major = parts.time_major
    recurrence = moved(recurrence, dtype, device)
    refuse_mixed(recurrence.module)
    return recurrence


def moved(module: Any, dtype: torch.dtype | None, device: torch.device | str | None) -> Any:
    """A module in `dtype` and on `device` where given."""
    if dtype is not None:
        numpy_dtype(dtype)  # refuses what is not float32 or float64
        module = module.to(dtype)
    if device is not None:
        try:
            module = module.to(device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"device={device!r}: pass 'cpu', or 'cuda' where it is ({error})"
            ) from error
    return module


def of_readout(
    parts: Parts, recurrence: Recurrence, states: Tensor, convert: bool
) -> tuple[Any, dict[str, Tensor]]:
    """Private copy of the readout of `states`, and its parameters that learn.

    With `convert`, a readout of another dtype is converted; else it is refused.
    """
    readout, learning = parts.readout, {}
    if readout is None:
        return None, {}
    if not callable(readout) or isinstance(readout, type):
        raise TypeError(f"readout is {described(readout)}, expected an nn.Module or a callable")
    refuse_unfit(readout, "the readout")
    if isinstance(readout, nn.Module):
        if recurrent := recurrent_class(readout):
            raise ValueError(
                f"readout contains a {recurrent}, which has a state of its own: make it a layer of "
                "the model, or linearise it separately"
            )
        dtypes = {p.dtype for p in readout.parameters()} - {states.dtype}
        if dtypes and not convert:
            raise TypeError(
                f"readout is {dtypes.pop()}, the model {states.dtype}: convert one of them, or "
                "pass dtype= to kpops.linearize"
            )
        readout = copied(readout).to(states)
        learning = {n: p.detach() for n, p in readout.named_parameters() if p.requires_grad}
        readout.requires_grad_(False)
    rows = RowReadout(recurrence, readout)
    refuse_readout(rows, states, learning, of_sequences=parts.of_sequences)
    return readout, learning


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


def copied(module: Any) -> Any:
    """A copy of a module that shares nothing with it."""
    # After a training step PyTorch's layers still hold the weights that parametrizations made in
    # it, which cannot be copied with their graph. The copy makes its own.
    made = [w for m in module.modules() for w in getattr(m, "_flat_weights", ())]
    memo = {id(w): w.detach() for w in made if isinstance(w, Tensor) and not w.is_leaf}
    try:
        return copy.deepcopy(module, memo)
    except RuntimeError as error:
        raise ValueError(
            f"{type(module).__name__} cannot be copied ({error}): keep only parameters and "
            "buffers as its tensors, for example with torch.nn.utils.parametrizations"
        ) from error


def refuse_mixed(model: nn.Module) -> None:
    """Refuse parameters of several dtypes."""
    dtypes = {n: p.dtype for n, p in model.named_parameters()}
    if len(set(dtypes.values())) > 1:
        raise TypeError(f"the parameters mix dtypes, {dtypes}: pass dtype= to choose one")


def learning_parameters(
    every: dict[str, nn.Parameter], wanted: Iterable[str] | Callable[[str], bool] | None
) -> dict[str, Tensor]:
    """Those of the parameters that learn, in their order."""
    if wanted is None:
        chosen = {n for n, p in every.items() if p.requires_grad}
        reason = "no parameter requires grad"
    elif callable(wanted):
        chosen = {n for n in every if wanted(n)}
        reason = "the predicate parameters= accepts no name"
    else:
        one = isinstance(wanted, str) or not isinstance(wanted, Iterable)
        names: list[Any] = [wanted] if one else list(wanted)
        other = next((type(name).__name__ for name in names if not isinstance(name, str)), None)
        if other is not None:
            raise TypeError(
                f"parameters= holds {other} objects, expected names: choose from {list(every)}, "
                "or give a predicate on names"
            )
        chosen, reason = set(names), "parameters= is empty"
    unknown = sorted(chosen - set(every))
    if unknown:
        raise ValueError(f"no parameter {unknown} in the model: choose from {list(every)}")
    if not chosen:
        raise ValueError(f"{reason}: name those that learn by parameters=, from {list(every)}")
    if not any(every[n].numel() for n in chosen):
        raise ValueError(f"the parameters {sorted(chosen)} have no entries: choose others, too")
    numpy_dtype(next(iter(every.values())).dtype)
    return {n: p.detach() for n, p in every.items() if n in chosen}


@torch.no_grad()
@named_allocations(lambda: "a run of the model")
def run_from(
    recurrence: Recurrence,
    x: Tensor,
    h: Tensor,
    valid: Tensor | None = None,
    learning: dict[str, Tensor] | None = None,
) -> Trajectory:
    """Run the recurrence on `x` from states h (trial, unit), and check its steps.

    At steps that are not valid, input and state repeat the trial's last valid step. Derivatives are
    checked by the state and by the `learning` parameters.
    """
    if valid is not None:
        last = valid.sum(1) - 1
        steps = torch.minimum(torch.arange(x.shape[1], device=x.device), last[:, None])
        x = x.gather(1, steps[..., None].expand_as(x))
    refuse_nonfinite(x, "inputs")
    refuse_nonfinite(h[:, None], "h0")
    never_run = None if is_known(recurrence) else recurrence.renewed()
    refuse_step(recurrence, x[:, 0], h)
    trajectory = run_on(recurrence, x, h, valid)
    # Again where h is not zero, and for all steps at once, as they are differentiated.
    refuse_step(recurrence, x[:, -1], trajectory.previous[:, -1])
    refuse_trajectory(recurrence, never_run, trajectory, learning or {})
    return trajectory


@named_allocations(lambda: "a run of the model")
def run_on(recurrence: Recurrence, x: Tensor, h: Tensor, valid: Tensor | None) -> Trajectory:
    """Run a recurrence that has been checked; at steps that are not valid the state stays."""
    refuse_nonfinite(x, "inputs")
    with torch.no_grad(), enough_for(recurrence.flops(len(x))):
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
    refuse_nonfinite(trajectory.states, "the state")
    return trajectory


def _version(tensor: Tensor) -> int:
    """How often a tensor, or its base, has been changed, if torch counts it."""
    return 0 if tensor.is_inference() else tensor._version


def refuse_nonfinite(values: Tensor, what: str) -> None:
    """Refuse values (trial, time, feature) that are not finite, by the first of them."""
    if values.sum().isfinite():  # which takes one pass; a sum of finite values may overflow
        return
    bad = ~values.isfinite().all(-1)
    if bad.any():
        time = int(bad.any(0).nonzero()[0, 0])
        trial = int(bad[:, time].nonzero()[0, 0])
        where = f"trial {trial}" if what == "h0" else f"trial {trial}, time step {time + 1}"
        raise ValueError(
            f"{what} is not finite, first in {where} (steps count from 1): mask padded steps, "
            "scale the inputs, or check the weights"
        )


def spread(
    processes: Processes,
    trajectory: Trajectory,
    coords: dict[str, Coordinate],
    recurrence: Recurrence,
    readout: Any,
    measure: str,
    learning: Iterable[str],
) -> tuple[Trajectory, Space]:
    """The trajectory and its space among other processes, which have all but the trials in common.

    Of one process alone, they are the whole.
    """
    shape = tuple(trajectory.states.shape)
    model = type(recurrence.module).__name__
    facts = {
        "dtype": str(trajectory.states.dtype),
        "steps": shape[1],
        "units": shape[2],
        "model": model if readout is None else f"{model} with the readout {type(readout).__name__}",
        "learning parameters": tuple(learning),
        "measure": measure,
        "precision": trajectory.precision,
        "labels": sorted(set(coords) - {"mask"}),
    }
    if processes.group is not None:  # last what tells no more than that something differs
        times = [c.values for _, c in sorted(coords.items()) if c.dims == ("time",)]
        facts["weights with the hash"] = fingerprint(recurrence.module, readout)
        facts["labels of time with the hash"] = fingerprint(*times)
    n_valid, device = trajectory.n_valid, trajectory.states.device
    parts, n_valid_in_all = processes.spread(shape[0], n_valid, facts, device)
    if n_valid_in_all < sum(parts.counts) * shape[1] and "mask" not in coords:
        coords = {**coords, "mask": valid_steps(np.ones(shape[:2], dtype=bool))}
    trajectory = replace(trajectory, parts=parts, valid_elsewhere=n_valid_in_all - n_valid)
    return trajectory, trajectory_space(recurrence, shape, coords, parts)
