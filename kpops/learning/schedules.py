"""When a training keeps a checkpoint, and when it stops."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from kpops.maturity import experimental

Keep = Callable[[int], bool]
Stop = Callable[[int, Sequence[float]], bool]


@experimental
def logarithmic(per_decade: int = 10) -> Keep:
    """Checkpoint schedule with a constant number of steps per decade.

    Parameters
    ----------
    per_decade : int
        Steps that are kept between one power of ten and the next.

    Returns
    -------
    callable
        For ``checkpoint_every`` of :func:`kpops.training.train`: ``keep(step) -> bool``.

    Raises
    ------
    ValueError
        If `per_decade` is below 1.

    Notes
    -----
    With m per decade, the steps kept are those nearest to 10^(k/m), k = 0, 1, 2, ..., each once.
    They do not depend on where the training ends, so that a longer training keeps the same ones.

    Examples
    --------
    >>> from kpops.training import logarithmic
    >>> keep = logarithmic(4)
    >>> [step for step in range(1, 1001) if keep(step)]
    [1, 2, 3, 6, 10, 18, 32, 56, 100, 178, 316, 562, 1000]
    """
    if per_decade < 1:
        raise ValueError(f"per_decade={per_decade}: pass 1 or more steps per decade")

    def keep(step: int) -> bool:
        # If any 10^(k/m) rounds to the step, then one of the two next to it on either side does.
        exponent = per_decade * math.log10(step) if step > 0 else 0.0
        neighbours = (math.floor(exponent), math.ceil(exponent))
        return any(round(10 ** (k / per_decade)) == step for k in neighbours)

    return keep


@experimental
def mean_below(loss: float, window: int = 100) -> Stop:
    """Stop criterion on the running mean of the loss, which a single lucky minibatch does not meet.

    Parameters
    ----------
    loss : float
        Stop when the mean is at or below this.
    window : int
        Number of latest steps in the mean. Before there are so many the criterion is not met.

    Returns
    -------
    callable
        For ``stop`` of :func:`kpops.training.train`: ``stop(step, losses) -> bool``.

    Raises
    ------
    ValueError
        If `window` is below 1 or `loss` is not finite.

    Examples
    --------
    >>> from kpops.training import mean_below
    >>> stop = mean_below(0.5, window=2)
    >>> stop(0, [0.1]), stop(1, [0.1, 1.0]), stop(2, [0.1, 1.0, 0.0])
    (False, False, True)
    """
    if not math.isfinite(loss):
        raise ValueError(f"loss={loss}: pass a finite loss")
    if window < 1:
        raise ValueError(f"window={window}: pass a window of 1 step or more")

    def stop(step: int, losses: Sequence[float]) -> bool:
        return len(losses) >= window and float(np.mean(losses[-window:])) <= loss

    return stop


def schedule(checkpoint_every: int | Iterable[int] | Keep) -> Keep:
    """Whether a step's checkpoint is kept, from what `train` was given."""
    if callable(checkpoint_every):
        return checkpoint_every
    try:
        if isinstance(checkpoint_every, Iterable):
            return {operator.index(step) for step in checkpoint_every}.__contains__
        every = operator.index(checkpoint_every)
    except TypeError as error:
        raise TypeError(
            f"checkpoint_every={checkpoint_every!r}: pass a distance between steps, the steps, or "
            "a callable keep(step) -> bool such as kpops.training.logarithmic()"
        ) from error
    if every < 1:
        raise ValueError(f"checkpoint_every={every}: pass 1 or more, or the steps")
    return lambda step: step % every == 0
