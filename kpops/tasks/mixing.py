"""Several tasks in one set of trials, with a one-hot input that names the task."""

from __future__ import annotations

import json
import operator
from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from kpops.kinds import described
from kpops.scalars import generator as random_generator
from kpops.tasks.memory_pro import delay_anti, delay_pro, memory_anti, memory_pro
from kpops.tasks.trials import (
    NOISE,
    Condition,
    Rng,
    assemble,
    at_least,
    check_deviation,
    lengths_of,
    padded,
    seed_label,
)

FOUR_TASKS = (memory_pro, memory_anti, delay_pro, delay_anti)


def mix(
    tasks: Sequence[xr.Dataset],
    *,
    context: int | None = None,
    rules: Sequence[str] | None = None,
    noise: float = 0.0,
    rng: Rng = None,
) -> xr.Dataset:
    """Put the trials of several tasks into one Dataset, with rule inputs that name the task.

    Parameters
    ----------
    tasks : sequence of Dataset
        Tasks with the same channels, dtype and criterion; durations may differ.
    context : int, optional
        Number of steps added before each trial, as the epoch ``context``. The rule is then shown
        only there and must be remembered. By default there is no such epoch, and the rule is shown
        at every step.
    rules : sequence of str, optional
        Names of the tasks that have a rule channel, in this order; by default the given tasks, in
        order of appearance. Name more to train one network in stages.
    noise : float
        Standard deviation of the Gaussian noise on what is added: the rule channels, and all
        channels during the context.
    rng : int, Generator or None
        Source of that noise.

    Returns
    -------
    Dataset
        The trials of all tasks in turn. Shorter trials are padded: False in ``mask``, 0 in inputs
        and targets, epoch ``padding``. The rule channels ``rule <task>`` follow the other inputs.
        ``epoch`` is (time), or (trial, time) where trials differ. A condition that a task lacks is
        NaN, or "", in its trials.

    Raises
    ------
    ValueError
        If the tasks do not agree, a task has no rule, or an argument is out of range.

    Notes
    -----
    During the context, the channel ``fixation`` is 1 in inputs and targets, if there is one; all
    others are 0.

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
    check_deviation(noise)
    (extra,) = (0,) if context is None else at_least(1, context=context)
    task = np.concatenate([t.task.values for t in tasks])
    rules = list(dict.fromkeys(task)) if rules is None else list(rules)
    without = sorted(set(task) - set(rules))
    if without or len(set(rules)) < len(rules):
        raise ValueError(f"rules={rules}: name every task once, among them {without or 'no other'}")

    first = tasks[0]
    inputs, targets, mask = (
        padded([t[name].values for t in tasks], 0, extra) for name in ("inputs", "targets", "mask")
    )
    epochs = [np.broadcast_to(t.epoch.values, t.mask.shape) for t in tasks]
    epoch = padded(epochs, "padding", extra)
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
        configuration=configuration,
        criterion=(first.attrs["criterion"], first.attrs["tolerance"]),
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
    """Memory-Pro, Memory-Anti, Delay-Pro and Delay-Anti, each after a context that names it.

    Parameters
    ----------
    n_trials : int
        Number of trials of all four tasks together, a multiple of four.
    angles : {"random", "even"} or array_like, shape (n_trials / 4,)
        Stimulus angles of each task, as for :func:`memory_pro`; even or given ones are the same
        for each task.
    steps : sequence of four int
        Time steps of the context, the stimulus, the memory and the response.
    noise, rng, dtype
        As for :func:`memory_pro`, as are the errors raised.

    Returns
    -------
    Dataset
        As for :func:`memory_pro`, with 7 inputs: ``fixation``, ``cos``, ``sin`` and a ``rule`` for
        each task. The first quarter of the trials is Memory-Pro, the next Memory-Anti, then
        Delay-Pro and Delay-Anti; the coordinate ``task`` (trial) names them.

    Notes
    -----
    The rule is shown during the context and is 0 from the stimulus on, as in the KPFlow paper
    (arXiv 2507.06381). So the network must carry the task in its state, and the states of two
    tasks differ by what they hold, not by a constant input. In :func:`driscoll` the rule stays on.

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
        for task in FOUR_TASKS
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
    return mixed.assign_attrs(configuration=json.dumps(configuration, default=operator.index))


def _check_alike(tasks: Sequence[xr.Dataset]) -> None:
    if isinstance(tasks, xr.Dataset) or not tasks:
        raise ValueError("tasks: pass one Dataset or more, in a list")
    for i, task in enumerate(tasks):
        if not isinstance(task, xr.Dataset):
            raise TypeError(f"tasks[{i}] is {described(task)}: pass Datasets of kpops.tasks")
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


def _conditions(tasks: Sequence[xr.Dataset]) -> dict[str, Condition]:
    """Conditions of all trials, blank where a task lacks one."""
    coords = {
        str(name): coord
        for task in reversed(tasks)
        for name, coord in task.coords.items()
        if coord.dims == ("trial",) and name not in ("trial", "task")
    }
    conditions = {}
    for name, coord in coords.items():
        blank, dtype = ("", object) if coord.dtype == object else (np.nan, float)
        values = [
            t[name].values if name in t.coords else np.full(t.sizes["trial"], blank, dtype)
            for t in tasks
        ]
        label = coord.attrs.get("long_name", name), coord.attrs.get("units", "1")
        conditions[name] = (np.concatenate(values), *label)
    return conditions
