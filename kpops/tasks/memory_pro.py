"""Memory-Pro: see an angle, keep it through a delay, respond with it."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

_EPOCHS = ("stimulus", "memory", "response")
_CHANNELS = ("fixation", "cos", "sin")


def memory_pro(
    n_trials: int,
    *,
    angles: str | ArrayLike = "random",
    noise: float = 0.1 * math.sqrt(2),
    steps: Sequence[int] = (30, 30, 30),
    rng: int | np.random.Generator | None = None,
    dtype: str = "float32",
) -> xr.Dataset:
    """Trials of the Memory-Pro task of Driscoll et al. (Yang et al.: ``delaygo``).

    Parameters
    ----------
    n_trials : int
        Number of trials.
    angles : {"random", "even"} or array_like, shape (n_trials,)
        Angle of each trial in radians: uniform on the circle, evenly spaced from 0 (the
        evaluation set), or given.
    noise : float
        Standard deviation of the Gaussian noise on every input. The default is the training
        noise of the papers; evaluate with ``noise=0``.
    steps : sequence of three int
        Time steps of the stimulus, the memory and the response.
    rng : int, Generator or None
        Source of the angles and the noise. The angles are drawn first, so they do not depend on
        `noise`.
    dtype : {"float32", "float64"}
        Of inputs and targets. The numbers are drawn in float64 and rounded.

    Returns
    -------
    Dataset
        ``inputs`` (trial, time, input), ``targets`` (trial, time, output) and ``mask`` (trial,
        time), True at valid steps, that is everywhere. Coordinates: ``trial`` from 0, ``time``
        from 1, ``input`` and ``output`` channel names, ``epoch`` (time), ``angle`` (trial) in
        radians, ``task`` (trial).

    Raises
    ------
    ValueError
        If an argument is out of range, or the given angles have the wrong shape.

    Notes
    -----
    ========  ==============  ================  ===============  =================
    epoch     fixation input  (cos, sin) input  fixation target  (cos, sin) target
    ========  ==============  ================  ===============  =================
    stimulus  1               shown             1                0
    memory    1               0                 1                0
    response  0               0                 0                shown
    ========  ==============  ================  ===============  =================

    References
    ----------
    Yang et al., Task representations in neural networks trained to perform many cognitive tasks,
    Nature Neuroscience 22 (2019). Driscoll, Shenoy and Sussillo, Flexible multitask computation
    in recurrent networks utilizes shared dynamical motifs, Nature Neuroscience 27 (2024).

    Examples
    --------
    >>> from kpops.tasks import memory_pro
    >>> task = memory_pro(20, angles="even", noise=0)
    >>> dict(task.inputs.sizes)
    {'trial': 20, 'time': 90, 'input': 3}
    >>> task.targets.isel(trial=5).sel(time=90, output="sin").item()  # a quarter of the circle
    1.0
    """
    n_trials = operator.index(n_trials)
    if n_trials < 1:
        raise ValueError(f"n_trials={n_trials}: ask for at least one trial")
    lengths = [operator.index(s) for s in steps]
    if len(lengths) != len(_EPOCHS) or min(lengths) < 1:
        raise ValueError(
            f"steps={tuple(steps)}: pass three positive numbers, one each for {_EPOCHS}"
        )
    if not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise={noise}: pass a finite standard deviation, 0 for none")
    if np.dtype(dtype).name not in ("float32", "float64"):
        raise ValueError(f"dtype={dtype!r}: use 'float32' or 'float64'")

    generator = np.random.default_rng(rng)
    angle = _angles(angles, n_trials, generator)
    # Object strings, since Zarr has no specified type for NumPy's fixed-length ones.
    epoch = np.repeat(np.array(_EPOCHS, dtype=object), lengths)
    shown = np.stack([np.cos(angle), np.sin(angle)], axis=-1)[:, None, :]

    shape = (n_trials, len(epoch), len(_CHANNELS))
    clean, targets = np.zeros(shape), np.zeros(shape)
    clean[..., 0] = targets[..., 0] = epoch != "response"
    clean[..., 1:] = np.where((epoch == "stimulus")[:, None], shown, 0)
    targets[..., 1:] = np.where((epoch == "response")[:, None], shown, 0)
    inputs = clean + noise * generator.standard_normal(shape)

    configuration = {
        "task": "memory_pro",
        "n_trials": n_trials,
        "angles": angles if isinstance(angles, str) else "given",
        "noise": float(noise),
        "steps": lengths,
        "rng": "Generator" if isinstance(rng, np.random.Generator) else rng,
        "dtype": np.dtype(dtype).name,
    }
    channels = np.array(_CHANNELS, dtype=object)
    return xr.Dataset(
        {
            "inputs": _variable(("trial", "time", "input"), inputs.astype(dtype), "input", "1"),
            "targets": _variable(
                ("trial", "time", "output"), targets.astype(dtype), "target output", "1"
            ),
            "mask": _variable(("trial", "time"), np.ones(shape[:2], dtype=bool), "valid step", "1"),
        },
        coords={
            "trial": _variable("trial", np.arange(n_trials), "trial"),
            "time": _variable("time", np.arange(1, len(epoch) + 1), "time", "step"),
            "input": _variable("input", channels, "input channel"),
            "output": _variable("output", channels, "output channel"),
            "epoch": _variable("time", epoch, "epoch of the trial"),
            "angle": _variable("trial", angle, "stimulus angle", "rad"),
            "task": _variable("trial", np.full(n_trials, "memory_pro", dtype=object), "task"),
        },
        attrs={"configuration": json.dumps(configuration, default=operator.index)},
    )


def _angles(angles: str | ArrayLike, n_trials: int, generator: np.random.Generator) -> np.ndarray:
    if isinstance(angles, str):
        if angles == "random":
            return generator.uniform(0, 2 * np.pi, n_trials)
        if angles == "even":
            return 2 * np.pi * np.arange(n_trials) / n_trials
        raise ValueError(
            f"angles={angles!r}: use 'random', 'even' or an array of {n_trials} angles"
        )
    given = np.array(angles, dtype=float)
    if given.shape != (n_trials,):
        raise ValueError(
            f"angles has shape {given.shape}, expected (n_trials,) = ({n_trials},): one per trial"
        )
    if not np.isfinite(given).all():
        first = int(np.flatnonzero(~np.isfinite(given))[0])
        raise ValueError(f"angles[{first}] is {given[first]}: pass finite angles in radians")
    return given


def _variable(
    dims: str | tuple[str, ...], values: np.ndarray, long_name: str, units: str | None = None
) -> tuple[Any, np.ndarray, dict[str, str]]:
    attrs = {"long_name": long_name} if units is None else {"long_name": long_name, "units": units}
    return dims, values, attrs
