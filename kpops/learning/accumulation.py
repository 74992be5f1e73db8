"""What tasks did to each other's loss, added up over training."""

from __future__ import annotations

import numpy as np
import xarray as xr

from kpops.kinds import described
from kpops.learning.interference import PAIR
from kpops.scalars import check_real

_REMEDY = "pass what kpops.over_training makes of kpops.interference with targets"


def accumulate_interference(result: xr.Dataset, learning_rate: float = 1.0) -> xr.Dataset:
    """Add up, over training, what learning each task did to the loss of the others.

    Parameters
    ----------
    result : Dataset
        ``loss_change`` (step, task, task_in), as :func:`kpops.over_training` collects it from
        :func:`kpops.interference`.
    learning_rate : float
        Of the gradient descent that is accounted for, one update per step.

    Returns
    -------
    Dataset
        ``accumulated_loss_change`` (step, task, task_in): learning rate times the integral of
        ``loss_change`` over the steps so far;
        ``accumulated_from_others`` (step, task): its sum over all other tasks: positive where they
        have done harm.

    Raises
    ------
    ValueError
        If there is no ``loss_change`` with these dims, or steps do not increase.

    Notes
    -----
    The trapezoidal rule between checkpoints. Summed over all tasks it is the change of the whole
    loss by plain gradient descent on it, up to the learning rate and the square of the distance of
    checkpoints. Other optimisers do not follow the gradient: then it accounts for what gradient
    flow would have done at the weights that training went through.

    Examples
    --------
    >>> import numpy as np, xarray as xr, kpops
    >>> pairs = {"step": [0, 10], "task": ["Pro", "Anti"], "task_in": ["Pro", "Anti"]}
    >>> change = xr.DataArray([[[-2.0, 1], [1, -2]], [[-1.0, 0], [0, -1]]], pairs, list(pairs))
    >>> total = kpops.accumulate_interference(xr.Dataset({"loss_change": change}), 0.1)
    >>> total.accumulated_from_others.sel(task="Pro").values
    array([0. , 0.5])
    """
    if not isinstance(result, xr.Dataset):
        raise TypeError(f"result is {described(result)}: {_REMEDY}")
    check_real("learning_rate", learning_rate)
    if "loss_change" not in result or {"step", *PAIR} - set(result.loss_change.dims):
        raise ValueError(
            f"result has the variables {sorted(map(str, result))}, expected loss_change with the "
            f"dims step, task and task_in: {_REMEDY}"
        )
    change = result.loss_change
    names = [change[dim].values.tolist() for dim in ("task", "task_in")]
    if names[0] != names[1]:
        raise ValueError(f"task is {names[0]} and task_in {names[1]}: give both the same labels")
    if (np.diff(change["step"]) <= 0).any():
        raise ValueError("the steps of result do not increase: sort them by result.sortby('step')")
    total = (learning_rate * change.cumulative_integrate("step")).astype(change.dtype)
    others = total.where(change["task"] != change["task_in"], 0).sum("task_in", skipna=False)
    text = "accumulated change of the loss"
    of_others = f"{text} by other tasks"
    return xr.Dataset(
        {
            "accumulated_loss_change": total.assign_attrs(long_name=text, units="1"),
            "accumulated_from_others": others.assign_attrs(long_name=of_others, units="1"),
        },
        attrs={**result.attrs, "learning_rate": float(learning_rate)},
    )
