"""The 15 tasks of Driscoll, Shenoy and Sussillo (2024), after Yang et al. (2019)."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from kpops.scalars import generator as random_generator
from kpops.tasks.driscoll_plans import Plan, category, integration, match, pro
from kpops.tasks.mixing import mix
from kpops.tasks.trials import ANGLE_TOLERANCE, NOISE, Recipe, Rng, seed_label

Duration = int | Sequence[int]

INPUTS = ("fixation", "cos 1", "sin 1", "cos 2", "sin 2")
OUTPUTS = ("fixation", "cos", "sin")

# Epochs of each family: range of durations in training, and duration in evaluation, in steps of
# 20 ms.
_DELAY = {"context": ((15, 35), 25), "stimulus1": ((10, 75), 50), "response": ((15, 35), 25)}
_MEMORY = {
    "context": ((15, 35), 25),
    "stimulus1": ((10, 80), 25),
    "memory1": ((10, 80), 50),
    "response": ((15, 35), 25),
}
_REACT = {"context": ((25, 125), 100), "response": ((15, 85), 25)}
_INTEGRATION = {
    "context": ((10, 30), 25),
    "stimulus1": ((10, 80), 25),
    "memory1": ((10, 80), 50),
    "stimulus2": ((10, 80), 25),
    "memory2": ((5, 15), 25),
    "response": ((15, 35), 25),
}
_MATCH = {
    "context": ((10, 30), 25),
    "stimulus1": ((10, 80), 25),
    "memory1": ((10, 80), 60),
    "response": ((15, 35), 25),
}


class _Task(NamedTuple):
    plan: Callable[[Recipe, str | ArrayLike], Plan]
    epochs: Mapping[str, tuple[Duration, Duration]]
    fixation_stays: bool = False  # the fixation input, during the response


_ON, _BRIEF, _LATE = ("stimulus1", "response"), ("stimulus1",), ("response",)
_TASKS = {
    "DelayPro": _Task(partial(pro, shown=_ON), _DELAY),
    "DelayAnti": _Task(partial(pro, shown=_ON, anti=True), _DELAY),
    "MemoryPro": _Task(partial(pro, shown=_BRIEF), _MEMORY),
    "MemoryAnti": _Task(partial(pro, shown=_BRIEF, anti=True), _MEMORY),
    "ReactPro": _Task(partial(pro, shown=_LATE), _REACT, True),
    "ReactAnti": _Task(partial(pro, shown=_LATE, anti=True), _REACT, True),
    "IntegrationModality1": _Task(partial(integration, shown=[0], attended=[0]), _INTEGRATION),
    "IntegrationModality2": _Task(partial(integration, shown=[1], attended=[1]), _INTEGRATION),
    "ContextIntModality1": _Task(partial(integration, shown=[0, 1], attended=[0]), _INTEGRATION),
    "ContextIntModality2": _Task(partial(integration, shown=[0, 1], attended=[1]), _INTEGRATION),
    "IntegrationMultimodal": _Task(
        partial(integration, shown=[0, 1], attended=[0, 1]), _INTEGRATION
    ),
    "ReactMatch2Sample": _Task(partial(match, go_if=True), _MATCH, True),
    "ReactNonMatch2Sample": _Task(partial(match, go_if=False), _MATCH, True),
    "ReactCategoryPro": _Task(partial(category, go_if=True), _MATCH, True),
    "ReactCategoryAnti": _Task(partial(category, go_if=False), _MATCH, True),
}

#: Names of the 15 tasks.
DRISCOLL_TASKS = tuple(_TASKS)


def driscoll(
    n_trials: int,
    *,
    tasks: str | Sequence[str] = DRISCOLL_TASKS,
    angles: str | ArrayLike = "random",
    noise: float = NOISE,
    steps: Mapping[str, Duration] | None = None,
    rules: Sequence[str] = DRISCOLL_TASKS,
    rng: Rng = None,
    dtype: str = "float32",
) -> xr.Dataset:
    """Trials of one or more of the 15 tasks of Driscoll, Shenoy and Sussillo (2024).

    Parameters
    ----------
    n_trials : int
        Number of trials of all `tasks` together, a multiple of their number.
    tasks : str or sequence of str
        Names from the table below. Other names raise a ValueError, as do arguments out of range.
    angles : {"random", "even"} or array_like, shape (n_trials / number of tasks,)
        Directions of the first stimulus of each task, as for :func:`memory_pro`. In the evaluation
        set ("even") only the noise is drawn: see Notes.
    steps : mapping, optional
        Durations of epochs in time steps, by name: a number, or a range (low, high) from which
        each trial draws uniformly, both ends included. Other epochs keep the durations of the
        table: its number in evaluation sets, its range elsewhere.
    rules : sequence of str
        Tasks that have a rule channel; all 15 by default, so that sets of different tasks fit
        the same network.
    rng : int, Generator or None
        Source of the conditions, the durations and the noise, in this order for each task.
    noise, dtype
        As for :func:`memory_pro`.

    Returns
    -------
    Dataset
        As for :func:`mix`, tasks in the order of `tasks`. Inputs are ``fixation``, ``cos 1`` and
        ``sin 1`` of modality 1, ``cos 2`` and ``sin 2`` of modality 2, and the rules, of which the
        task's own is 1 throughout; outputs are ``fixation``, ``cos`` and ``sin``. Conditions
        (trial): ``angle`` and ``angle2``, the directions of the stimuli in radians; ``modality``
        and ``modality2`` that show them, 1 or 2; or ``coherence1`` and ``coherence2``, half the
        difference of the strengths of the first and the second stimulus in modality 1 and 2;
        ``response``, the direction of the response in radians, NaN where fixation must be kept.

    Notes
    -----
    Epochs, with their durations in steps of 20 ms:

    ===================  =============  =============  =============  ============  =============
    tasks                DelayPro/Anti  MemoryPro/     ReactPro/Anti  integration   match and
                                        Anti                          (5 tasks)     category (4)
    ===================  =============  =============  =============  ============  =============
    ``context``          25, 15-35      25, 15-35      100, 25-125    25, 10-30     25, 10-30
    ``stimulus1``        50, 10-75      25, 10-80                     25, 10-80     25, 10-80
    ``memory1``                         50, 10-80                     50, 10-80     60, 10-80
    ``stimulus2``                                                     25, 10-80
    ``memory2``                                                       25, 5-15
    ``response``         25, 15-35      25, 15-35      25, 15-85      25, 15-35     25, 15-35
    ===================  =============  =============  =============  ============  =============

    The fixation input is 1 until the response; in React tasks (also match and category) it stays
    1, and a stimulus at the start of the response epoch calls for the response. The fixation
    target is 1 until the response, then 0 with (cos, sin) of the direction of the response.

    - ``DelayPro``, ``MemoryPro``, ``ReactPro``: respond in the direction of the stimulus, which
      stays on, is gone, or has just come. ``DelayAnti``, ``MemoryAnti``, ``ReactAnti``: respond in
      the opposite direction. The stimulus has strength 1 in one of the two modalities.
    - ``IntegrationModality1``, ``IntegrationModality2``: two stimuli, at least 90 degrees apart,
      come in turn in that modality; respond in the direction of the stronger one.
      Strengths are m + c and m - c, with m in 0.8..1.2 and the size of c in 0.005..0.8.
    - ``ContextIntModality1``, ``ContextIntModality2``: both modalities show both directions, with
      strengths of their own; those of that modality count.
    - ``IntegrationMultimodal``: both modalities count, by the sum of their strengths. Averaged
      over modalities these are m + c and m - c; the modalities differ by a relative 0.005..0.8,
      drawn for each stimulus (0.2 in the evaluation set).
    - ``ReactMatch2Sample``, ``ReactNonMatch2Sample``: respond to the second stimulus if its
      direction is that of the first, or if it is not (at least 20 degrees away); otherwise keep
      fixation. Each stimulus comes in either modality. Half of the trials match.
    - ``ReactCategoryPro``, ``ReactCategoryAnti``: the same, for directions in the same category,
      0..180 degrees or 180..360 degrees.

    In the evaluation set modalities, signs of c and matches alternate with periods 2, 4 and 8 of
    the trial number; m = 1 and c = 0.4; second directions are opposite (for a match in category,
    mirrored); and the directions of category tasks begin at a quarter of their spacing.

    The authors' program differs: its targets have fixation 0.8 and the order (sin, cos), it draws
    durations and modalities per batch, and its loss weighs epochs and outputs. Its contextual
    evaluation durations are used here for all five integration tasks, with our default noise.

    References
    ----------
    As for :func:`memory_pro`.

    Examples
    --------
    >>> import numpy as np
    >>> from kpops.tasks import driscoll
    >>> task = driscoll(8, tasks="ReactMatch2Sample", angles="even", noise=0)
    >>> dict(task.inputs.sizes)
    {'trial': 8, 'time': 135, 'input': 20}
    >>> np.isnan(task.response.values[:4]).tolist()  # every other trial matches
    [False, True, False, True]
    >>> driscoll(30, steps={"context": 5}, rng=0).task.values[[0, 29]].tolist()
    ['DelayPro', 'ReactCategoryAnti']
    """
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    _check(names, n_trials, steps or {})
    generator = random_generator(rng)
    parts = [
        _trials(Recipe(name, n_trials // len(names), noise, generator, dtype), angles, steps or {})
        for name in names
    ]
    configuration = {
        "task": "driscoll",
        "n_trials": n_trials,
        "tasks": tasks if isinstance(tasks, str) else names,
        "angles": angles if isinstance(angles, str) else "given",
        "noise": float(noise),
        "steps": None if steps is None else dict(steps),
        "rules": list(rules),
        "rng": seed_label(rng),
        "dtype": np.dtype(dtype).name,
    }
    mixed = mix(parts, rules=rules, noise=noise, rng=generator)
    return mixed.assign_attrs(configuration=json.dumps(configuration, default=operator.index))


def _check(names: Sequence[str], n_trials: int, steps: Mapping[str, Duration]) -> None:
    unknown = [name for name in names if name not in _TASKS]
    if unknown or not names:
        raise ValueError(f"tasks={unknown}: choose one or more of {', '.join(DRISCOLL_TASKS)}")
    if n_trials < len(names) or n_trials % len(names):
        raise ValueError(
            f"n_trials={n_trials}: pass a multiple of {len(names)}, for as many of each task"
        )
    epochs = {epoch for name in names for epoch in _TASKS[name].epochs}
    for epoch, duration in steps.items():
        if epoch not in epochs:
            raise ValueError(f"steps: the tasks have no epoch {epoch!r}, but {sorted(epochs)}")
        low, high = _range(duration)
        if not 1 <= low <= high or np.size(duration) > 2:
            raise ValueError(f"steps[{epoch!r}]={duration}: pass 1 or more, or a range (low, high)")


def _range(duration: Duration) -> tuple[int, int]:
    ends = duration if isinstance(duration, Sequence) else (duration, duration)
    return operator.index(ends[0]), operator.index(ends[-1])


def _trials(recipe: Recipe, angles: str | ArrayLike, steps: Mapping[str, Duration]) -> xr.Dataset:
    """Trials of one task, without a rule."""
    task = _TASKS[recipe.task]
    plan = task.plan(recipe, angles)
    is_even = isinstance(angles, str) and angles == "even"
    ranges = [_range(steps.get(e, both[is_even])) for e, both in task.epochs.items()]
    durations = [recipe.generator.integers(a, b + 1, recipe.n_trials) for a, b in ranges]
    epoch = _epochs(np.stack(durations, axis=-1), list(task.epochs))
    mask, responding = epoch != "padding", epoch == "response"
    goes = responding & ~np.isnan(plan.response)[:, None]

    inputs = np.zeros((*epoch.shape, len(INPUTS)))
    inputs[..., 0] = mask & (task.fixation_stays | ~responding)
    for stimulus in plan.stimuli:
        by_modality = stimulus.strength[:, :, None] * _unit(stimulus.angle)[:, None, :]
        shown = np.logical_or.reduce([epoch == e for e in stimulus.epochs])
        inputs[..., 1:] += shown[..., None] * by_modality.reshape(-1, 1, 4)
    conditions = {"angle": (plan.stimuli[0].angle, "direction of stimulus 1", "rad")}
    for stimulus in plan.stimuli[1:]:
        conditions["angle2"] = (stimulus.angle % (2 * np.pi), "direction of stimulus 2", "rad")
    conditions |= {**plan.conditions, "response": (plan.response, "response direction", "rad")}
    targets = np.zeros((*epoch.shape, len(OUTPUTS)))
    targets[..., 0] = mask & ~goes
    targets[..., 1:] = np.where(goes[..., None], _unit(plan.response)[:, None, :], 0)
    return recipe.dataset(
        inputs,
        targets,
        epoch,
        channels=(INPUTS, OUTPUTS),
        criterion=("angle", ANGLE_TOLERANCE),
        mask=mask,
        conditions=conditions,
        options={},
    )


def _epochs(durations: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Epoch (trial, time) of trials whose epochs last `durations` (trial, epoch)."""
    ends = durations.cumsum(axis=1)
    time = np.arange(ends[:, -1].max())
    passed = (time[None, :, None] >= ends[:, None, :]).sum(axis=-1)
    return np.array([*names, "padding"], dtype=object)[passed]


def _unit(angle: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)
