"""Tasks on streams of real numbers: flip-flop, integration and forecast."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from kpops.scalars import check_real
from kpops.tasks.trials import NOISE, Recipe, Rng, at_least, repeat

# Scale of the generator of rotations: the fastest turns by about twice this angle per step.
_SPEED = 0.15


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
    bits : int
        Number of independent channels.
    probability : float
        Probability of a pulse at a step of a channel; a pulse is +1 or -1 with equal chance.
    steps : int
        Time steps of a trial.
    n_trials, noise, rng, dtype
        As for :func:`memory_pro`, as are the errors raised; the default noise is that of training
        in the KPFlow paper.

    Returns
    -------
    Dataset
        As for :func:`memory_pro`, without ``angle``. The channels are ``bit 1``, ``bit 2``, ...;
        the whole trial is the epoch ``pulses``.

    Notes
    -----
    With pulses u[t] in {-1, 0, 1}, the target of a bit is y[t] = u[t] where there is a pulse, else
    y[t] = y[t-1]. It starts from y[0] = 0: a bit has no sign before its first pulse.

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
    # The step of the latest pulse; before the first one step 0, whose value is 0 then.
    time = np.arange(steps)[None, :, None]
    latest = np.maximum.accumulate(np.where(pulses != 0, time, 0), axis=1)
    names = [f"bit {i}" for i in range(1, bits + 1)]
    return recipe.dataset(
        pulses,
        np.take_along_axis(pulses, latest, axis=1),
        repeat(["pulses"], [steps]),
        channels=(names, names),
        criterion=("value", 0.5),
        options={
            "bits": bits,
            "probability": float(probability),
            "noise": recipe.noise,
            "steps": steps,
        },
    )


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
    drive : {"random", "even"}
        What is integrated: a standard normal number at each step, or a constant in each trial, such
        that the final integrals are evenly spaced from -2 to 2 (the evaluation set).
    steps : int
        Time steps of a trial.
    n_trials, noise, rng, dtype
        As for :func:`memory_pro`, as are the errors raised. The noise does not enter the target.

    Returns
    -------
    Dataset
        As for :func:`memory_pro`, with the input ``drive`` and the output ``integral``. In place of
        ``angle``, the coordinate ``total`` (trial) is the final integral; the whole trial is the
        epoch ``integration``.

    Notes
    -----
    With a drive u and T steps the target is y[t] = (u[1] + ... + u[t]) / sqrt(T). Under the random
    drive it is a random walk with var y[t] = t/T, whatever the length of the trial. To integrate
    every drive, a network needs a line of states that rest without input: a line attractor (Seung,
    How the brain keeps the eyes still, PNAS 93, 1996). A perfect linear integrator also integrates
    the noise, so that its mean squared error is noise^2 t/T.

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
        repeat(["integration"], [steps]),
        channels=(["drive"], ["integral"]),
        criterion=("relative error", 0.2),
        conditions={"total": (targets[:, -1, 0], "final integral", "1")},
        options={"drive": drive, "noise": recipe.noise, "steps": steps},
    )


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
    """Trials of a forecast: predict an observation from noisy ones so far.

    Parameters
    ----------
    channels : int
        Number of observed channels N.
    latents : int
        Number of latent variables r, from 2 to `channels`: the rank of clean observations.
    horizon : int
        Number of steps by which the target lies ahead.
    starts : {"random", "even"}
        Latent start of each trial: standard normal, or evenly spaced on a circle in the plane of
        the first two latent variables (the evaluation set).
    steps : int
        Time steps of a trial.
    system : int
        Seed of the dynamics and the observation. Give training and evaluation sets the same
        `system`, `channels` and `latents`, so that they come from the same system.
    n_trials, noise, rng, dtype
        As for :func:`memory_pro`, as are the errors raised.

    Returns
    -------
    Dataset
        As for :func:`memory_pro`. The channels are ``channel 1``, ...; in place of ``angle``, the
        coordinate ``start`` (trial, latent) is the latent state at time 1; the whole trial is the
        epoch ``forecast``.

    Notes
    -----
    The generative model is

        z[1] ~ N(0, I_r),    z[t+1] = F z[t],    x[t] = C z[t],

    with inputs x[t] + noise and targets x[t + horizon], free of noise. F = (I - A)^-1 (I + A), the
    Cayley transform of a random antisymmetric A, is a rotation. So z[t] ~ N(0, I_r) at all times,
    and nothing decays; the rotation angles per step reach about 0.3 rad. C has orthogonal columns,
    scaled such that an entry of x has unit variance on the average of the channels. The targets
    are a linear function of the present clean input, x[t + h] = C F^h C^+ x[t], of rank r; under
    noise, a network does better by averaging over the past.

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
        repeat(["forecast"], [steps]),
        channels=(names, names),
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
