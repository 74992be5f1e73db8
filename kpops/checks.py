"""Steps and readouts must treat rows alone, without chance, memory or side effects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType, MethodType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from kpops.arrays import refuse_complex
from kpops.derivatives import Rows, refuse_unlike_training
from kpops.engines.trajectory import Trajectory
from kpops.models.foreign import brought_along
from kpops.models.readout import RowReadout
from kpops.models.recurrence import ModuleRecurrence, Recurrence, is_hooked
from kpops.models.wrapping import Wrapping

ROWS_TOGETHER = 4096
"""Steps that are taken at once and compared with those taken one by one."""

# The module, before it is run.


def refuse_unfit(model: Any, what: str) -> None:
    """Refuse a model or readout that is not ready, or whose copy would differ."""
    hooks = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    if any(getattr(torch_module, f"_global_{kind}") for kind in hooks):
        raise ValueError(
            "there are hooks on all modules (torch.nn.modules.module.register_module_...), which "
            "may change any step: remove them first, by the handles that registering returned"
        )
    functions: dict[str, Any] = {}
    if not isinstance(model, nn.Module):
        functions[what] = partial(model)
    else:
        refuse_unready(model)
        for name, parameter in model.named_parameters():
            if is_lazy(parameter):
                raise ValueError(
                    f"{name} of {what} has no shape yet: run the lazy module once on its inputs"
                )
            if parameter._backward_hooks:
                raise ValueError(
                    f"{name} of {what} has a hook, which may change its gradient: remove it, or "
                    "pass copy.deepcopy of the module, which leaves such hooks behind"
                )
        for name, part in model.named_modules():
            if isinstance(part, torch.jit.ScriptModule):
                raise ValueError(
                    f"{name or type(part).__name__} of {what} is scripted, so its weights cannot "
                    "be exchanged: pass the module it was made from"
                )
            prefix = f"{name}." if name else ""
            functions[f"{prefix}forward of {what}"] = type(part).forward
            own = {k: v for k, v in vars(part).items() if not hasattr(type(part), k)}
            functions |= {f"{prefix}{k} of {what}": v for k, v in own.items() if callable(v)}
            added = [f for kind in hooks for f in getattr(part, f"_{kind}").values()]
            functions |= {  # objects are copied with the model
                f"the hook {prefix}{f.__name__} of {what}": f
                for f in added
                if isinstance(f, FunctionType | MethodType)
            }
    for name, function in functions.items():
        found = brought_along(function)
        if found is not None:
            raise ValueError(
                f"{name} refers to {found}, whose later training it would follow and "
                "whose parameters it hides: make it part of an nn.Module"
            )


def refuse_unready(model: nn.Module) -> None:
    """Refuse dropout in training mode, complex tensors, and tensors without numbers."""
    for name, module in model.named_modules():
        random = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        if random and module.training:
            raise ValueError(
                f"{name or type(module).__name__} is a {module} in training mode, so every run of "
                "the model differs: call model.eval() first"
            )
    tensors = [*model.named_parameters(), *model.named_buffers()]
    refuse_complex(tensors, type(model).__name__)
    for name, tensor in tensors:
        if tensor.is_meta:
            raise ValueError(
                f"{name} of {type(model).__name__} is on the device meta, where there are no "
                "numbers: make the module on another device, and load its weights"
            )


def is_known(recurrence: Recurrence) -> bool:
    """Whether a step consists of unchanged code of this library and torch alone."""
    inner = recurrence
    while isinstance(inner, Wrapping):
        inner = inner.inner
    return not isinstance(inner, ModuleRecurrence) and all(map(is_plain, (recurrence, inner)))


def is_plain(module: Any) -> bool:
    """Whether all parts of a module are of this library or torch, and unchanged."""
    return isinstance(module, nn.Module) and not any(
        type(part).__module__.partition(".")[0] not in ("torch", "kpops")
        or parametrize.is_parametrized(part)
        or is_hooked(part)
        for part in module.modules()
    )


# A step.


def refuse_step(recurrence: Recurrence, x: Tensor, h: Tensor) -> None:
    """Refuse a step that is random, mixes trials, or changes its arguments."""
    name = type(recurrence.module).__name__
    with same_random_state(x):
        try:
            given, buffers = (x.clone(), h.clone()), [b.clone() for b in recurrence.buffers()]
            once, twice = recurrence(*given), recurrence(x.clone(), h.clone())
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{name} cannot take a step with x_t of shape {tuple(x.shape)} and h of shape "
                f"{tuple(h.shape)}: {error}"
            ) from error
    if once.is_complex():
        raise TypeError(
            f"{name} returned a complex state, {once.dtype}, for one of {h.dtype}, and kpops "
            "computes with real numbers: keep real and imaginary part as two real tensors in h"
        )
    if once.dtype != h.dtype:
        raise TypeError(
            f"{name} returned {once.dtype} for a state of {h.dtype}: a buffer or constant of "
            "another dtype? Pass dtype= to kpops.linearize, or convert it"
        )
    if once is given[1] or not torch.equal(given[1], h):
        raise_changed(name, "h")
    if not torch.equal(given[0], x):
        raise_changed(name, "x")
    if not all(map(torch.equal, recurrence.buffers(), buffers)):
        raise ValueError(
            f"a step of {name} changes its buffers (spectral or batch normalisation in training "
            "mode?): call model.eval()"
        )

    for key, weight in recurrence.module.named_parameters():
        if not weight.isfinite().all():
            raise ValueError(f"{key} is not finite: has the training diverged? Pass other weights")
    if differ(twice, once) and _differ_in_double(recurrence, x, h, slice(None)):
        raise ValueError(
            f"two steps of {name} from the same state differ: it is random, or keeps a state of "
            "its own; call model.eval(), or pass noise as an input"
        )
    mixed = len(x) > 1 and differ(recurrence(x[:1], h[:1]), recurrence(x, h)[:1])
    if mixed and _differ_in_double(recurrence, x, h, slice(1)):
        raise ValueError(
            f"{name} mixes trials: the first trial alone gives another state than among the "
            "others (batch normalisation in training mode?); call model.eval()"
        )


def raise_changed(name: str, what: str) -> NoReturn:
    """Refuse a step that changes its argument `what`."""
    raise ValueError(
        f"{name} changes {what} in place or returns it as it is: return a new tensor, for example "
        "by h = h * a instead of h *= a"
    )


def refuse_trajectory(
    recurrence: Recurrence,
    never_run: Recurrence | None,
    trajectory: Trajectory,
    parameters: dict[str, Tensor],
) -> None:
    """Refuse a step whose value differs when all are taken at once, or with a wrong derivative.

    `never_run` is a copy from before the first step, None for a model that :func:`is_known`;
    `parameters` are those that learn.
    """
    name = type(recurrence.module).__name__
    rows = (trajectory.inputs, trajectory.previous, trajectory.states)
    scale = trajectory.states.abs().max()
    pieces = zip(*(r.flatten(0, 1).split(ROWS_TOGETHER) for r in rows), strict=True)
    if any(differ(recurrence(x, h), new, scale) for x, h, new in pieces):
        raise ValueError(
            f"{name} gives another state when all steps are taken at once: it mixes trials, "
            "counts its calls or remembers something beside h; keep all memory in h"
        )
    if never_run is not None:
        x, h, _ = (r.flatten(0, 1) for r in rows)
        refuse_unlike_training(f"a step of {name}", recurrence, never_run, Rows(parameters, x, h))


# A readout.


def refuse_readout(
    readout: RowReadout, states: Tensor, parameters: dict[str, Tensor], *, of_sequences: bool
) -> None:
    """Refuse a readout that is random, mixes rows, counts dimensions or has a wrong derivative.

    It reads states (trial, time, unit); `parameters` are those that learn. With `of_sequences` it
    is used on (trial, time, hidden), as in a Network; else it may also take rows only.
    """
    never_run = readout.renewed()
    h = states.flatten(0, 1)
    hidden = readout.recurrence.output(h)
    try:
        with same_random_state(h):
            outputs, again = readout.step({}, h, h), readout.step({}, h, h)
            some = torch.tensor([0, len(h) // 2, len(h) - 1], device=h.device)
            alone = torch.cat([readout.step({}, row, row) for row in h[some].split(1)])
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            "readout cannot take hidden states of shape (row, hidden) = "
            f"{tuple(hidden.shape)}: {error}; give it {hidden.shape[1]} features, as of "
            f"nn.Linear({hidden.shape[1]}, n), and call its eval()"
        ) from error
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(hidden):
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"readout returned {got}, expected (row, output) = ({len(hidden)}, ...)")
    if outputs.dtype != hidden.dtype:
        raise TypeError(f"readout returned {outputs.dtype} for {hidden.dtype}: keep the dtype")
    scale = outputs.abs().max()
    if differ(again, outputs, scale) or differ(alone, outputs[some], scale):
        raise ValueError(
            "readout is random or mixes rows: it must map each hidden state alone; call "
            "readout.eval(), or leave batch statistics out"
        )
    try:
        whole = readout.module(hidden.unflatten(0, states.shape[:2]).clone())
    except (RuntimeError, TypeError, ValueError, IndexError):
        whole = None
    expected = outputs.unflatten(0, states.shape[:2])
    if whole is None or whole.shape != expected.shape:
        wrong = of_sequences
    else:
        wrong = differ(whole, expected, scale)
    if wrong:
        raise ValueError(
            "readout gives other outputs for (trial, time, hidden) than for rows (row, hidden): "
            "it counts dimensions from the left, as nn.Softmax(dim=1) and nn.PReLU(n) do; let it "
            "act on the last one, for example by dim=-1"
        )
    if not is_plain(readout.module):
        refuse_unlike_training("the readout", readout, never_run, Rows(parameters, h, h))


# What is equal.


@contextmanager
def same_random_state(like: Tensor) -> Iterator[None]:
    """Leave the generators of random numbers as they are."""
    devices = [like.device] if like.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


def differ(a: Tensor, b: Tensor, scale: Tensor | None = None) -> bool:
    """Whether a and b differ by more than rounding, relative to `scale` or the largest of b."""
    # Not to the bit: the order of sums in BLAS depends on where memory lies.
    bound = 1e3 * torch.finfo(a.dtype).eps * (b.abs().max() if scale is None else scale)
    return not bool((a - b).abs().max() <= bound)


def _differ_in_double(recurrence: Recurrence, x: Tensor, h: Tensor, rows: slice) -> bool:
    """Whether steps of some rows differ from those among all by more than cancellation explains."""
    every = [*recurrence.module.named_parameters(), *recurrence.module.named_buffers()]
    theta = {n: t.double() for n, t in every if t.is_floating_point()}
    try:
        x, h = x.double(), h.double()
        a, b = recurrence.step(theta, x[rows], h[rows]), recurrence.step(theta, x, h)[rows]
    except (RuntimeError, TypeError, ValueError):  # it computes in its own dtype only
        return True
    # A state may be the small difference of large numbers, whose last digits are rounding.
    largest = max(float(t.abs().max()) for t in (x, h, *theta.values()) if t.numel())
    bound = 1e-6 * b.abs().max() + 1e3 * torch.finfo(a.dtype).eps * largest
    return a.dtype != torch.float64 or not bool((a - b).abs().max() <= bound)
