"""Trials of neurogym environments."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from kpops.scalars import generator as random_generator
from kpops.tasks.trials import Condition, Rng, assemble, at_least, padded, seed_label


def from_neurogym(
    env: Any, n_trials: int, *, rng: Rng = None, dtype: str = "float32"
) -> xr.Dataset:
    """Trials of a neurogym environment as a task; the same seed gives the same trials.

    Parameters
    ----------
    env : str or environment
        Name of an environment, such as ``"PerceptualDecisionMaking-v0"`` or ``"yang19.dms-v0"``,
        which needs neurogym; or an environment, from ``neurogym.make(name, **options)`` or your
        own, whose ``new_trial`` makes trials. It is seeded, reset and run.
    rng : int, Generator or None
        Source of the seed of the environment.
    n_trials, dtype
        As for :func:`memory_pro`.

    Returns
    -------
    Dataset
        ``inputs``: the observations; ``targets``: the ground truth, one-hot over discrete actions;
        ``mask``: False in the padding of shorter trials. ``epoch`` (time), or (trial, time) where
        trials differ: the periods of the environment. Whatever ``new_trial`` returns by name
        becomes a coordinate (trial), if it is a number or a text in all trials. Other coordinates
        as for :func:`memory_pro`.

    Raises
    ------
    ImportError
        If a name is given and neurogym is not installed.
    TypeError
        If the trials of the environment have no ground truth.
    ValueError
        If an argument is out of range.

    Notes
    -----
    neurogym's own ``Dataset`` seeds its environments whenever it is made, and cuts trials where its
    sequences end. Here the environment is seeded once, and every trial is taken whole. Wrappers
    that remember earlier trials keep that memory, unless a reset clears it. All noise is the
    environment's.

    The criterion of :func:`accuracy` is ``choice`` for discrete actions, else ``relative error``.

    Examples
    --------
    >>> import kpops
    >>> task = kpops.tasks.from_neurogym("yang19.dms-v0", 20, rng=0)  # doctest: +SKIP
    """
    name = env if isinstance(env, str) else type(getattr(env, "unwrapped", env)).__name__
    (n_trials,) = at_least(1, n_trials=n_trials)
    if np.dtype(dtype).name not in ("float32", "float64"):
        raise ValueError(f"dtype={dtype!r}: use 'float32' or 'float64'")
    if isinstance(env, str):
        env = _make(env)
    seed, new_trial = _method(env, "seed"), _method(env, "new_trial")
    seed(int(random_generator(rng).integers(2**31)))
    env.reset()

    trials, observed, wanted, epochs = [], [], [], []
    for _ in range(n_trials):
        trials.append(new_trial() or {})
        task = getattr(env, "unwrapped", env)  # may be another one for each trial
        if not hasattr(task, "ob") or not hasattr(task, "gt"):
            raise TypeError(f"{name} has no ob and gt after new_trial(): it has no ground truth")
        observed.append(np.array(task.ob, dtype=dtype))
        wanted.append(_targets(task, dtype))
        epochs.append(_periods(task, len(task.ob)))
    discrete = hasattr(task.action_space, "n")
    configuration = {
        "task": name,
        "n_trials": n_trials,
        "rng": seed_label(rng),
        "dtype": np.dtype(dtype).name,
    }
    return assemble(
        padded([x[None] for x in observed], 0),
        padded([x[None] for x in wanted], 0),
        padded([np.ones((1, len(x)), dtype=bool) for x in observed], False),
        channels=(
            _channels(task.observation_space, observed[0].shape[1], "observation"),
            _channels(task.action_space, wanted[0].shape[1], "action"),
        ),
        epoch=padded([x[None] for x in epochs], "padding"),
        task=np.full(n_trials, name, dtype=object),
        conditions=_conditions(trials),
        configuration=configuration,
        criterion=("choice", 0.0) if discrete else ("relative error", 0.2),
    )


def _make(name: str) -> Any:
    try:
        neurogym = importlib.import_module("neurogym")
    except ImportError as error:
        raise ImportError(
            f"{name!r} is an environment of neurogym, which cannot be imported ({error}): install "
            "it by pip install neurogym, or pass an environment"
        ) from error
    return neurogym.make(name)


def _method(env: Any, name: str) -> Any:
    """Bound method of the outermost wrapper that has one itself."""
    # Not getattr on the wrapper: gymnasium's forward attributes in some versions only.
    layer = env
    while layer is not None:
        if hasattr(type(layer), name):
            return getattr(layer, name)
        layer = getattr(layer, "env", None)
    raise TypeError(f"{type(env).__name__} has no method {name!r}: pass an environment of trials")


def _targets(task: Any, dtype: str) -> np.ndarray:
    truth = np.asarray(task.gt)
    if hasattr(task.action_space, "n"):
        return np.eye(int(task.action_space.n), dtype=dtype)[truth.astype(int)]
    return truth.reshape(len(truth), -1).astype(dtype)


def _periods(task: Any, n_steps: int) -> np.ndarray:
    epoch = np.full(n_steps, "trial", dtype=object)
    for period, first in getattr(task, "start_ind", {}).items():
        epoch[first : task.end_ind[period]] = period
    return epoch


def _channels(space: Any, n_channels: int, default: str) -> list[str]:
    """Names of channels: those of the space, if it names all of them."""
    names: dict[int, str] = {}
    for name, where in getattr(space, "name", {}).items():
        places = np.atleast_1d(np.asarray(where)).tolist()
        labels = [name] if len(places) == 1 else [f"{name} {i + 1}" for i in range(len(places))]
        names.update(zip(places, labels, strict=True))
    if sorted(names) == list(range(n_channels)):
        return [names[i] for i in range(n_channels)]
    return [f"{default} {i + 1}" for i in range(n_channels)]


def _conditions(trials: list[Mapping[str, Any]]) -> dict[str, Condition]:
    conditions: dict[str, Condition] = {}
    for key in trials[0]:
        values = [trial.get(key) for trial in trials]
        if all(isinstance(v, str) for v in values):
            conditions[key] = (np.array(values, dtype=object), key, "1")
        elif all(isinstance(v, int | float | np.integer | np.floating) for v in values):
            conditions[key] = (np.array(values), key, "1")
    taken = {"trial", "time", "input", "output", "epoch", "task", "inputs", "targets", "mask"}
    return {key: c for key, c in conditions.items() if key not in taken}
