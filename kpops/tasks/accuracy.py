"""Which trials a network solves."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from kpops.arrays import as_tensor, to_numpy
from kpops.kinds import described
from kpops.labels import Space, by_name, coordinates_of

Array = np.ndarray
Criterion = Callable[[Array, Array, Array, float], Array]


def accuracy(task: xr.Dataset, outputs: Any) -> xr.Dataset:
    """Trials that a network solves, by the task's own criterion.

    Parameters
    ----------
    task : Dataset
        Of :mod:`kpops.tasks`, or your own with ``targets`` (trial, time, output), ``mask`` (trial,
        time) and the attributes ``criterion``, a name from the table below, and ``tolerance``.
    outputs : Tensor, DataArray or array_like, shape (trial, time, output)
        Outputs of the network for ``task.inputs``.

    Returns
    -------
    Dataset
        ``correct`` (trial), with the task's coordinates of trials, and ``accuracy`` (), the
        fraction of correct trials. ``result.correct.groupby("task").mean()`` is the accuracy of
        each task of a mix.

    Raises
    ------
    ValueError
        If the outputs do not fit the task or are not finite, or the task has no known criterion.

    Notes
    -----
    Steps outside the mask do not count. A trial is correct by the criterion

    ``angle``
        if the output ``fixation`` is above 1/2 at every step at which its target is 1, and,
        if there is a response, the mean output during the response has a ``fixation`` below 1/2
        and an angle of (cos, sin) that is off by less than the tolerance. The tolerance of pi/10
        is that of Driscoll et al. (2024), who look at the last step only; Yang et al. (2019) allow
        pi/5.
    ``choice``
        if in every stretch of constant targets the largest mean output is that of the largest
        target. The tolerance has no effect.
    ``value``
        if in every stretch of constant targets each mean output is within the tolerance of its
        target.
    ``relative error``
        if the root mean square of its errors is at most the tolerance times the root mean square
        of the targets of all trials.

    Examples
    --------
    >>> from kpops.tasks import accuracy, memory_pro
    >>> task = memory_pro(4, angles="even", noise=0)
    >>> outputs = task.targets.copy()
    >>> outputs[0, 60:, 1:] *= -1  # opposite to the stimulus
    >>> outputs[1, 10, 0] = 0  # fixation lost
    >>> accuracy(task, outputs).correct.values
    array([False, False,  True,  True])
    """
    if not isinstance(task, xr.Dataset):
        raise TypeError(f"task is {described(task)}: pass a Dataset of kpops.tasks")
    name, tolerance = task.attrs.get("criterion"), float(task.attrs.get("tolerance", 0.0))
    if name not in _CRITERIA:
        raise ValueError(
            f"task.attrs['criterion'] is {name!r}: set it to one of {', '.join(_CRITERIA)}"
        )
    targets = task.targets.transpose("trial", "time", "output").data
    targets = to_numpy(as_tensor(targets, "task.targets")).astype(float)
    mask = np.asarray(task.mask.transpose("trial", "time"), dtype=bool)
    channels = _angle_channels(task) if name == "angle" else slice(None)
    values = _outputs(task, outputs, mask)
    correct = _CRITERIA[name](values[..., channels], targets[..., channels], mask, tolerance)
    trial_attrs = {"long_name": "trial is correct", "units": "1"}
    mean_attrs = {"long_name": "fraction of trials that are correct", "units": "1"}
    configuration = {"criterion": name, "tolerance": tolerance}
    return xr.Dataset(
        {"correct": ("trial", correct, trial_attrs), "accuracy": ((), correct.mean(), mean_attrs)},
        coords={k: c for k, c in task.coords.items() if c.dims == ("trial",)},
        attrs={"configuration": json.dumps(configuration)},
    )


def _outputs(task: xr.Dataset, outputs: Any, mask: Array) -> Array:
    dims = ("trial", "time", "output")
    expected = tuple(task.sizes[d] for d in dims)
    if isinstance(outputs, xr.DataArray):
        steps = coordinates_of(task.targets, ("trial", "time"))
        outputs = by_name(_in_order(task, outputs), Space(dims, expected, steps), "outputs")
    values = to_numpy(as_tensor(outputs, "outputs"))
    if values.shape != expected:
        raise ValueError(f"outputs has shape {values.shape}, expected {dims} = {expected}")
    lost = ~np.isfinite(values).all(axis=-1) & mask
    if lost.any():
        trial, time = np.argwhere(lost)[0]
        raise ValueError(f"outputs are not finite at trial {trial}, time {time} (from 0)")
    return np.where(mask[..., None], values, 0).astype(float)


def _in_order(task: xr.Dataset, outputs: xr.DataArray) -> xr.DataArray:
    """Named outputs, in the task's order."""
    if "output" not in outputs.coords or "output" not in task.coords:
        return outputs
    mine, theirs = outputs["output"].values.tolist(), task["output"].values.tolist()
    named = all(isinstance(name, str) for name in mine) and len(mine) == len(theirs)
    if not named or mine == theirs:
        return outputs
    if sorted(mine) != sorted(map(str, theirs)):
        raise ValueError(f"outputs has the outputs {mine}, the task {theirs}: name them alike")
    return outputs.sel(output=theirs)


def _angle_channels(task: xr.Dataset) -> list[int]:
    names = task.output.values.tolist()
    try:
        return [names.index(name) for name in ("fixation", "cos", "sin")]
    except ValueError:
        raise ValueError(
            f"task.output is {names}: the criterion 'angle' needs 'fixation', 'cos' and 'sin'"
        ) from None


# Each criterion takes outputs and targets (trial, time, output) and the mask (trial, time).


def _angle(outputs: Array, targets: Array, mask: Array, tolerance: float) -> Array:
    fixating = mask & (targets[..., 0] > 0.5)
    responding = mask & ~fixating
    kept = ((outputs[..., 0] > 0.5) | ~fixating).all(axis=1)
    response, wanted = (_mean(x, responding) for x in (outputs, targets))
    across = response[:, 1] * wanted[:, 2] - response[:, 2] * wanted[:, 1]
    along = response[:, 1] * wanted[:, 1] + response[:, 2] * wanted[:, 2]
    hit = (np.abs(np.arctan2(across, along)) < tolerance) & (response[:, 0] < 0.5)
    return kept & (hit | ~responding.any(axis=1))


def _choice(outputs: Array, targets: Array, mask: Array, tolerance: float) -> Array:
    (chosen, wanted), there = _stretches(outputs, targets, mask)
    return ((chosen.argmax(axis=-1) == wanted.argmax(axis=-1)) | ~there).all(axis=1)


def _value(outputs: Array, targets: Array, mask: Array, tolerance: float) -> Array:
    (held, wanted), there = _stretches(outputs, targets, mask)
    return ((np.abs(held - wanted) < tolerance).all(axis=-1) | ~there).all(axis=1)


def _relative_error(outputs: Array, targets: Array, mask: Array, tolerance: float) -> Array:
    error = _mean(np.square(outputs - targets), mask).mean(axis=-1)
    scale = np.square(targets[mask]).mean()
    return error <= tolerance**2 * scale


def _mean(values: Array, where: Array) -> Array:
    """Mean (trial, output) over the steps `where` (trial, time); 0 without any."""
    total = np.where(where[..., None], values, 0).sum(axis=1)
    return total / np.maximum(where.sum(axis=1), 1)[:, None]


def _stretches(outputs: Array, targets: Array, mask: Array) -> tuple[list[Array], Array]:
    """Means (trial, stretch, output) of outputs and targets, and whether a stretch exists."""
    changes = (targets[:, 1:] != targets[:, :-1]).any(axis=-1)
    number = np.pad(changes.cumsum(axis=1), ((0, 0), (1, 0)))
    trial, _ = np.nonzero(mask)
    shape = (len(mask), int(number.max()) + 1)
    count = np.zeros(shape)
    np.add.at(count, (trial, number[mask]), 1)
    means = []
    for values in (outputs, targets):
        total = np.zeros((*shape, values.shape[-1]))
        np.add.at(total, (trial, number[mask]), values[mask])
        means.append(total / np.maximum(count, 1)[..., None])
    return means, count > 0


_CRITERIA: dict[str, Criterion] = {
    "angle": _angle,
    "choice": _choice,
    "value": _value,
    "relative error": _relative_error,
}
