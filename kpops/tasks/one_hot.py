"""Memory-Pro with one channel per stimulus."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from kpops.maturity import experimental
from kpops.tasks.memory_pro import EPOCHS, cue_and_response
from kpops.tasks.trials import NOISE, Recipe, Rng, at_least, lengths_of


@experimental
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
    """Trials of Memory-Pro whose stimuli are channels of their own instead of angles.

    Parameters
    ----------
    n_trials : int
        Number of trials.
    n_stimuli : int
        Number of stimuli, each with an input and an output channel.
    stimuli : {"random", "even"}
        Stimulus of each trial: drawn uniformly, or 1, 2, ... in turn (the evaluation set).
    noise : float
        Standard deviation of the Gaussian noise on every input; evaluate with ``noise=0``.
    steps : sequence of three int
        Time steps of the stimulus, the memory and the response.
    rng : int, Generator or None
        Source of the stimuli and the noise, in this order.
    dtype : {"float32", "float64"}
        Of inputs and targets.

    Returns
    -------
    Dataset
        As of :func:`memory_pro`, with the channels ``fixation``, ``stimulus 1``, ... in inputs
        and outputs, and the coordinate ``stimulus`` (trial), from 1, in place of ``angle``.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    The stimuli have no geometry: any two are as far apart as any others, where those of
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
    lengths = lengths_of(steps, EPOCHS)
    if stimuli == "random":
        which = recipe.generator.integers(n_stimuli, size=recipe.n_trials)
    elif stimuli == "even":
        which = np.arange(recipe.n_trials) % n_stimuli
    else:
        raise ValueError(f"stimuli={stimuli!r}: use 'random' or 'even'")
    shown = np.eye(n_stimuli)[which]
    inputs, targets, epoch = cue_and_response(shown, shown, lengths)
    channels = ("fixation", *(f"stimulus {i}" for i in range(1, n_stimuli + 1)))
    return recipe.dataset(
        inputs,
        targets,
        channels=(channels, channels),
        epoch=epoch,
        criterion=("choice", 0.0),
        conditions={"stimulus": (which + 1, "stimulus shown", "1")},
        options={
            "n_stimuli": n_stimuli,
            "stimuli": stimuli,
            "noise": recipe.noise,
            "steps": lengths,
        },
    )
