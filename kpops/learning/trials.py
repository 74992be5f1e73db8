"""The trials of a task as tensors to train on, checked."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
import xarray as xr
from torch import Tensor, nn

from kpops.arrays import as_tensor, numpy_dtype
from kpops.kinds import described
from kpops.labels import Space
from kpops.learning.losses import Objective, read_targets, read_weights
from kpops.models.network import Network


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
    """Refuse a model whose recurrent layers confuse trials and steps.

    With as many trials as steps, the shape of the outputs would not reveal it.
    """
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
