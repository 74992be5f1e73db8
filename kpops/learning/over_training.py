"""Measure the same thing at every checkpoint of a training run."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from torch import nn
from tqdm.auto import tqdm

from kpops.learning.checkpoints import checkpoints as read_checkpoints
from kpops.linearization import Linearization, linearize

Measure = Callable[[Linearization], "xr.Dataset | xr.DataArray | Mapping[str, Any]"]


def over_training(
    model: nn.Module,
    checkpoints: str | os.PathLike | Iterable[tuple[int, Mapping[str, Any]]],
    inputs: Any,
    measure: Measure,
    *,
    linearizer: Callable[..., Linearization] = linearize,
    progress: bool = False,
    **options: Any,
) -> xr.Dataset:
    """Linearise a model at each checkpoint and collect what `measure` says of it.

    Parameters
    ----------
    model : nn.Module
        The architecture; a copy of it takes the weights of each checkpoint.
    checkpoints : path, or iterable of (step, state_dict)
        A folder written by :func:`kpops.training.train`, or anybody's checkpoints.
    inputs : Tensor, array_like or DataArray
        Passed to the linearizer.
    measure : callable
        Takes a :class:`kpops.Linearization`, returns a Dataset, a DataArray with a name, or a
        mapping of names to numbers.
    linearizer : callable
        ``linearizer(model, inputs, **options)``. Give your own where the model is not what
        :func:`kpops.linearize` takes, for example ``lambda model, inputs:
        kpops.linearize(model.gru, inputs, readout=model.fc)``.
    progress : bool
        Show a progress bar.
    **options
        Passed to the linearizer.

    Returns
    -------
    Dataset
        What `measure` returned, with the new leading dim ``step``, the training iteration.

    Raises
    ------
    ValueError
        If there are no checkpoints, steps repeat, or a state does not fit the model.

    Examples
    --------
    >>> import torch, kpops
    >>> gru = torch.nn.GRU(3, 4, batch_first=True)
    >>> checkpoints = [(0, gru.state_dict()), (10, gru.state_dict())]
    >>> norm = lambda lin: {"norm": float(abs(lin.states).max())}
    >>> kpops.over_training(gru, checkpoints, torch.zeros(2, 5, 3), norm).step.values
    array([ 0, 10])
    """
    if isinstance(checkpoints, str | os.PathLike):
        checkpoints = read_checkpoints(checkpoints)
    mine = copy.deepcopy(model)
    steps, results = [], []
    for step, state in tqdm(checkpoints, desc="checkpoints", disable=not progress):
        try:
            mine.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"the checkpoint of step {step} does not fit: {error}") from error
        steps.append(int(step))
        results.append(_as_dataset(measure(linearizer(mine, inputs, **options))))
    if not steps:
        raise ValueError("checkpoints is empty: pass at least one (step, state_dict)")
    if len(set(steps)) < len(steps):
        raise ValueError(f"checkpoints repeat a step: {sorted(steps)}")
    step_values = xr.DataArray(
        np.array(steps), dims="step", attrs={"long_name": "training iteration", "units": "1"}
    )
    joined = xr.concat(
        results,
        dim="step",
        combine_attrs="drop_conflicts",
        join="exact",
        data_vars="all",
        coords="minimal",
        compat="override",
    )
    return joined.assign_coords(step=step_values)


def _as_dataset(result: Any) -> xr.Dataset:
    if isinstance(result, xr.Dataset):
        return result
    if isinstance(result, xr.DataArray):
        return result.to_dataset(name=result.name or "measure")
    # What a number is of, as its scalar coordinates tell it, is in its name here.
    return xr.Dataset(
        {
            name: value.drop_vars([c for c in value.coords if not value[c].dims])
            if isinstance(value, xr.DataArray)
            else value
            for name, value in result.items()
        }
    )
