"""What all tasks share: checks of the arguments, and the labelled Dataset."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from kpops.arrays import as_tensor, to_numpy
from kpops.scalars import check_count, check_real
from kpops.scalars import generator as random_generator

#: Standard deviation of the training noise on the inputs of the tasks with angles.
NOISE = 0.1 * math.sqrt(2)
#: Largest error of a correct response, in radians.
ANGLE_TOLERANCE = math.pi / 10

Rng = int | np.random.Generator | None
Condition = tuple[np.ndarray, str, str]  # values (trial,), long name, units


class Recipe:
    """The checked arguments that every task takes, and the generator from which it draws.

    Draw conditions before :meth:`dataset` draws the noise, so that they do not depend on it.
    """

    def __init__(self, task: str, n_trials: int, noise: float, rng: Rng, dtype: str) -> None:
        self.task = task
        check_count("n_trials", n_trials, 1)
        self.n_trials = int(n_trials)
        check_real("noise", noise)
        check_deviation(noise)
        if dtype not in ("float32", "float64", np.float32, np.float64):
            raise ValueError(f"dtype={dtype!r}: use 'float32' or 'float64'")
        self.noise = float(noise)
        self.dtype = np.dtype(dtype).name
        self.generator = random_generator(rng)
        self.seed = seed_label(rng)

    def angles(self, angles: str | ArrayLike, offset: float = 0.0) -> np.ndarray:
        """Angle of each trial; "even" ones start at `offset` times their spacing."""
        n = self.n_trials
        if isinstance(angles, str):
            if angles == "random":
                return self.generator.uniform(0, 2 * np.pi, n)
            if angles == "even":
                return 2 * np.pi * (np.arange(n) + offset) / n
            raise ValueError(f"angles={angles!r}: use 'random', 'even' or an array of {n} angles")
        given = to_numpy(as_tensor(angles, "angles")).astype(float)
        if given.shape != (n,):
            raise ValueError(
                f"angles has shape {given.shape}, expected (n_trials,) = ({n},): one per trial"
            )
        if not np.isfinite(given).all():
            first = int(np.flatnonzero(~np.isfinite(given))[0])
            raise ValueError(f"angles[{first}] is {given[first]}: pass finite angles in radians")
        return given

    def dataset(
        self,
        inputs: np.ndarray,
        targets: np.ndarray,
        epoch: np.ndarray,
        *,
        channels: tuple[Sequence[str], Sequence[str]],
        criterion: tuple[str, float],
        mask: np.ndarray | None = None,
        conditions: Mapping[str, Condition] | None = None,
        options: Mapping[str, Any],
    ) -> xr.Dataset:
        """Add noise to clean `inputs`, and label everything."""
        mask = np.ones(inputs.shape[:2], dtype=bool) if mask is None else mask
        # Drawn even at noise 0, so that later draws from the generator do not depend on the level.
        noisy = inputs + self.noise * self.generator.standard_normal(inputs.shape)
        configuration = {
            "task": self.task,
            "n_trials": self.n_trials,
            **options,
            "rng": self.seed,
            "dtype": self.dtype,
        }
        return assemble(
            np.where(mask[..., None], noisy, 0).astype(self.dtype),
            targets.astype(self.dtype),
            mask,
            channels=channels,
            epoch=epoch,
            task=np.full(self.n_trials, self.task, dtype=object),
            conditions=conditions or {},
            configuration=configuration,
            criterion=criterion,
        )


def check_deviation(noise: float) -> None:
    """Refuse a noise level that is negative or not finite."""
    if not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise={noise}: pass a finite standard deviation, 0 for none")


def assemble(
    inputs: np.ndarray,
    targets: np.ndarray,
    mask: np.ndarray,
    *,
    channels: tuple[Sequence[str], Sequence[str]],
    epoch: np.ndarray,
    task: np.ndarray,
    conditions: Mapping[str, Condition],
    configuration: Mapping[str, Any],
    criterion: tuple[str, float],
) -> xr.Dataset:
    """Dataset of trials; epochs (trial, time) that agree in all trials become (time)."""
    if epoch.ndim == 2 and (epoch == epoch[0]).all():
        epoch = epoch[0]
    names = [np.array(list(c), dtype=object) for c in channels]
    return xr.Dataset(
        {
            "inputs": _variable(("trial", "time", "input"), inputs, "input"),
            "targets": _variable(("trial", "time", "output"), targets, "target output"),
            "mask": _variable(("trial", "time"), mask, "valid step"),
        },
        coords={
            "trial": _variable("trial", np.arange(len(inputs)), "trial"),
            "time": _variable("time", np.arange(1, inputs.shape[1] + 1), "time", "step"),
            "input": _variable("input", names[0], "input channel"),
            "output": _variable("output", names[1], "output channel"),
            "epoch": _variable(
                ("trial", "time")[-epoch.ndim :], epoch.astype(object), "epoch of the trial"
            ),
            **{name: _variable("trial", *c) for name, c in conditions.items()},
            "task": _variable("trial", task.astype(object), "task"),
        },
        attrs={
            "configuration": json.dumps(configuration, default=operator.index),
            "criterion": criterion[0],
            "tolerance": float(criterion[1]),
        },
    )


def seed_label(rng: Rng) -> int | str | None:
    """`rng` as the configuration shows it."""
    return "Generator" if isinstance(rng, np.random.Generator) else rng


def padded(parts: Sequence[np.ndarray], blank: str | int, before: int = 0) -> np.ndarray:
    """Join trials (trial, time, ...) of several lengths, blank `before` their start and after."""
    n_steps = before + max(part.shape[1] for part in parts)
    joined = []
    for part in parts:
        row = np.full((len(part), n_steps, *part.shape[2:]), blank, dtype=part.dtype)
        row[:, before : before + part.shape[1]] = part
        joined.append(row)
    return np.concatenate(joined)


def lengths_of(steps: Sequence[int], epochs: Sequence[str]) -> list[int]:
    """Check the number of steps of each epoch."""
    lengths = list(steps) if np.iterable(steps) else []
    whole = all(isinstance(s, int | np.integer) and s >= 1 for s in lengths)
    if len(lengths) != len(epochs) or not whole:
        raise ValueError(
            f"steps={steps!r}: pass {len(epochs)} positive ints, one each for {tuple(epochs)}"
        )
    return [int(s) for s in lengths]


def repeat(epochs: Sequence[str], lengths: Sequence[int]) -> np.ndarray:
    """Name of the epoch at each step."""
    # Object strings, since Zarr specifies no type for NumPy's fixed-length ones.
    return np.repeat(np.array(epochs, dtype=object), lengths)


def at_least(minimum: int, **values: int) -> list[int]:
    """Check whole numbers, named like the arguments."""
    for name, value in values.items():
        check_count(name, value, minimum)
    return [int(value) for value in values.values()]


def _variable(
    dims: str | tuple[str, ...], values: np.ndarray, long_name: str, units: str = "1"
) -> tuple[Any, np.ndarray, dict[str, str]]:
    return dims, values, {"long_name": long_name, "units": units}
