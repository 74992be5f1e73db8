"""What linearize takes in: a private copy of the model, and the states it runs through.

Everything that can be wrong with a model is refused here, before any work is done; with inputs, in
:mod:`kpops.read_inputs`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kpops.arrays import refuse_complex
from kpops.engines.base import Trajectory
from kpops.engines.memory import named_allocations
from kpops.labels import numpy_dtype
from kpops.models.recurrence import Recurrence, as_recurrence
from kpops.models.structure import recurrent_class
from kpops.models.whole import Parts
from kpops.models.whole import take_apart as _take_apart

_ROWS_TOGETHER = 4096
"""Steps that are taken at once to see whether they are those taken one by one."""


def take_apart(
    model: Any,
    inputs: Any = None,
    dtype: torch.dtype | None = None,
    *,
    readout: Any = None,
    h0: Any = None,
) -> Parts:
    """What is linearised of `model`: the one door through which every function takes models."""

    def private_copy(model: nn.Module) -> nn.Module:
        mine = _copy(model)
        _refuse_unreal(mine)
        mine = mine if dtype is None else mine.to(dtype)
        _refuse_mixed(mine)
        return mine

    if isinstance(model, nn.Module):
        _refuse_dropout(model)
    return _take_apart(model, private_copy, inputs=inputs, readout=readout, h0=h0)


def of_model(
    parts: Parts, dtype: torch.dtype | None, device: torch.device | str | None
) -> Recurrence:
    """Private copy of the recurrent part, in `dtype` and on `device` where given."""
    # The copy first: to read a parametrised weight of the user's may already change its buffers.
    model = parts.recurrent
    recurrence = as_recurrence(_copy(model) if isinstance(model, nn.Module) else model)
    _refuse_unreal(recurrence.module)
    _refuse_dropout(recurrence.module)
    if parts.time_major is not None:
        recurrence.time_major = parts.time_major
    if dtype is not None:
        numpy_dtype(dtype)  # refuses what is not float32 or float64
        recurrence = recurrence.to(dtype)
    if device is not None:
        recurrence = recurrence.to(device)
    _refuse_mixed(recurrence.module)
    return recurrence


def of_readout(readout: Any, hidden: Tensor, *, convert: bool) -> tuple[Any, dict[str, Tensor]]:
    """Private copy of a readout that takes `hidden`, and those of its parameters that learn.

    With `convert`, a readout of another dtype is converted; else it is refused.
    """
    mine, learning = _copy_readout(readout, hidden, convert)
    devices = [hidden.device] if hidden.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            outputs, again, first = mine(hidden), mine(hidden), mine(hidden[:1])
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            "readout cannot take hidden states of shape (row, hidden) = "
            f"{tuple(hidden.shape)}: {error}"
        ) from error
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(hidden):
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"readout returned {got}, expected (row, output) = ({len(hidden)}, ...)")
    if outputs.dtype != hidden.dtype:
        raise TypeError(f"readout returned {outputs.dtype} for {hidden.dtype}: keep the dtype")
    if _differ(again, outputs) or _differ(first, outputs[:1]):
        raise ValueError(
            "readout is random or mixes rows: it must map each hidden state alone; call "
            "readout.eval(), or leave batch statistics out"
        )
    return mine, learning


def read_out(
    recurrence: Recurrence,
    readout: Callable[[Tensor], Tensor],
    parameters: dict[str, Tensor],
    x: Tensor,
    h: Tensor,
) -> Tensor:
    """What a readout makes of what it sees of states (row, unit)."""
    hidden = recurrence.output(h)
    if isinstance(readout, nn.Module):
        return functional_call(readout, parameters, (hidden,))
    return readout(hidden)


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


def _copy_readout(readout: Any, like: Tensor, convert: bool) -> tuple[Any, dict[str, Tensor]]:
    if isinstance(readout, nn.Module):
        if recurrent := recurrent_class(readout):
            raise ValueError(
                f"readout has a {recurrent} in it, which has a state of its own: make it a layer "
                "of the model, or linearise it by itself"
            )
        _refuse_dropout(readout)
        _refuse_unreal(readout)
        dtypes = {p.dtype for p in readout.parameters()} - {like.dtype}
        if dtypes and not convert:
            raise TypeError(
                f"readout is {dtypes.pop()}, the model {like.dtype}: convert one of them, or pass "
                "dtype= to kpops.linearize"
            )
        mine = _copy(readout).to(like)
        learning = {n: p.detach() for n, p in mine.named_parameters() if p.requires_grad}
        return mine.requires_grad_(False), learning
    if callable(readout) and not isinstance(readout, type):
        return readout, {}
    is_class = isinstance(readout, type)
    what = f"the class {readout.__name__}" if is_class else f"a {type(readout).__name__}"
    raise TypeError(f"readout is {what}, expected an nn.Module or a callable")


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


def _refuse_mixed(model: nn.Module) -> None:
    dtypes = {n: p.dtype for n, p in model.named_parameters()}
    if len(set(dtypes.values())) > 1:
        raise TypeError(f"the parameters mix dtypes, {dtypes}: pass dtype= to choose one")


def _refuse_dropout(model: nn.Module) -> None:
    for name, module in model.named_modules():
        random = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        if random and module.training:
            raise ValueError(
                f"{name or type(module).__name__} is a {module} in training mode, so each run of "
                "the model is another: call model.eval() first"
            )


def _refuse_unreal(module: nn.Module) -> None:
    """Refuse complex tensors, and those without numbers."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    refuse_complex(tensors, type(module).__name__)
    for name, tensor in tensors:
        if tensor.is_meta:
            raise ValueError(
                f"{name} of {type(module).__name__} is on the device meta, where there are no "
                "numbers: make the module on another device, and load its weights"
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
        chosen = {wanted} if isinstance(wanted, str) else _names_of(wanted, every)
        reason = "parameters= is empty"
    unknown = sorted(chosen - set(every))
    if unknown:
        raise ValueError(f"no parameter {unknown} in the model: choose from {list(every)}")
    if not chosen:
        raise ValueError(f"{reason}: name those that learn by parameters=, from {list(every)}")
    if not any(every[n].numel() for n in chosen):
        raise ValueError(f"the parameters {sorted(chosen)} have no entries: choose others, too")
    first = next(iter(every.values()))
    numpy_dtype(first.dtype)
    return {n: p.detach() for n, p in every.items() if n in chosen}


def _names_of(wanted: Any, every: Iterable[str]) -> set[str]:
    names = list(wanted) if isinstance(wanted, Iterable) else [wanted]
    other = next((type(name).__name__ for name in names if not isinstance(name, str)), None)
    if other is not None:
        raise TypeError(
            f"parameters= holds {other} objects, expected names: choose from {list(every)}, or "
            "give a predicate on names"
        )
    return set(names)


def run(recurrence: Recurrence, x: Tensor, h0: Any, valid: Tensor | None) -> Trajectory:
    """Run the recurrence on `x` from the user's `h0`, and check what it does."""
    return run_from(recurrence, x, recurrence.initial_state(h0, len(x), x[:, 0]), valid)


@named_allocations(lambda: "a run of the model")
def run_from(recurrence: Recurrence, x: Tensor, h: Tensor, valid: Tensor | None) -> Trajectory:
    """Run the recurrence on `x` from states h (trial, unit), and check what it does.

    At steps that are not valid, input and state repeat the trial's last valid step.
    """
    if valid is not None:
        last = valid.sum(1) - 1
        steps = torch.minimum(torch.arange(x.shape[1], device=x.device), last[:, None])
        x = x.gather(1, steps[..., None].expand_as(x))
    _refuse_nonfinite(x, "inputs")
    _refuse_nonfinite(h[:, None], "h0")
    with torch.no_grad():
        _refuse_random_or_mixing(recurrence, x[:, 0], h)
    trajectory = run_on(recurrence, x, h, valid)
    rows = (x, trajectory.previous, trajectory.states)
    with torch.no_grad():
        # Again where h is not zero, and once for all steps together, as they are differentiated.
        _refuse_random_or_mixing(recurrence, x[:, -1], trajectory.previous[:, -1])
        pieces = zip(*(r.flatten(0, 1).split(_ROWS_TOGETHER) for r in rows), strict=True)
        alike = all(not _differ(recurrence(x, h), new) for x, h, new in pieces)
    if not alike:
        raise ValueError(
            f"{type(recurrence.module).__name__} gives another state when all steps are taken at "
            "once: it mixes trials, counts its calls or remembers something beside h; keep all "
            "memory in h"
        )
    return trajectory


@named_allocations(lambda: "a run of the model")
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
            new = step(t, h)
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


def _differ(a: Tensor, b: Tensor) -> bool:
    # Not to the bit: BLAS may sum in another order when memory lies otherwise.
    bound = 1e3 * torch.finfo(a.dtype).eps * (b.abs().max() + 1)
    return bool((a - b).abs().max() > bound)


def _refuse_random_or_mixing(recurrence: Recurrence, x: Tensor, h: Tensor) -> None:
    name = type(recurrence.module).__name__
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            given, buffers = h.clone(), [buffer.clone() for buffer in recurrence.buffers()]
            once, twice = recurrence(x, given), recurrence(x, h.clone())
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{name} cannot take a step with x_t of shape {tuple(x.shape)} and h of shape "
                f"{tuple(h.shape)}: {error}"
            ) from error
    if once.dtype != h.dtype:
        raise TypeError(
            f"{name} returned {once.dtype} for a state of {h.dtype}: a buffer or constant of "
            "another dtype? Pass dtype= to kpops.linearize, or convert it"
        )
    if once is given or not torch.equal(given, h):
        raise ValueError(
            f"{name} changes h in place or returns it as it is: return a new tensor, for example "
            "by h = h * a instead of h *= a"
        )
    if not all(map(torch.equal, recurrence.buffers(), buffers)):
        raise ValueError(
            f"a step of {name} changes its buffers (spectral or batch normalisation in training "
            "mode?): call model.eval()"
        )
    if _differ(twice, once):
        raise ValueError(
            f"two steps of {name} from the same state differ: it is random, or keeps a state of "
            "its own; call model.eval(), or pass noise as an input"
        )
    if len(x) > 1 and _differ(recurrence(x[:1], h[:1]), once[:1]):
        raise ValueError(
            f"{name} mixes trials: the first trial alone gives another state than among the "
            "others (batch normalisation in training mode?); call model.eval()"
        )
