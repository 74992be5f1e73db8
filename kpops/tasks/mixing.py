"""Several tasks in one set of trials, with a one-hot input that tells which is asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from kpops.kinds import described
from kpops.scalars import generator as random_generator
from kpops.tasks.memory_pro import delay_anti, delay_pro, memory_anti, memory_pro
from kpops.tasks.trials import (
    ANGLE_TOLERANCE,
    NOISE,
    Condition,
    Rng,
    assemble,
    at_least,
    attributes,
    lengths_of,
    seed_label,
)

FOUR_TASKS = {
    "memory_pro": memory_pro,
    "memory_anti": memory_anti,
    "delay_pro": delay_pro,
    "delay_anti": delay_anti,
}


def mix(
    tasks: Sequence[xr.Dataset],
    *,
    context: int | None = None,
    rules: Sequence[str] | None = None,
    noise: float = 0.0,
    rng: Rng = None,
) -> xr.Dataset:
    """Put the trials of several tasks into one Dataset, with a rule input that tells the task.

    Parameters
    ----------
    tasks : sequence of Dataset
        Tasks with the same channels, dtype and criterion; durations may differ.
    context : int, optional
        Number of steps that are put before each trial as the epoch ``context``. The rule is then
        shown there and nowhere else, and must be remembered. By default there is no such epoch,
        and the rule is shown at every step of the trial.
    rules : sequence of str, optional
        Names of tasks that have a rule channel, in this order. The default are the tasks that
        occur, in the order in which they do. Give more to train one network in stages.
    noise : float
        Standard deviation of the Gaussian noise on what is added: the rule channels, and all
        channels during the context.
    rng : int, Generator or None
        Source of that noise.

    Returns
    -------
    Dataset
        The trials of the tasks one after another, those of shorter trials padded: False in
        ``mask``, 0 in inputs and targets, epoch ``padding``. The rule channels ``rule <task>``
        follow the other inputs. ``epoch`` is (time), or (trial, time) where trials differ in it.
        Conditions that only some tasks have are NaN, or "", in the trials of the others.

    Raises
    ------
    ValueError
        If the tasks do not go together, a task has no rule, or an argument is out of range.

    Notes
    -----
    During the context the channel ``fixation``, where there is one, is 1 in inputs and targets;
    all others are 0.

    Examples
    --------
    >>> from kpops.tasks import delay_pro, memory_pro, mix
    >>> both = mix([memory_pro(2, rng=0), delay_pro(3, rng=1)], context=10)
    >>> both.inputs.shape, both.input.values.tolist()[3:]
    ((5, 100, 5), ['rule memory_pro', 'rule delay_pro'])
    >>> both.task.values.tolist()
    ['memory_pro', 'memory_pro', 'delay_pro', 'delay_pro', 'delay_pro']
    """
    _check_alike(tasks)
    if not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise={noise}: pass a finite standard deviation, 0 for none")
    (extra,) = (0,) if context is None else at_least(1, context=context)
    task = np.concatenate([t.task.values for t in tasks])
    rules = list(dict.fromkeys(task)) if rules is None else list(rules)
    without = sorted(set(task) - set(rules))
    if without or len(set(rules)) < len(rules):
        raise ValueError(f"rules={rules}: name every task once, among them {without or 'no other'}")

    first = tasks[0]
    n_steps = extra + max(t.sizes["time"] for t in tasks)
    inputs = np.concatenate([_padded(t.inputs.values, extra, n_steps) for t in tasks])
    targets = np.concatenate([_padded(t.targets.values, extra, n_steps) for t in tasks])
    mask = np.concatenate([_padded(t.mask.values, extra, n_steps) for t in tasks])
    epoch = np.concatenate([_padded(_epochs(t), extra, n_steps, "padding") for t in tasks])
    mask[:, :extra], epoch[:, :extra] = True, "context"
    for values, channel in ((inputs, first.input), (targets, first.output)):
        values[:, :extra, channel.values == "fixation"] = 1

    generator = random_generator(rng)
    rule = task[:, None] == np.array(rules, dtype=object)
    shown = mask if context is None else mask & (epoch == "context")
    added = np.where(shown[..., None], rule[:, None, :], 0.0)
    added += noise * generator.standard_normal(added.shape)
    inputs[:, :extra] += noise * generator.standard_normal(inputs[:, :extra].shape)
    added = np.where(mask[..., None], added, 0).astype(inputs.dtype)

    configuration = {
        "task": "mix",
        "context": context,
        "rules": rules,
        "noise": float(noise),
        "rng": seed_label(rng),
        "tasks": [json.loads(t.attrs.get("configuration", "null")) for t in tasks],
    }
    return assemble(
        np.concatenate([inputs, added], axis=-1),
        targets,
        mask,
        channels=([*first.input.values, *(f"rule {r}" for r in rules)], first.output.values),
        epoch=epoch,
        task=task,
        conditions=_conditions(tasks),
        attrs=attributes(configuration, first.attrs["criterion"], first.attrs["tolerance"]),
    )


def four_task_mix(
    n_trials: int,
    *,
    angles: str | ArrayLike = "random",
    noise: float = NOISE,
    steps: Sequence[int] = (30, 30, 30, 30),
    rng: Rng = None,
    dtype: str = "float32",
) -> xr.Dataset:
    """Memory-Pro, Memory-Anti, Delay-Pro and Delay-Anti after a context that tells which.

    Parameters
    ----------
    n_trials : int
        Number of trials of all four tasks together, a multiple of four.
    angles : {"random", "even"} or array_like, shape (n_trials / 4,)
        Stimulus angles of each task: uniform on the circle, evenly spaced from 0 (the evaluation
        set), or given; the latter two are the same for each task.
    noise : float
        Standard deviation of the Gaussian noise on every input; evaluate with ``noise=0``.
    steps : sequence of four int
        Time steps of the context, the stimulus, the memory and the response.
    rng : int, Generator or None
        Source of the angles and the noise.
    dtype : {"float32", "float64"}
        Of inputs and targets.

    Returns
    -------
    Dataset
        As of :func:`memory_pro`, with 7 inputs: ``fixation``, ``cos``, ``sin`` and a ``rule`` for
        each task. The first quarter of the trials is Memory-Pro, the next Memory-Anti, then
        Delay-Pro and Delay-Anti, as the coordinate ``task`` (trial) says.

    Raises
    ------
    ValueError
        If an argument is out of range, or the given angles have the wrong shape.

    Notes
    -----
    The rule is shown during the context and is 0 from the stimulus on, as in the KPFlow paper
    (arXiv 2507.06381): the network has to carry the task in its state, and the states of a task
    differ from those of another by what they hold and not by a constant input. In the sets of
    :func:`driscoll` the rule stays on.

    Examples
    --------
    >>> from kpops.tasks import four_task_mix
    >>> task = four_task_mix(20, angles="even", noise=0)
    >>> task.inputs.shape
    (20, 120, 7)
    >>> task.inputs.isel(trial=7).sel(time=30).values  # context of a Memory-Anti trial
    array([1., 0., 0., 0., 1., 0., 0.], dtype=float32)
    """
    if n_trials < 4 or n_trials % 4:
        raise ValueError(f"n_trials={n_trials}: pass a multiple of 4, for as many of each task")
    lengths = lengths_of(steps, ("context", "stimulus", "memory", "response"))
    generator = random_generator(rng)
    parts = [
        task(
            n_trials // 4, angles=angles, noise=noise, steps=lengths[1:], rng=generator, dtype=dtype
        )
        for task in FOUR_TASKS.values()
    ]
    mixed = mix(parts, context=lengths[0], noise=noise, rng=generator)
    configuration = {
        "task": "four_task_mix",
        "n_trials": n_trials,
        "angles": angles if isinstance(angles, str) else "given",
        "noise": float(noise),
        "steps": lengths,
        "rng": seed_label(rng),
        "dtype": np.dtype(dtype).name,
    }
    return mixed.assign_attrs(attributes(configuration, "angle", ANGLE_TOLERANCE))


def _check_alike(tasks: Sequence[xr.Dataset]) -> None:
    if isinstance(tasks, xr.Dataset) or not tasks:
        raise ValueError("tasks: pass one Dataset or more, in a list")
    for i, task in enumerate(tasks):
        if not isinstance(task, xr.Dataset):
            raise TypeError(f"tasks[{i}] is {described(task)}: pass Datasets, as of kpops.tasks")
        for what in ("criterion", "tolerance"):
            if what not in task.attrs:
                raise ValueError(f"tasks[{i}] has no attrs[{what!r}]: see kpops.tasks.accuracy")
        for what, theirs, ours in [
            ("inputs", task.input.values.tolist(), tasks[0].input.values.tolist()),
            ("outputs", task.output.values.tolist(), tasks[0].output.values.tolist()),
            ("dtype", task.inputs.dtype, tasks[0].inputs.dtype),
            ("criterion", task.attrs["criterion"], tasks[0].attrs["criterion"]),
            ("tolerance", task.attrs["tolerance"], tasks[0].attrs["tolerance"]),
        ]:
            if theirs != ours:
                raise ValueError(
                    f"tasks[{i}] has the {what} {theirs}, tasks[0] has {ours}: mix tasks that agree"
                )


def _epochs(task: xr.Dataset) -> np.ndarray:
    """Epochs (trial, time) of a task."""
    return np.broadcast_to(task.epoch.values, task.mask.shape)


def _padded(values: np.ndarray, before: int, n_steps: int, fill: str | int = 0) -> np.ndarray:
    """Copy of `values` (trial, time, ...) with filled steps before and after."""
    shape = (len(values), n_steps, *values.shape[2:])
    padded = np.full(shape, fill, dtype=values.dtype)
    padded[:, before : before + values.shape[1]] = values
    return padded


def _conditions(tasks: Sequence[xr.Dataset]) -> dict[str, Condition]:
    """Conditions of all trials, with a blank where a task does not have one."""
    coords = {
        str(name): coord
        for task in reversed(tasks)
        for name, coord in task.coords.items()
        if coord.dims == ("trial",) and name not in ("trial", "task")
    }
    return {name: (_column(name, c, tasks), *_named(name, c)) for name, c in coords.items()}


def _column(name: str, like: xr.DataArray, tasks: Sequence[xr.Dataset]) -> np.ndarray:
    blank, dtype = ("", object) if like.dtype == object else (np.nan, float)
    return np.concatenate(
        [
            t[name].values if name in t.coords else np.full(t.sizes["trial"], blank, dtype)
            for t in tasks
        ]
    )


def _named(name: str, coord: xr.DataArray) -> tuple[str, str]:
    return coord.attrs.get("long_name", name), coord.attrs.get("units", "1")
