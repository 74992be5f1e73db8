"""What a training is given: trials, an optimizer, when to stop, and when to keep a checkpoint."""

from __future__ import annotations

import copy
import hashlib
import inspect
import io
import json
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kpops.arrays import as_tensor, numpy_dtype, to_numpy
from kpops.kinds import described
from kpops.labels import Space
from kpops.learning.losses import Objective, read_targets, read_weights
from kpops.learning.resumption import attributes
from kpops.maturity import experimental
from kpops.models.network import Network
from kpops.scalars import check_real

Keep = Callable[[int], bool]
Stop = Callable[[int, Sequence[float]], bool]
Factory = Callable[[list[nn.Parameter], float], "Optimizer | tuple[Optimizer, LRScheduler]"]


class Trials(NamedTuple):
    """A task on the model's device and in its dtype; integer targets stay integers."""

    inputs: Tensor  # (trial, time, input)
    targets: Tensor  # first trial
    mask: Tensor  # (trial, time)
    weights: Tensor  # (trial, time), zero outside the mask

    def of(self, batch: Tensor) -> Trials:
        """Return those at the positions `batch`."""
        return Trials(*(part[batch] for part in self))

    def outputs(self, model: nn.Module) -> Tensor:
        """Outputs of the model (trial, time, output), zero outside the mask."""
        outputs = model(self.inputs)
        if not isinstance(outputs, Tensor):
            raise TypeError(
                f"model returns a {type(outputs).__name__}, expected the outputs (trial, time, "
                "output) alone: kpops.models.Network(recurrent, readout) does so"
            )
        expected = tuple(self.mask.shape)
        if outputs.ndim != 3 or tuple(outputs.shape[:2]) != expected:
            raise ValueError(
                f"model returns the shape {tuple(outputs.shape)}, expected (trial, time, output) "
                f"with (trial, time) = {expected}"
            )
        return outputs.masked_fill(~self.mask[..., None], 0)

    def fit(self, objective: Objective, n_outputs: int) -> Trials:
        """Bring the targets into the form that the loss compares with `n_outputs` outputs."""
        shape = (*self.mask.shape, n_outputs)
        targets = objective.fit(self.targets, shape, self.weights)
        _refuse_empty(objective.counted(targets, self.weights))
        return self._replace(targets=targets)

    def describe(self) -> dict[str, Any]:
        """Shapes and a fingerprint, without the weights if they equal the mask."""
        parts = self._asdict()
        if torch.equal(self.weights, self.mask.to(self.weights)):
            del parts["weights"]
        digest = hashlib.sha256()
        for part in parts.values():
            digest.update(to_numpy(part.contiguous()).tobytes())
        shapes = {f"task {name}": list(part.shape) for name, part in parts.items()}
        return {**shapes, "task fingerprint": digest.hexdigest()[:16]}


def read_trials(task: Any, model: nn.Module) -> Trials:
    """Read the tensors of a task, and refuse those that a model cannot be trained on."""
    like = _parameter_of(model).detach()
    if not isinstance(task, xr.Dataset):
        raise TypeError(
            f"task is {described(task)}, expected a Dataset with inputs, targets and mask, "
            "as of kpops.tasks"
        )
    inputs = _variable(task, "inputs", ("trial", "time", "input")).to(like)
    given = _variable(task, "mask", ("trial", "time"))
    if not ((given == 0) | (given == 1)).all():
        raise ValueError(
            "task['mask'] has values other than 0 and 1: pass booleans, and weights of the loss as "
            "task['loss_mask']"
        )
    mask = given.to(device=like.device, dtype=torch.bool)
    steps = Space(("trial", "time"), tuple(mask.shape))
    weights = read_weights(task.get("loss_mask"), steps, mask, like, name="task['loss_mask']")
    _refuse_empty(weights)
    if "targets" not in task or "trial" not in task["targets"].dims:
        found = task["targets"].dims if "targets" in task else "missing"
        raise ValueError(f"task['targets'] is {found}, expected the dims ('trial', 'time', ...)")
    # Inputs must be finite in the padding, too: one state that is not spoils every gradient.
    wrong = (~inputs.isfinite()).nonzero()
    if len(wrong):
        trial, time, _ = wrong[0].tolist()
        raise ValueError(
            f"inputs are not finite at trial {trial}, time {time} (positions from 0): set padded "
            "entries to 0"
        )
    return Trials(inputs, read_targets(task["targets"], steps, weights), mask, weights)


def _refuse_empty(weights: Tensor) -> None:
    empty = (~(weights > 0).any(1)).nonzero()
    if len(empty):
        raise ValueError(
            f"no step of trial {int(empty[0])} counts in the loss: drop that trial, or correct its "
            "mask, loss_mask or labels"
        )


def _parameter_of(model: nn.Module) -> Tensor:
    """A parameter that learns, with the dtype of all."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is {described(model)}, expected an nn.Module: pass the network to train"
        )
    learning = [p for p in model.parameters() if p.requires_grad]
    if not learning:
        raise ValueError("model has no parameter that requires grad: unfreeze some")
    like = learning[0]
    numpy_dtype(like.dtype)  # raises if it is neither float32 nor float64
    mixed = sorted({str(p.dtype) for p in model.parameters()})
    if len(mixed) > 1:
        raise TypeError(f"model mixes the dtypes {mixed}: use model.to({like.dtype})")
    return like


def _variable(task: xr.Dataset, name: str, dims: tuple[str, ...]) -> Tensor:
    if name not in task or set(task[name].dims) != set(dims):
        found = task[name].dims if name in task else "missing"
        raise ValueError(f"task[{name!r}] is {found}, expected the dims {dims}")
    return as_tensor(task[name].transpose(*dims).data, name)


def refuse_time_first(model: nn.Module, inputs: Tensor) -> None:
    """Refuse a model that takes trials for steps, which shapes may not reveal."""
    layers = [m for m in model.modules() if isinstance(m, nn.RNNBase) and not m.batch_first]
    transposes = type(model).forward is Network.forward
    if not layers or transposes or len(inputs) < 2:
        return
    private = copy.deepcopy(model).eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        parts = [private(x) for x in (inputs[:2], inputs[1:2], inputs[1:2])]
    both, alone, again = parts
    if not all(isinstance(y, Tensor) and y.ndim == 3 for y in parts) or not alone.equal(again):
        return  # it is random, or returns what the loss will refuse
    bound = 1e3 * torch.finfo(alone.dtype).eps * (alone.abs().max() + 1)
    if both[1:].shape != alone.shape or bool((both[1:] - alone).abs().max() > bound):
        raise ValueError(
            f"the outputs of {type(model).__name__} for one trial depend on the trial before it: "
            f"its {type(layers[0]).__name__} has batch_first=False and takes trials for steps; "
            "pass batch_first=True, or transpose inputs and outputs in its forward, as "
            "kpops.models.Network does"
        )


class Updates:
    """The optimizer of a model and its scheduler, if any; see :func:`kpops.training.train`."""

    def __init__(self, model: nn.Module, optimizer: str | Factory, learning_rate: float) -> None:
        check_real("learning_rate", learning_rate)
        if not (math.isfinite(learning_rate) and learning_rate > 0):
            raise ValueError(f"learning_rate={learning_rate}: pass a positive number")
        parameters = [p for p in model.parameters() if p.requires_grad]
        make = optimizer if callable(optimizer) else _by_name(optimizer)
        # A Python float: one of NumPy's in the state would make checkpoints unreadable.
        made = make(parameters, float(learning_rate))
        pair = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        self.optimizer: Optimizer = pair[0]
        self.parts: dict[str, Any] = {"optimizer": pair[0]}
        if pair[1] is not None:
            self.parts["scheduler"] = pair[1]
        self._check()

    def step(self) -> None:
        """Update the parameters by their gradients, then the learning rate."""
        for part in self.parts.values():
            part.step()

    def state(self) -> dict[str, Any]:
        """All that the next update depends on, besides parameters and gradients."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` returned, to the bit."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        # torch casts the state to the dtype of the parameters. Some optimizers keep float32 scalars
        # for float64 parameters, which would then round differently.
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for number, saved in state["optimizer"]["state"].items():
            mine = self.optimizer.state[parameters[number]]
            for name, value in saved.items():
                if isinstance(value, Tensor):
                    mine[name] = value.to(mine[name].device)

    def describe(self) -> dict[str, Any]:
        """Classes and options as plain Python, equal for equal updates."""
        # Through JSON, so that what is read from a checkpoint compares equal to the original.
        groups = json.loads(json.dumps(self.optimizer.state_dict()["param_groups"], default=str))
        found: dict[str, Any] = {"optimizer": type(self.optimizer).__name__}
        for number, group in enumerate(groups):
            found |= {f"optimizer group {number}: {key}": v for key, v in group.items()}
        if "scheduler" in self.parts:
            scheduler = self.parts["scheduler"]
            found["scheduler"] = type(scheduler).__name__
            found |= {f"scheduler: {key}": v for key, v in attributes(scheduler).items()}
        return found

    def _check(self) -> None:
        if not isinstance(self.optimizer, Optimizer):
            raise TypeError(
                f"optimizer returned a {type(self.optimizer).__name__}, expected a "
                "torch.optim.Optimizer, or the pair of one and its scheduler"
            )
        scheduler = self.parts.get("scheduler")
        if not isinstance(scheduler, LRScheduler | None):
            raise TypeError(
                f"optimizer returned a {type(scheduler).__name__} as the scheduler, expected "
                "a torch.optim.lr_scheduler.LRScheduler"
            )
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        for part in self.parts.values():
            kind: Any = type(part)
            # Of the class: a scheduler wraps the step of the instance, with another signature.
            _, *arguments = inspect.signature(kind.step).parameters.values()
            needs = [a.name for a in arguments if a.kind in named and a.default is a.empty]
            if needs:
                raise ValueError(
                    f"the step of {kind.__name__} needs {', '.join(needs)}, which train does "
                    "not have: choose one whose step needs nothing"
                )
        file = io.BytesIO()
        try:
            torch.save(self.state(), file)
            file.seek(0)
            torch.load(file, weights_only=True)
        except Exception as error:  # the user's objects may raise anything
            raise TypeError(
                "the state of the optimizer or its scheduler cannot be read back from a "
                "checkpoint: give them Python numbers instead of NumPy's, and no objects "
                f"({error})"
            ) from error


def _by_name(name: str) -> Callable[..., Optimizer]:
    """The optimizer of torch.optim with that name, in upper or lower case."""
    known: dict[str, Callable[..., Optimizer]] = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, Optimizer) and value is not Optimizer
    }
    if not isinstance(name, str) or name.lower() not in known:
        raise ValueError(
            f"optimizer is {described(name)}: use one of {sorted(known)}, or a callable such as "
            "lambda params, lr: torch.optim.SGD(params, lr=lr, momentum=0.9)"
        )
    return lambda parameters, learning_rate: known[name.lower()](parameters, lr=learning_rate)


@experimental
def logarithmic(per_decade: int = 10) -> Keep:
    """Checkpoint schedule with a constant number of steps per decade.

    Parameters
    ----------
    per_decade : int
        Checkpoints between one power of ten and the next.

    Returns
    -------
    callable
        ``keep(step) -> bool`` for ``checkpoint_every`` of :func:`kpops.training.train`: the steps
        nearest to 10^(k/m), k = 0, 1, 2, ..., with m per decade, wherever the training ends.

    Raises
    ------
    ValueError
        If `per_decade` is below 1.

    Examples
    --------
    >>> from kpops.training import logarithmic
    >>> keep = logarithmic(4)
    >>> [step for step in range(1, 1001) if keep(step)]
    [1, 2, 3, 6, 10, 18, 32, 56, 100, 178, 316, 562, 1000]
    """
    if per_decade < 1:
        raise ValueError(f"per_decade={per_decade}: pass 1 or more steps per decade")

    def keep(step: int) -> bool:
        # If any 10^(k/m) rounds to the step, one of its two neighbours does.
        exponent = per_decade * math.log10(step) if step > 0 else 0.0
        neighbours = (math.floor(exponent), math.ceil(exponent))
        return any(round(10 ** (k / per_decade)) == step for k in neighbours)

    return keep


@experimental
def mean_below(loss: float, window: int = 100) -> Stop:
    """Stop criterion on the running mean of the loss, which one lucky minibatch cannot meet.

    Parameters
    ----------
    loss : float
        Stop when the mean is at or below this.
    window : int
        Number of latest steps in the mean; fewer steps do not meet the criterion.

    Returns
    -------
    callable
        For ``stop`` of :func:`kpops.training.train`: ``stop(step, losses) -> bool``.

    Raises
    ------
    ValueError
        If `window` is below 1 or `loss` is not finite.

    Examples
    --------
    >>> from kpops.training import mean_below
    >>> stop = mean_below(0.5, window=2)
    >>> stop(0, [0.1]), stop(1, [0.1, 1.0]), stop(2, [0.1, 1.0, 0.0])
    (False, False, True)
    """
    if not math.isfinite(loss):
        raise ValueError(f"loss={loss}: pass a finite loss")
    if window < 1:
        raise ValueError(f"window={window}: pass a window of 1 step or more")

    def stop(step: int, losses: Sequence[float]) -> bool:
        return len(losses) >= window and float(np.mean(losses[-window:])) <= loss

    return stop


def schedule(steps: int | Iterable[int] | Keep, name: str) -> Keep:
    """Turn the argument of that name into ``keep(step)``."""
    if callable(steps):
        return steps
    try:
        if isinstance(steps, Iterable):
            return {operator.index(step) for step in steps}.__contains__
        every = operator.index(steps)
    except TypeError as error:
        raise TypeError(
            f"{name}={steps!r}: pass a distance between steps, the steps, or "
            "a callable keep(step) -> bool such as kpops.training.logarithmic()"
        ) from error
    if every < 1:
        raise ValueError(f"{name}={every}: pass 1 or more, or the steps")
    return lambda step: step % every == 0
