"""Trajectories of systems as labelled arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops.arrays import to_numpy
from kpops.kinds import described
from kpops.scalars import check_count, generator
from kpops.systems.models import System

SPREAD = 0.01  # of the initial states, relative to the root mean square of `start`


def trajectory(
    model: System,
    n_steps: int,
    *,
    transient: int = 0,
    n_trials: int = 1,
    rng: int | np.random.Generator | None = None,
) -> xr.DataArray:
    """Trajectories of a system from near its initial state.

    Parameters
    ----------
    model : Flow, Map or SemilinearFlow
        From :func:`load`, in its dtype and on its device.
    n_steps : int
        Number of states of each trial.
    transient : int
        Steps before these. Trials that start close together need some time to part: at a largest
        exponent of lambda per unit of time, ``5 / (lambda dt)`` steps.
    n_trials : int
        Number of trials. The first starts at ``model.start``; the others near it, with normal
        deviations of one percent of its root mean square, or of 1 if it is zero.
    rng : int, Generator or None
        Source of these deviations. A single trial draws none.

    Returns
    -------
    DataArray, dims (trial, time, unit)
        On the host, in the model's dtype. ``time`` is that since the start, in units of the
        system or in steps of a map; ``variable`` (unit) are the names of the units.

    Raises
    ------
    TypeError
        If `model` is no system, or a number is no int.
    ValueError
        If a number is out of range; if a trajectory leaves for infinity, which names its trial.

    Examples
    --------
    >>> import kpops
    >>> henon = kpops.systems.load("Henon")
    >>> states = kpops.systems.trajectory(henon, 1000, transient=100, n_trials=4, rng=0)
    >>> dict(states.sizes), states["variable"].values.tolist()
    ({'trial': 4, 'time': 1000, 'unit': 2}, ['x', 'y'])
    """
    refuse_others(model)
    check_count("n_steps", n_steps, 1)
    check_count("transient", transient, 0)
    states = run(model, scattered(model, n_trials, rng), n_steps, transient)
    step = 1.0 if model.dt is None else model.dt
    time = np.arange(transient + 1, transient + n_steps + 1) * (1 if model.dt is None else step)
    unit = "step" if model.dt is None else "1"
    return xr.DataArray(
        to_numpy(states),
        dims=("trial", "time", "unit"),
        coords={
            "trial": ("trial", np.arange(n_trials), {"long_name": "trial", "units": "1"}),
            "time": ("time", time, {"long_name": "time", "units": unit}),
            "unit": ("unit", np.arange(states.shape[2]), {"long_name": "unit", "units": "1"}),
            "variable": (
                "unit",
                np.array(model.variables, dtype=object),
                {"long_name": "variable of the system"},
            ),
        },
        name="states",
        attrs={"long_name": f"state of {model.name}", "units": "1", "system": model.name},
    )


def refuse_others(model: Any) -> None:
    """Refuse what is no system."""
    if not isinstance(model, System):
        raise TypeError(
            f"model is {described(model)}: pass a system, such as kpops.systems.load('Lorenz')"
        )


def scattered(model: System, n_trials: int, rng: Any) -> Tensor:
    """Initial states (trial, unit), of which the first is the model's own."""
    check_count("n_trials", n_trials, 1)
    start, random = model.start.detach(), generator(rng)
    if n_trials == 1:
        return start[None]
    drawn = random.standard_normal((n_trials, len(start)))
    drawn[0] = 0
    size = float(start.square().mean().sqrt()) or 1.0
    return start + SPREAD * size * torch.as_tensor(drawn).to(start)


def no_inputs(model: Any, n_trials: int, n_steps: int) -> Tensor:
    """Zeros (trial, time, feature) in place of the inputs; the time of a flow has no effect."""
    return model.start.new_zeros(()).expand(n_trials, n_steps, model.input_size)


@torch.no_grad()
def run(model: Any, h: Tensor, n_steps: int, transient: int = 0) -> Tensor:
    """States (trial, time, unit) after the transient."""
    x = no_inputs(model, len(h), 1)[:, 0]
    for _ in range(transient):
        h = model(x, h)
    states = h.new_empty(len(h), n_steps, h.shape[1])
    for t in range(n_steps):
        h = states[:, t] = model(x, h)
    refuse_escaped(model, states[:, -1])
    return states


def refuse_escaped(model: Any, h: Tensor) -> None:
    """Refuse states (trial, unit) that are not finite."""
    bad = (~h.isfinite().all(1)).nonzero()
    if len(bad):
        raise ValueError(
            f"trial {int(bad[0])} of {model.name} has left for infinity at these parameters, "
            f"{model.settings}: choose others, or start nearer to the attractor"
        )
