"""Train a model on a task, with checkpoints from which the training resumes exactly.

The minibatch of a step, and the random numbers that the model itself may draw in it (dropout),
depend on the seed and the step alone. A checkpoint therefore stores no generator state, and an
interrupted training ends exactly where an uninterrupted one does.
"""

from __future__ import annotations

import itertools
import json
import math
import operator
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from tqdm.auto import tqdm

from kpops.arrays import numpy_dtype
from kpops.kinds import described
from kpops.learning import resumption
from kpops.learning.checkpoints import (
    FINISHED,
    newest_checkpoint,
    only_trainer,
    remove_unfinished,
    write_checkpoint,
)
from kpops.learning.losses import Loss, objective_of
from kpops.learning.options import (
    Factory,
    Keep,
    Stop,
    Updates,
    read_trials,
    refuse_time_first,
    schedule,
)
from kpops.learning.required import labelled
from kpops.models.initial import spectral_radius
from kpops.scalars import check_count, check_real


def train(
    model: nn.Module,
    task: xr.Dataset,
    *,
    folder: str | os.PathLike[str],
    loss: Loss = "mse",
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
    """Train `model` in place, and write checkpoints.

    If `folder` holds checkpoints of the same training, the weights of the newest readable one
    replace those of `model`, and the training continues from there. To train further, call again
    with a larger `max_steps`, a smaller `stop_loss` or another `stop`.

    Parameters
    ----------
    model : nn.Module
        Maps inputs (trial, time, input) to outputs (trial, time, output), as
        :class:`kpops.models.Network` does. The parameters that require grad are changed; the
        training mode, the gradients and the global random state are restored.
    task : Dataset
        ``inputs`` (trial, time, input), ``targets``, ``mask`` (trial, time), as of
        :mod:`kpops.tasks`, and optionally ``loss_mask`` (trial, time), the weights of the steps.
        They go to the model's device; inputs and floating targets are converted to its dtype.
        Steps outside the mask do not count in the loss. Targets are (trial, time, output), labels
        (trial, time), or what the loss takes, trial by trial.
    folder : path
        Folder of the checkpoints ``step_00000100.pt``; created if missing. At the end of the
        training it gets an empty file ``finished``, which a training that goes on removes.
    loss : {"mse", "cross_entropy"} or callable
        As for :func:`kpops.gradient_flow`, on a batch, with the ``loss_mask`` of the task.
    max_steps : int
        Number of parameter updates to end at, counted from the untrained model.
    batch_size : int
        Trials per step, drawn at random without replacement.
    learning_rate : float
        Step size of the optimizer.
    optimizer : str or callable
        Name of an optimizer of ``torch.optim``, such as "sgd", with its defaults; or a callable
        ``optimizer(params, learning_rate)`` that returns a ``torch.optim.Optimizer`` whose ``step``
        needs no closure, or the pair of one and a ``torch.optim.lr_scheduler``, which moves once
        per step.
    stop_loss : float, optional
        Stop at the first step whose loss is at or below this.
    stop : callable, optional
        Stop at the first step where ``stop(step, losses)`` is true, with the list of the losses of
        steps 0, ..., `step`, not to be changed. The result must depend on these two alone, or the
        training does not resume exactly. See :func:`kpops.training.mean_below`.
    checkpoint_every : int, iterable of int, or callable
        Distance between checkpoints, their steps, or ``keep(step) -> bool``, such as
        :func:`kpops.training.logarithmic` returns. Step 0 (the untrained model) and the last step
        are always kept.
    rng : int, Generator or None
        Seed, or a generator to draw one from. None takes the seed of the checkpoints in `folder`,
        or a fresh one.
    progress : bool
        Show a progress bar, with the loss and the remaining time.

    Returns
    -------
    Dataset
        ``loss`` (step), step = 0, 1, ..., last: the loss of the step's minibatch after that many
        updates, at the weights of that step's checkpoint. ``initial_spectral_radius`` (parameter)
        and ``spectral_radius`` (parameter) of every recurrent block, at step 0 and at the last step
        (:func:`kpops.models.spectral_radius`), if the recurrent weights have PyTorch's names and
        square blocks.

    Raises
    ------
    ValueError
        If the task or an argument does not fit, the model confuses trials and steps, or `folder`
        holds checkpoints of a training with another seed, batch size, loss, optimizer, task or
        model.
    TypeError
        If the model does not return a tensor, or is not float32 or float64 throughout, the task is
        complex, or an argument has the wrong type.
    RuntimeError
        If another process or thread trains in `folder`. A killed one blocks nobody.
    FloatingPointError
        If the loss is not finite. That step gets no checkpoint; earlier ones stay.

    Notes
    -----
    The loss of a batch is the mean over the steps that count. Resumption is exact to the bit on
    the same machine if the model's operations are deterministic: on a CPU they are, cuDNN's
    recurrent kernels may differ in the last bits. The process may be killed at any moment, since
    only a complete checkpoint gets its name. An error or interrupt before the first update leaves
    the model unchanged.

    Models are the same if their modules have the same classes, plain attributes (the dropout rate,
    the nonlinearity, numbers and functions of your own cell) and code, and if the loss at the
    newest checkpoint agrees within 10 %. Your own code is compared by its bytecode, which changes
    with the version of Python, and by the functions and constants that it names; code of installed
    packages by its name. Hooks, and tensors that are neither parameters nor buffers, are ignored.

    The attribute ``configuration`` of the result includes the scale at which
    :func:`kpops.models.initialize_recurrent` drew the recurrent weights.

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
    trials = read_trials(task, model)
    objective = objective_of(loss, task.get("loss_mask"))
    n_trials = len(trials.inputs)
    if isinstance(batch_size, int) and not 1 <= batch_size <= n_trials:
        raise ValueError(
            f"batch_size={batch_size}, and the task has {n_trials} trials: "
            f"pass a batch_size between 1 and {n_trials}"
        )
    check_count("batch_size", batch_size, 1, n_trials)
    check_count("max_steps", max_steps, 0)
    if stop_loss is not None:
        check_real("stop_loss", stop_loss)
    if stop is not None and not callable(stop):
        raise TypeError(f"stop is {described(stop)}: pass stop(step, losses), or stop_loss=0.1")
    if not isinstance(folder, str | os.PathLike) or Path(folder).is_file():
        raise TypeError(f"folder is {described(folder)}: pass the path of a folder, new or old")
    refuse_time_first(model, trials.inputs)
    keep = schedule(checkpoint_every, "checkpoint_every")
    updates = Updates(model, optimizer, learning_rate)
    fixed = {
        "batch_size": operator.index(batch_size),
        "learning_rate": float(learning_rate),
        **resumption.describe_loss(loss),
        **updates.describe(),
        **trials.describe(),
        **resumption.describe_model(model),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=max_steps, disable=not progress, unit="step")
    untrained = {name: value.clone() for name, value in model.state_dict().items()}
    with only_trainer(folder) as busy, bar, _restored(model, untrained) as generators:
        newest = newest_checkpoint(folder)
        seed = resumption.choose_seed(rng, newest)
        configuration = {"seed": seed, **fixed}
        start, history = 0, list[float]()
        initial_radii = _spectral_radius(model).values.tolist()
        if newest is not None:
            resumption.check_same_training(newest, configuration, max_steps, folder)
            model.load_state_dict(newest["model"])
            updates.load_state(newest)
            start, history = newest["step"], newest["loss"]
            initial_radii = newest.get("initial_spectral_radius", [math.nan] * len(initial_radii))
        if busy is None:
            remove_unfinished(folder)
        bar.initial = bar.n = start
        model.train()
        for step in itertools.count(start):
            positions, torch_seed = _draw(seed, step, n_trials, batch_size)
            for generator in generators:
                generator.manual_seed(torch_seed)
            # The forward pass may change buffers (running statistics). That belongs to the next
            # update: this step's checkpoint and the final model hold them as they are now.
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            batch = trials.of(positions)
            outputs = batch.outputs(model)
            if step == start:
                trials = trials.fit(objective, outputs.shape[-1])
                batch = trials.of(positions)
            value = objective(outputs, batch.targets, batch.weights)
            known = step < len(history)
            if known:
                resumption.check_same_loss(value.item(), history[step], step, folder)
            elif not value.isfinite():
                raise FloatingPointError(
                    f"the loss is {value.item()} at step {step}: try a learning_rate below "
                    f"{learning_rate}; the checkpoints of earlier steps are in '{folder}'"
                )
            else:
                history.append(value.item())
            bar.set_postfix_str(f"loss {history[step]:.4g}", refresh=False)
            last = (
                step == max_steps
                or (stop_loss is not None and history[step] <= stop_loss)
                or (stop is not None and bool(stop(step, history)))
            )
            if busy is not None and not (known and last):
                raise RuntimeError(f"folder '{folder}' {busy}: wait for it, or pass another folder")
            if (last or step == 0 or keep(step)) and not known:
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
                if busy is None and not (folder / FINISHED).exists():
                    (folder / FINISHED).touch()
                break
            if step == start:
                (folder / FINISHED).unlink(missing_ok=True)
            updates.optimizer.zero_grad()
            value.backward()
            untrained.clear()  # from here on an error keeps the trained weights
            updates.step()
            bar.update()
    final = _spectral_radius(model)
    losses = np.array(history, dtype=final.dtype)
    dataset = xr.Dataset(
        {"loss": labelled("step", losses, f"{objective.long_name} of the minibatch")},
        {"step": labelled("step", np.arange(len(history)), "training iteration")},
        {"configuration": json.dumps(configuration)},
    )
    if final.size:
        initial = final.copy(data=np.array(initial_radii, dtype=final.dtype))
        initial.attrs["long_name"] = "spectral radius of the recurrent block at step 0"
        dataset = dataset.assign(initial_spectral_radius=initial, spectral_radius=final)
    return dataset


def _draw(seed: int, step: int, n_trials: int, batch_size: int) -> tuple[Tensor, int]:
    """Trials of the step's batch, and the step's seed for torch."""
    generator = np.random.default_rng((seed, step))
    batch = generator.choice(n_trials, batch_size, replace=False)
    return torch.from_numpy(batch), int(generator.integers(2**63))


@contextmanager
def _restored(model: nn.Module, weights: dict[str, Tensor]) -> Iterator[list[torch.Generator]]:
    """Restore modes, gradients, generators (yielded) and, after an error, weights if there are."""
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
    except BaseException:
        if weights:
            model.load_state_dict(weights)
        raise
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        for module, mode in modes:
            module.training = mode
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _spectral_radius(model: nn.Module) -> xr.DataArray:
    """Spectral radii of the recurrent blocks; empty if the model has no weights so named."""
    try:
        return spectral_radius(model)
    except ValueError:
        dtype = numpy_dtype(next(model.parameters()).dtype)
        return xr.DataArray(np.empty(0, dtype), dims="parameter")
