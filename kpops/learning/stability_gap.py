"""The stability gap: what is lost of an old task when a new one is added, and regained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import xarray as xr

from kpops.learning.interference import accumulate_interference


def stability_gap(
    result: xr.Dataset, learning_rate: float = 1.0, *, learned: Iterable[Any] | None = None
) -> xr.Dataset:
    """Rise and recovery of the loss of each task, by what learning the tasks does to it.

    Parameters
    ----------
    result : Dataset
        ``loss_change`` (step, task, task_in) from the moment on at which the tasks that are learned
        change, as :func:`kpops.over_training` or :class:`kpops.training.Measured` collects it from
        :func:`kpops.interference`, best at every iteration.
    learning_rate : float
        As for :func:`kpops.accumulate_interference`.
    learned : sequence of labels, optional
        The tasks that are learned meanwhile. Default: all, old ones by replay.

    Returns
    -------
    Dataset
        ``loss_change`` (step, task): change of the loss of each task since the first step, and its
        parts ``from_others`` (step, task), by learning the other tasks, and ``from_itself`` (step,
        task); ``peak`` (task), the largest change, ``peak_step`` (task), where it is reached, and
        ``gap`` (task), by how much the loss fell again until the last step.

    Raises
    ------
    ValueError, TypeError
        As for :func:`kpops.accumulate_interference`; and if a label in `learned` is no task.

    Notes
    -----
    Where an old task has been learned, its gradient g_i vanishes, and that of a new task does not.
    So at first the loss of the old task changes by the new one alone, by -<g_i, g_j> for each step,
    and rises where the two disagree, although it is replayed; only then does its own gradient grow,
    and it recovers. De Lange, van de Ven and Tuytelaars (ICLR 2023, Continual evaluation for
    lifelong learning: identifying the stability gap) found this dip, which measurements at the ends
    of tasks miss. ``loss_change`` is the sum of both parts, with the precision of
    :func:`kpops.accumulate_interference`.

    Examples
    --------
    >>> import numpy as np, xarray as xr, kpops
    >>> pairs = {"step": [0, 1, 2], "task": ["old", "new"], "task_in": ["old", "new"]}
    >>> change = np.array([[[0, 2], [0, -4]], [[-2, 2], [0, -2]], [[-4, 0], [0, 0.0]]])
    >>> result = xr.Dataset({"loss_change": (list(pairs), change)}, pairs)
    >>> gap = kpops.training.stability_gap(result)
    >>> gap.peak.sel(task="old").item(), gap.gap.sel(task="old").item()
    (1.0, 2.0)
    """
    total = accumulate_interference(result, learning_rate)
    change = total.accumulated_loss_change
    names = change["task_in"].values.tolist()
    chosen = names if learned is None else [learned] if isinstance(learned, str) else list(learned)
    unknown = [label for label in chosen if label not in names]
    if unknown or not chosen:
        raise ValueError(f"learned={chosen}: choose among the tasks {names}")
    change = change.where(change["task_in"].isin(chosen), 0)
    own = change["task"] == change["task_in"]
    others, itself = (change.where(part, 0).sum("task_in", skipna=False) for part in (~own, own))
    whole = (others + itself).transpose("step", "task", ...)
    peak = whole.max("step")
    texts = {
        "loss_change": (whole, "change of the loss since the first step"),
        "from_others": (others, "change of the loss by learning other tasks"),
        "from_itself": (itself, "change of the loss by learning the task itself"),
        "peak": (peak, "largest change of the loss"),
        "peak_step": (whole.idxmax("step"), "iteration of the largest change of the loss"),
        "gap": (peak - whole.isel(step=-1, drop=True), "fall of the loss after its peak"),
    }
    return xr.Dataset(
        {
            name: value.assign_attrs(long_name=text, units="1")
            for name, (value, text) in texts.items()
        },
        attrs=total.attrs,
    )
