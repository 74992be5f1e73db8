"""Train a model on a task, with checkpoints from which the training resumes exactly.

The minibatch of a step, and the random numbers that the model itself may draw in it (dropout),
depend on the seed and the step alone. So a checkpoint needs to hold no generator's state, and a
training that was interrupted ends where an uninterrupted one does.
"""

from __future__ import annotations

import json
import math
import operator
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from tqdm.auto import tqdm

from kpops.labels import as_tensor, numpy_dtype
from kpops.learning.checkpoints import newest_checkpoint, write_checkpoint
from kpops.learning.optimizers import Factory, Updates
from kpops.learning.resumption import (
    check_same_loss,
    check_same_training,
    choose_seed,
    describe_model,
    describe_trials,
)
from kpops.learning.schedules import Keep, Stop, schedule
from kpops.learning.trial_order import refuse_time_first
from kpops.models.initial import spectral_radius


class _Trials(NamedTuple):
    """A task on the model's device and in its dtype."""

    inputs: Tensor  # (trial, time, input)
    targets: Tensor  # (trial, time, output)
    mask: Tensor  # (trial, time)


def train(
    model: nn.Module,
    task: xr.Dataset,
    *,
    folder: str | os.PathLike[str],
    max_steps: int = 1000,
    batch_size: int = 500,
    learning_rate: float = 1e-3,
    optimizer: str | Factory = "adam",
    stop_loss: float | None = None,
    stop: Stop | None = None,
    checkpoint_every: int | Iterable[int] | Keep = 100,
    rng: int | np.random.Generator | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Train `model` in place on the mean squared error, and write checkpoints.

    When `folder` holds checkpoints of the same training, the newest readable one replaces the
    weights of `model` and the training continues from there; calling again with a larger
    `max_steps`, a smaller `stop_loss` or another `stop` trains further.

    Parameters
    ----------
    model : nn.Module
        Maps inputs (trial, time, input) to outputs (trial, time, output), as
        :class:`kpops.models.Network` does. Its parameters that require grad are changed; its
        training mode, gradients and the global random state are as before afterwards.
    task : Dataset
        ``inputs`` (trial, time, input), ``targets`` (trial, time, output) and ``mask`` (trial,
        time), as of :mod:`kpops.tasks`. They are converted to the model's dtype and device. Steps
        outside the mask do not count in the loss.
    folder : path
        Where the checkpoints are, one ``step_00000100.pt`` each; made when missing.
    max_steps : int
        Number of parameter updates to end at, counted from the untrained model.
    batch_size : int
        Trials per step, drawn at random without replacement.
    learning_rate : float
        Step size of the optimizer.
    optimizer : str or callable
        "sgd", "adam", or the name of another optimizer of ``torch.optim``, with its defaults. A
        callable ``optimizer(params, learning_rate)`` returns a ``torch.optim.Optimizer`` whose
        ``step`` needs no closure, or the pair of an optimizer and a scheduler of its learning rate
        (``torch.optim.lr_scheduler``), which moves once per step.
    stop_loss : float, optional
        Stop at the first step whose loss is at or below this.
    stop : callable, optional
        Stop at the first step where ``stop(step, losses)`` is true. `losses` is the list of the
        losses of the steps 0, ..., `step`, not to be changed. The result must depend on both
        alone for the training to resume exactly. See :func:`kpops.training.mean_below`.
    checkpoint_every : int, iterable of int, or callable
        Distance between the steps that are kept, these steps themselves, or ``keep(step) -> bool``
        such as :func:`kpops.training.logarithmic` returns. Step 0, the untrained model, and the
        last step are kept always.
    rng : int, Generator or None
        Seed, or a generator to draw one from. None takes the seed of the checkpoints in `folder`,
        or a fresh one.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Dataset
        ``loss`` (step), step = 0, 1, ..., last: the loss of the step's minibatch at the weights
        after that many updates, which are the weights of the checkpoint of that step.

        ``initial_spectral_radius`` (parameter) and ``spectral_radius`` (parameter), of every
        recurrent block at step 0 and at the last step (see
        :func:`kpops.models.spectral_radius`). Absent if the model has no recurrent weights that
        are named as PyTorch names them and made of square blocks.

    Raises
    ------
    ValueError
        If the task or an argument does not fit, the model takes trials for steps, or `folder` holds
        checkpoints of a training with another seed, batch size, optimizer, task or parameters.
    TypeError
        If the model returns no tensor, its dtype is not float32 or float64 throughout, or an
        argument has the wrong type.
    FloatingPointError
        If the loss is not finite. No checkpoint of that step is written, earlier ones stay.

    Notes
    -----
    The loss is the mean over the valid steps and the output channels of the batch. Resumption is
    exact to the bit on the same machine, where the model's operations are deterministic: on
    a CPU they are, cuDNN's recurrent kernels may differ in the last bits. The process may be killed
    at any moment: a checkpoint is written under another name, and renamed when it is complete.

    The scale at which :func:`kpops.models.initialize_recurrent` drew the recurrent weights is part
    of the configuration in the attributes of the result.

    Examples
    --------
    >>> import tempfile, torch, kpops
    >>> from kpops.training import checkpoints, train
    >>> task = kpops.tasks.memory_pro(40, rng=0)
    >>> network = kpops.models.Network(torch.nn.GRU(3, 8), torch.nn.Linear(8, 3))
    >>> folder = tempfile.mkdtemp()
    >>> history = train(network, task, folder=folder, max_steps=4, batch_size=10, rng=0)
    >>> history.loss.shape
    (5,)
    >>> checkpoints(folder).steps
    (0, 4)
    """
    trials = _trials(task, model)
    n_trials = len(trials.inputs)
    if not 1 <= batch_size <= n_trials:
        raise ValueError(
            f"batch_size={batch_size}, and the task has {n_trials} trials: "
            f"pass a batch_size between 1 and {n_trials}"
        )
    if max_steps < 0:
        raise ValueError(f"max_steps={max_steps}: pass the number of updates to end at, 0 or more")
    refuse_time_first(model, trials.inputs)
    keep = schedule(checkpoint_every)
    updates = Updates(model, optimizer, learning_rate)

    folder = Path(folder)
    newest = newest_checkpoint(folder)
    seed = choose_seed(rng, newest)
    configuration = {
        "seed": seed,
        "batch_size": operator.index(batch_size),
        "learning_rate": float(learning_rate),
        **updates.describe(),
        **describe_trials(trials._asdict()),
        **describe_model(model),
    }
    step, history = 0, list[float]()
    initial_radii = _spectral_radius(model).values.tolist()
    if newest is not None:
        check_same_training(newest, configuration, max_steps, folder)
        model.load_state_dict(newest["model"])
        updates.load_state(newest)
        step, history = newest["step"], newest["loss"]
        initial_radii = newest.get("initial_spectral_radius", [math.nan] * len(initial_radii))
    resumed_at = None if newest is None else step
    folder.mkdir(parents=True, exist_ok=True)

    bar = tqdm(total=max_steps, initial=step, disable=not progress, unit="step")
    with bar, _left_as_it_was(model) as generators:
        model.train()
        while True:
            batch, torch_seed = _draw(seed, step, n_trials, batch_size)
            for generator in generators:
                generator.manual_seed(torch_seed)
            # The forward pass may change buffers (running statistics). That is part of the next
            # update: the checkpoint of this step and the final model have them as they are now.
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            loss = _loss(model, *(part[batch] for part in trials))
            value = loss.item()
            if step == resumed_at:
                check_same_loss(value, history[step], step, folder)
            elif not math.isfinite(value):
                raise FloatingPointError(
                    f"the loss is {value} at step {step}: try a learning_rate below "
                    f"{learning_rate}; the checkpoints of earlier steps are in '{folder}'"
                )
            else:
                history.append(value)
            last = (
                step == max_steps
                or (stop_loss is not None and history[step] <= stop_loss)
                or (stop is not None and bool(stop(step, history)))
            )
            if (last or step == 0 or keep(step)) and step != resumed_at:
                content = {
                    "step": step,
                    "model": {k: buffers.get(k, v) for k, v in model.state_dict().items()},
                    **updates.state(),
                    "loss": history,
                    "initial_spectral_radius": initial_radii,
                    "seed": seed,
                    "configuration": configuration,
                }
                write_checkpoint(folder / f"step_{step:08d}.pt", content)
            if last:
                with torch.no_grad():
                    for name, buffer in model.named_buffers():
                        buffer.copy_(buffers[name])
                break
            updates.optimizer.zero_grad()
            loss.backward()
            updates.step()
            step += 1
            bar.update()
    return _dataset(model, history, initial_radii, configuration)


# One step


def _draw(seed: int, step: int, n_trials: int, batch_size: int) -> tuple[Tensor, int]:
    """Trials of the step's batch, and the step's seed for torch."""
    generator = np.random.default_rng((seed, step))
    batch = generator.choice(n_trials, batch_size, replace=False)
    return torch.from_numpy(batch), int(generator.integers(2**63))


def _loss(model: nn.Module, inputs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the valid steps and the output channels."""
    outputs = model(inputs)
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"model returns a {type(outputs).__name__}, expected the outputs (trial, time, output) "
            "alone: kpops.models.Network(recurrent, readout) does so"
        )
    if outputs.shape != targets.shape:
        raise ValueError(
            f"model returns the shape {tuple(outputs.shape)}, the targets of the batch have "
            f"{tuple(targets.shape)}: both must be (trial, time, output)"
        )
    error = torch.where(mask[..., None], outputs - targets, 0)
    return error.square().sum() / (mask.sum() * targets.shape[-1])


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[list[torch.Generator]]:
    """Restore modes, gradients and the generators that layers draw from, which it yields."""
    device = next(model.parameters()).device
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index])
    states = [generator.get_state() for generator in generators]
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield generators
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        for module, mode in modes:
            module.training = mode
        for parameter, gradient in gradients:
            parameter.grad = gradient


# Arguments


def _trials(task: xr.Dataset, model: nn.Module) -> _Trials:
    learning = [p for p in model.parameters() if p.requires_grad]
    if not learning:
        raise ValueError("model has no parameter that requires grad: unfreeze some")
    like = learning[0]
    numpy_dtype(like.dtype)  # raises if it is neither float32 nor float64
    mixed = sorted({str(p.dtype) for p in model.parameters()})
    if len(mixed) > 1:
        raise TypeError(f"model mixes the dtypes {mixed}: use model.to({like.dtype})")

    dims = {"inputs": ("input",), "targets": ("output",), "mask": ()}
    tensors = {}
    for name, feature in dims.items():
        expected = ("trial", "time", *feature)
        if name not in task or set(task[name].dims) != set(expected):
            found = task[name].dims if name in task else "missing"
            raise ValueError(f"task[{name!r}] is {found}, expected the dims {expected}")
        tensor = as_tensor(task[name].transpose(*expected).data, f"task[{name!r}]")
        if name == "mask" and not ((tensor == 0) | (tensor == 1)).all():
            raise ValueError("task['mask'] has values other than 0 and 1: pass booleans")
        dtype = torch.bool if name == "mask" else like.dtype
        tensors[name] = tensor.to(device=like.device, dtype=dtype)
    trials = _Trials(**tensors)

    empty = (~trials.mask.any(dim=1)).nonzero()
    if len(empty):
        raise ValueError(f"mask has no valid step in trial {int(empty[0])}: drop that trial")
    # Inputs must be finite in the padding too: a state that is not finite spoils every gradient.
    for name, wrong in [
        ("inputs", ~trials.inputs.isfinite()),
        ("targets", ~trials.targets.isfinite() & trials.mask[..., None]),
    ]:
        if wrong.any():
            trial, time, _ = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"{name} are not finite at trial {trial}, time {time} (positions from 0): "
                "set padded entries to 0"
            )
    return trials


# Result


def _spectral_radius(model: nn.Module) -> xr.DataArray:
    """Spectral radii of the recurrent blocks, none if the model keeps them under other names."""
    try:
        return spectral_radius(model)
    except ValueError:
        dtype = numpy_dtype(next(model.parameters()).dtype)
        return xr.DataArray(np.empty(0, dtype), dims="parameter")


def _dataset(
    model: nn.Module,
    history: list[float],
    initial_radii: list[float],
    configuration: dict[str, Any],
) -> xr.Dataset:
    """Losses of all steps, spectral radii of the first and of the last."""
    final = _spectral_radius(model)
    values = np.array(history, dtype=final.dtype)
    steps = np.arange(len(history))
    dataset = xr.Dataset(
        {
            "loss": (
                "step",
                values,
                {"long_name": "mean squared error of the minibatch", "units": "1"},
            )
        },
        coords={"step": ("step", steps, {"long_name": "training iteration", "units": "1"})},
        attrs={"configuration": json.dumps(configuration)},
    )
    if final.size:
        initial = final.copy(data=np.array(initial_radii, dtype=final.dtype))
        initial.attrs["long_name"] = "spectral radius of the recurrent block at step 0"
        dataset = dataset.assign(initial_spectral_radius=initial, spectral_radius=final)
    return dataset
