"""See an angle, wait, respond with it: Memory-Pro and its Anti and Delay variants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from kpops.tasks.trials import ANGLE_TOLERANCE, NOISE, Recipe, Rng, lengths_of, repeat

EPOCHS = ("stimulus", "memory", "response")
CHANNELS = ("fixation", "cos", "sin")


def memory_pro(
    n_trials: int,
    *,
    angles: str | ArrayLike = "random",
    noise: float = NOISE,
    steps: Sequence[int] = (30, 30, 30),
    rng: Rng = None,
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

    See Also
    --------
    memory_anti, delay_pro, delay_anti : Its variants.
    four_task_mix : The four together, with a context that tells which is asked for.
    driscoll : Memory-Pro as one of the 15 tasks of Driscoll et al., with their timing and inputs.

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
    recipe = Recipe("memory_pro", n_trials, noise, rng, dtype)
    return _respond(recipe, angles, steps)


def memory_anti(
    n_trials: int,
    *,
    angles: str | ArrayLike = "random",
    noise: float = NOISE,
    steps: Sequence[int] = (30, 30, 30),
    rng: Rng = None,
    dtype: str = "float32",
) -> xr.Dataset:
    """Trials of Memory-Anti: :func:`memory_pro` with the response opposite to the stimulus.

    Parameters
    ----------
    n_trials, angles, noise, steps, rng, dtype
        As of :func:`memory_pro`; ``angles`` are those of the stimuli.

    Returns
    -------
    Dataset
        As of :func:`memory_pro`, with the (cos, sin) targets negated.

    Raises
    ------
    ValueError
        As :func:`memory_pro`.

    Examples
    --------
    >>> from kpops.tasks import memory_anti
    >>> task = memory_anti(4, angles="even", noise=0)
    >>> task.targets.isel(trial=0).sel(time=90).values  # angle 0, response at 180 degrees
    array([ 0., -1., -0.], dtype=float32)
    """
    recipe = Recipe("memory_anti", n_trials, noise, rng, dtype)
    return _respond(recipe, angles, steps, anti=True)


def delay_pro(
    n_trials: int,
    *,
    angles: str | ArrayLike = "random",
    noise: float = NOISE,
    steps: Sequence[int] = (30, 30, 30),
    rng: Rng = None,
    dtype: str = "float32",
) -> xr.Dataset:
    """Trials of Delay-Pro: :func:`memory_pro` with a stimulus that stays on to the end.

    Parameters
    ----------
    n_trials, angles, noise, steps, rng, dtype
        As of :func:`memory_pro`.

    Returns
    -------
    Dataset
        As of :func:`memory_pro`, with the (cos, sin) inputs shown in all epochs. The epoch
        between stimulus onset and response is called ``memory`` here too, so that the times of
        the four tasks agree, although nothing need be remembered.

    Raises
    ------
    ValueError
        As :func:`memory_pro`.

    Examples
    --------
    >>> from kpops.tasks import delay_pro
    >>> task = delay_pro(4, angles="even", noise=0)
    >>> task.inputs.isel(trial=0).sel(time=90).values
    array([0., 1., 0.], dtype=float32)
    """
    recipe = Recipe("delay_pro", n_trials, noise, rng, dtype)
    return _respond(recipe, angles, steps, stays_on=True)


def delay_anti(
    n_trials: int,
    *,
    angles: str | ArrayLike = "random",
    noise: float = NOISE,
    steps: Sequence[int] = (30, 30, 30),
    rng: Rng = None,
    dtype: str = "float32",
) -> xr.Dataset:
    """Trials of Delay-Anti: :func:`delay_pro` with the response opposite to the stimulus.

    Parameters
    ----------
    n_trials, angles, noise, steps, rng, dtype
        As of :func:`memory_pro`; ``angles`` are those of the stimuli.

    Returns
    -------
    Dataset
        As of :func:`delay_pro`, with the (cos, sin) targets negated.

    Raises
    ------
    ValueError
        As :func:`memory_pro`.

    Examples
    --------
    >>> from kpops.tasks import delay_anti
    >>> task = delay_anti(4, angles="even", noise=0)
    >>> last = task.isel(trial=0).sel(time=90)
    >>> last.inputs.values, last.targets.values
    (array([0., 1., 0.], dtype=float32), array([ 0., -1., -0.], dtype=float32))
    """
    recipe = Recipe("delay_anti", n_trials, noise, rng, dtype)
    return _respond(recipe, angles, steps, anti=True, stays_on=True)


def _respond(
    recipe: Recipe,
    angles: str | ArrayLike,
    steps: Sequence[int],
    *,
    anti: bool = False,
    stays_on: bool = False,
) -> xr.Dataset:
    lengths = lengths_of(steps, EPOCHS)
    angle = recipe.angles(angles)
    shown = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    inputs, targets, epoch = cue_and_response(
        shown, -shown if anti else shown, lengths, stays_on=stays_on
    )
    return recipe.dataset(
        inputs,
        targets,
        channels=(CHANNELS, CHANNELS),
        epoch=epoch,
        criterion=("angle", ANGLE_TOLERANCE),
        conditions={"angle": (angle, "stimulus angle", "rad")},
        options={
            "angles": angles if isinstance(angles, str) else "given",
            "noise": recipe.noise,
            "steps": lengths,
        },
    )


def cue_and_response(
    shown: np.ndarray, response: np.ndarray, lengths: Sequence[int], *, stays_on: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clean inputs and targets (trial, time, 1 + k) of stimuli (trial, k), and the epochs.

    The first channel is the fixation: 1 until the response, in inputs and targets.
    """
    epoch = repeat(EPOCHS, lengths)
    shape = (len(shown), len(epoch), 1 + shown.shape[1])
    inputs, targets = np.zeros(shape), np.zeros(shape)
    responding = (epoch == "response")[:, None]
    inputs[..., 0] = targets[..., 0] = epoch != "response"
    inputs[..., 1:] = np.where(stays_on | (epoch == "stimulus")[:, None], shown[:, None, :], 0)
    targets[..., 1:] = np.where(responding, response[:, None, :], 0)
    return inputs, targets, epoch
