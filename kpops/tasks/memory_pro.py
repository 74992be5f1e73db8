"""See a stimulus, wait, respond to it: Memory-Pro and its variants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from kpops.tasks.trials import ANGLE_TOLERANCE, NOISE, Recipe, Rng, at_least, lengths_of, repeat

_EPOCHS = ("stimulus", "memory", "response")
_CHANNELS = ("fixation", "cos", "sin")


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
        Source of all random numbers. The noise is drawn last, so that nothing else depends on it.
    dtype : {"float32", "float64"}
        Of inputs and targets. The numbers are drawn in float64 and rounded.

    Returns
    -------
    Dataset
        ``inputs`` (trial, time, input), ``targets`` (trial, time, output) and ``mask`` (trial,
        time), which is True everywhere. Coordinates: ``trial`` from 0, ``time`` from 1, ``input``
        and ``output`` channel names, ``epoch`` (time), ``angle`` (trial) in radians, ``task``
        (trial).

    Raises
    ------
    ValueError
        If an argument is out of range, or the given angles have the wrong shape.

    See Also
    --------
    memory_anti, delay_pro, delay_anti : Its variants.
    four_task_mix : The four together, after a context that names the task.
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
    return _respond(Recipe("memory_pro", n_trials, noise, rng, dtype), angles, steps)


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

    Parameters, result and errors are those of :func:`memory_pro`, with the angles of the stimuli
    and negated (cos, sin) targets.

    Examples
    --------
    >>> from kpops.tasks import memory_anti
    >>> task = memory_anti(4, angles="even", noise=0)
    >>> task.targets.isel(trial=0).sel(time=90).values  # angle 0, response at 180 degrees
    array([ 0., -1., -0.], dtype=float32)
    """
    return _respond(Recipe("memory_anti", n_trials, noise, rng, dtype), angles, steps, anti=True)


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

    Parameters, result and errors are those of :func:`memory_pro`, with the (cos, sin) inputs
    shown in all epochs. The epoch before the response is called ``memory`` here too, so that the
    times of the four tasks agree, although there is nothing to remember.

    Examples
    --------
    >>> from kpops.tasks import delay_pro
    >>> task = delay_pro(4, angles="even", noise=0)
    >>> task.inputs.isel(trial=0).sel(time=90).values
    array([0., 1., 0.], dtype=float32)
    """
    return _respond(Recipe("delay_pro", n_trials, noise, rng, dtype), angles, steps, stays_on=True)


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

    Parameters, result and errors are those of :func:`memory_pro`, with the angles of the stimuli,
    the (cos, sin) inputs of :func:`delay_pro` and negated (cos, sin) targets.

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


def memory_pro_one_hot(
    n_trials: int,
    *,
    n_stimuli: int = 30,
    stimuli: str = "random",
    noise: float = NOISE,
    steps: Sequence[int] = (30, 30, 30),
    rng: Rng = None,
    dtype: str = "float32",
) -> xr.Dataset:
    """Trials of Memory-Pro with a channel for each stimulus, instead of angles.

    Parameters
    ----------
    n_stimuli : int
        Number of stimuli, each with an input and an output channel.
    stimuli : {"random", "even"}
        Stimulus of each trial: drawn uniformly, or 1, 2, ... in turn (the evaluation set).
    n_trials, noise, steps, rng, dtype
        As for :func:`memory_pro`, as are the errors raised.

    Returns
    -------
    Dataset
        As for :func:`memory_pro`, with the channels ``fixation``, ``stimulus 1``, ... in inputs
        and outputs, and the coordinate ``stimulus`` (trial), from 1, in place of ``angle``.

    Notes
    -----
    The stimuli have no geometry: all pairs are equally far apart, while those of
    :func:`memory_pro` lie on a circle. So the inputs have rank `n_stimuli`, and the rank of K can
    grow with it.

    Examples
    --------
    >>> from kpops.tasks import memory_pro_one_hot
    >>> task = memory_pro_one_hot(4, n_stimuli=3, stimuli="even", noise=0)
    >>> task.stimulus.values
    array([1, 2, 3, 1])
    >>> task.targets.isel(trial=1).sel(time=90).values
    array([0., 0., 1., 0.], dtype=float32)
    """
    recipe = Recipe("memory_pro_one_hot", n_trials, noise, rng, dtype)
    (n_stimuli,) = at_least(1, n_stimuli=n_stimuli)
    lengths = lengths_of(steps, _EPOCHS)
    if stimuli == "random":
        which = recipe.generator.integers(n_stimuli, size=recipe.n_trials)
    elif stimuli == "even":
        which = np.arange(recipe.n_trials) % n_stimuli
    else:
        raise ValueError(f"stimuli={stimuli!r}: use 'random' or 'even'")
    shown = np.eye(n_stimuli)[which]
    channels = ("fixation", *(f"stimulus {i}" for i in range(1, n_stimuli + 1)))
    return recipe.dataset(
        *_cue_and_response(shown, shown, lengths),
        channels=(channels, channels),
        criterion=("choice", 0.0),
        conditions={"stimulus": (which + 1, "stimulus shown", "1")},
        options={
            "n_stimuli": n_stimuli,
            "stimuli": stimuli,
            "noise": recipe.noise,
            "steps": lengths,
        },
    )


def _respond(
    recipe: Recipe,
    angles: str | ArrayLike,
    steps: Sequence[int],
    *,
    anti: bool = False,
    stays_on: bool = False,
) -> xr.Dataset:
    lengths = lengths_of(steps, _EPOCHS)
    angle = recipe.angles(angles)
    shown = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    response = -shown if anti else shown
    return recipe.dataset(
        *_cue_and_response(shown, response, lengths, stays_on=stays_on),
        channels=(_CHANNELS, _CHANNELS),
        criterion=("angle", ANGLE_TOLERANCE),
        conditions={"angle": (angle, "stimulus angle", "rad")},
        options={
            "angles": angles if isinstance(angles, str) else "given",
            "noise": recipe.noise,
            "steps": lengths,
        },
    )


def _cue_and_response(
    shown: np.ndarray, response: np.ndarray, lengths: Sequence[int], *, stays_on: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clean inputs and targets (trial, time, 1 + k) of stimuli (trial, k), and the epochs.

    The first channel is the fixation: 1 until the response, in inputs and targets.
    """
    epoch = repeat(_EPOCHS, lengths)
    shape = (len(shown), len(epoch), 1 + shown.shape[1])
    inputs, targets = np.zeros(shape), np.zeros(shape)
    inputs[..., 0] = targets[..., 0] = epoch != "response"
    inputs[..., 1:] = np.where(stays_on | (epoch == "stimulus")[:, None], shown[:, None, :], 0)
    targets[..., 1:] = np.where((epoch == "response")[:, None], response[:, None, :], 0)
    return inputs, targets, epoch
