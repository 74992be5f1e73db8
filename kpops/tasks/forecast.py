"""Low-rank forecast: predict noisy observations of a few rotating latent variables."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from kpops.maturity import experimental
from kpops.tasks.trials import NOISE, Recipe, Rng, at_least, repeat

# Scale of the generator of rotations: the fastest turns about twice this angle per step.
_SPEED = 0.15


@experimental
def low_rank_forecast(
    n_trials: int,
    *,
    channels: int = 100,
    latents: int = 10,
    horizon: int = 1,
    starts: str = "random",
    noise: float = NOISE,
    steps: int = 30,
    system: int = 0,
    rng: Rng = None,
    dtype: str = "float32",
) -> xr.Dataset:
    """Trials of a forecast: from noisy observations so far, tell the observation to come.

    Parameters
    ----------
    n_trials : int
        Number of trials.
    channels : int
        Number of observed channels N.
    latents : int
        Number of latent variables r, between 2 and `channels`: the rank of clean observations.
    horizon : int
        How many steps ahead the target lies.
    starts : {"random", "even"}
        Latent start of each trial: standard normal, or evenly spaced on a circle in the plane of
        the first two latent variables (the evaluation set).
    noise : float
        Standard deviation of the Gaussian noise on every input; evaluate with ``noise=0``.
    steps : int
        Time steps of a trial.
    system : int
        Seed of the dynamics and the observation. Sets with the same `system`, `channels` and
        `latents` are of the same system, as training and evaluation sets must be.
    rng : int, Generator or None
        Source of the starts and the noise, in this order.
    dtype : {"float32", "float64"}
        Of inputs and targets.

    Returns
    -------
    Dataset
        ``inputs`` (trial, time, input), ``targets`` (trial, time, output) and ``mask`` (trial,
        time), True everywhere. The channels are ``channel 1``, ...; the coordinate ``start``
        (trial, latent) is the latent state at time 1; the whole trial is the epoch ``forecast``.
        Other coordinates as of :func:`memory_pro`.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    The generative model is

        z[1] ~ N(0, I_r),    z[t+1] = F z[t],    x[t] = C z[t],

    with inputs x[t] + noise and targets x[t + horizon], free of noise. F = (I - A)^-1 (I + A) is
    the Cayley transform of a random antisymmetric A, a rotation, so that z[t] ~ N(0, I_r) at
    all times and nothing decays; the rotation angles per step reach about 0.3 rad. C has
    orthogonal columns, scaled such that an entry of x has unit variance on the average of the
    channels. The targets are a linear function of the present clean input,
    x[t + h] = C F^h C^+ x[t], of rank r; a network does better than this under noise by averaging
    over the past.

    Examples
    --------
    >>> import numpy as np
    >>> from kpops.tasks import low_rank_forecast
    >>> task = low_rank_forecast(50, channels=20, latents=3, noise=0, rng=0, dtype="float64")
    >>> np.linalg.matrix_rank(task.inputs.values.reshape(-1, 20))
    np.int64(3)
    >>> np.allclose(task.targets[:, :-1], task.inputs[:, 1:])  # one step ahead
    True
    """
    recipe = Recipe("low_rank_forecast", n_trials, noise, rng, dtype)
    horizon, steps = at_least(1, horizon=horizon, steps=steps)
    (latents,) = at_least(2, latents=latents)
    (channels,) = at_least(latents, channels=channels)
    start = _starts(recipe, starts, latents)
    rotation, observation = _system(system, channels, latents)
    latent = np.empty((recipe.n_trials, steps + horizon, latents))
    latent[:, 0] = start
    for t in range(1, steps + horizon):
        latent[:, t] = latent[:, t - 1] @ rotation.T
    observed = latent @ observation.T
    names = [f"channel {i}" for i in range(1, channels + 1)]
    task = recipe.dataset(
        observed[:, :steps],
        observed[:, horizon:],
        channels=(names, names),
        epoch=repeat(["forecast"], [steps]),
        criterion=("relative error", 0.2),
        options={
            "channels": channels,
            "latents": latents,
            "horizon": horizon,
            "starts": starts,
            "noise": recipe.noise,
            "steps": steps,
            "system": system,
        },
    )
    labels = {"long_name": "latent variable", "units": "1"}
    return task.assign_coords(
        latent=("latent", np.arange(1, latents + 1), labels),
        start=(("trial", "latent"), start, {"long_name": "latent start", "units": "1"}),
    )


def _starts(recipe: Recipe, starts: str, latents: int) -> np.ndarray:
    shape = (recipe.n_trials, latents)
    if starts == "random":
        return recipe.generator.standard_normal(shape)
    if starts == "even":
        angle, start = recipe.angles("even"), np.zeros(shape)
        # The radius is the root mean square of the random starts.
        start[:, :2] = math.sqrt(latents) * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        return start
    raise ValueError(f"starts={starts!r}: use 'random' or 'even'")


def _system(seed: int, channels: int, latents: int) -> tuple[np.ndarray, np.ndarray]:
    """The rotation F (latent, latent) and the observation C (channel, latent)."""
    generator = np.random.default_rng(seed)
    gaussian = generator.standard_normal((latents, latents))
    antisymmetric = (gaussian - gaussian.T) / math.sqrt(2) * _SPEED / (2 * math.sqrt(latents))
    identity = np.eye(latents)
    rotation = np.linalg.solve(identity - antisymmetric, identity + antisymmetric)
    frame, _ = np.linalg.qr(generator.standard_normal((channels, latents)))
    return rotation, frame * math.sqrt(channels / latents)
