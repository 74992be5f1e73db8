"""Continuous integration: output the running integral of the input, on a line attractor."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from kpops.maturity import experimental
from kpops.tasks.trials import Recipe, Rng, at_least, repeat


@experimental
def integration(
    n_trials: int,
    *,
    drive: str = "random",
    noise: float = 0.03 * math.sqrt(2),
    steps: int = 90,
    rng: Rng = None,
    dtype: str = "float32",
) -> xr.Dataset:
    """Trials of the integrator: the target is the running integral of the input.

    Parameters
    ----------
    n_trials : int
        Number of trials.
    drive : {"random", "even"}
        What is to be integrated: a standard normal number at each step, or a constant of the
        trial, such that the final integrals are evenly spaced from -2 to 2 (the evaluation set).
    noise : float
        Standard deviation of the Gaussian noise on the input, which is no part of the target;
        evaluate with ``noise=0``.
    steps : int
        Time steps of a trial.
    rng : int, Generator or None
        Source of the drive and the noise, in this order.
    dtype : {"float32", "float64"}
        Of inputs and targets.

    Returns
    -------
    Dataset
        ``inputs`` (trial, time, input) with the channel ``drive``, ``targets`` (trial, time,
        output) with the channel ``integral``, ``mask`` (trial, time), True everywhere. The
        coordinate ``total`` (trial) is the final integral; the whole trial is the epoch
        ``integration``. Other coordinates as of :func:`memory_pro`.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    With a drive u and T steps the target is y[t] = (u[1] + ... + u[t]) / sqrt(T). Under the random
    drive it is a random walk with var y[t] = t/T, whatever the length of the trial. To do it for
    every drive, a network needs a line of states each of which stays where it is without input:
    a line attractor (Seung, How the brain keeps the eyes still, PNAS 93, 1996). A perfect linear
    integrator also integrates the noise, which leaves it a mean squared error of noise^2 t/T.

    Examples
    --------
    >>> from kpops.tasks import integration
    >>> task = integration(5, drive="even", noise=0, steps=4, dtype="float64")
    >>> task.total.values
    array([-2., -1.,  0.,  1.,  2.])
    >>> task.inputs.values[3].ravel(), task.targets.values[3].ravel()
    (array([0.5, 0.5, 0.5, 0.5]), array([0.25, 0.5 , 0.75, 1.  ]))
    """
    recipe = Recipe("integration", n_trials, noise, rng, dtype)
    (steps,) = at_least(1, steps=steps)
    shape = (recipe.n_trials, steps, 1)
    if drive == "random":
        clean = recipe.generator.standard_normal(shape)
    elif drive == "even":
        totals = np.linspace(-2, 2, recipe.n_trials) if recipe.n_trials > 1 else np.zeros(1)
        clean = np.broadcast_to(totals[:, None, None] / math.sqrt(steps), shape)
    else:
        raise ValueError(f"drive={drive!r}: use 'random' or 'even'")
    targets = clean.cumsum(axis=1) / math.sqrt(steps)
    return recipe.dataset(
        clean,
        targets,
        channels=(["drive"], ["integral"]),
        epoch=repeat(["integration"], [steps]),
        criterion=("relative error", 0.2),
        conditions={"total": (targets[:, -1, 0], "final integral", "1")},
        options={"drive": drive, "noise": recipe.noise, "steps": steps},
    )
