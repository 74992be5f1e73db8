"""Flip-flop: hold the sign of the last pulse of each bit."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from kpops.scalars import check_real
from kpops.tasks.trials import Recipe, Rng, at_least, repeat


def flip_flop(
    n_trials: int,
    *,
    bits: int = 3,
    probability: float = 0.05,
    noise: float = 0.03 * math.sqrt(2),
    steps: int = 90,
    rng: Rng = None,
    dtype: str = "float32",
) -> xr.Dataset:
    """Trials of the flip-flop: each output remembers the sign of its input's last pulse.

    Parameters
    ----------
    n_trials : int
        Number of trials.
    bits : int
        Number of channels; each is independent of the others.
    probability : float
        Probability of a pulse at a step of a channel; a pulse is +1 or -1 with equal chance.
    noise : float
        Standard deviation of the Gaussian noise on every input. The default is the training
        noise of the KPFlow paper; evaluate with ``noise=0``.
    steps : int
        Time steps of a trial.
    rng : int, Generator or None
        Source of the pulses and the noise. The pulses are drawn first, so they do not depend on
        `noise`.
    dtype : {"float32", "float64"}
        Of inputs and targets.

    Returns
    -------
    Dataset
        ``inputs`` (trial, time, input), ``targets`` (trial, time, output) and ``mask`` (trial,
        time), True everywhere. The channels are ``bit 1``, ``bit 2``, ...; the whole trial is the
        epoch ``pulses``. Other coordinates as of :func:`memory_pro`.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    With pulses u[t] in {-1, 0, 1}, the target of a bit is y[t] = u[t] where there is a pulse and
    y[t] = y[t-1] elsewhere, from y[0] = 0: a bit has no sign before its first pulse.

    References
    ----------
    Sussillo and Barak, Opening the black box: low-dimensional dynamics in high-dimensional
    recurrent neural networks, Neural Computation 25 (2013).

    Examples
    --------
    >>> from kpops.tasks import flip_flop
    >>> task = flip_flop(1, bits=1, probability=0.3, noise=0, steps=10, rng=1)
    >>> task.inputs.values.ravel()
    array([ 0.,  0.,  1.,  0.,  0.,  0.,  0.,  0.,  0., -1.], dtype=float32)
    >>> task.targets.values.ravel()
    array([ 0.,  0.,  1.,  1.,  1.,  1.,  1.,  1.,  1., -1.], dtype=float32)
    """
    recipe = Recipe("flip_flop", n_trials, noise, rng, dtype)
    bits, steps = at_least(1, bits=bits, steps=steps)
    check_real("probability", probability)
    if not 0 < probability <= 1:
        raise ValueError(f"probability={probability}: pass a number above 0 and at most 1")
    shape = (recipe.n_trials, steps, bits)
    fires = recipe.generator.random(shape) < probability
    pulses = np.where(fires, recipe.generator.choice([-1.0, 1.0], size=shape), 0.0)
    names = [f"bit {i}" for i in range(1, bits + 1)]
    return recipe.dataset(
        pulses,
        _last_pulse(pulses),
        channels=(names, names),
        epoch=repeat(["pulses"], [steps]),
        criterion=("value", 0.5),
        options={
            "bits": bits,
            "probability": float(probability),
            "noise": recipe.noise,
            "steps": steps,
        },
    )


def _last_pulse(pulses: np.ndarray) -> np.ndarray:
    """Sign of the last pulse (trial, time, bit) up to each step, 0 before the first."""
    time = np.arange(pulses.shape[1])[None, :, None]
    # Before its first pulse a bit takes what is at the first step, which is 0 then.
    latest = np.maximum.accumulate(np.where(pulses != 0, time, 0), axis=1)
    return np.take_along_axis(pulses, latest, axis=1)
