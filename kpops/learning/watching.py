"""Follow a folder of checkpoints that a training is still filling."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kpops.kinds import described
from kpops.learning.analysis import pairs_of
from kpops.learning.checkpoints import FINISHED, PATTERN, Checkpoints
from kpops.learning.checkpoints import checkpoints as read_checkpoints
from kpops.learning.stored_steps import Single
from kpops.maturity import experimental
from kpops.scalars import check_real


@experimental
@dataclass(frozen=True)
class Watch:
    """Until when :func:`kpops.over_training` follows a folder, and how often it looks.

    Parameters
    ----------
    marker : str
        Name of a file in the folder. When it is there, the checkpoints found are the last ones.
        :func:`kpops.training.train` writes ``finished`` at its end.
    seconds : float
        End after this time, too; by default never.
    pause : float
        Seconds between two looks at the folder, when there is nothing to measure.

    Raises
    ------
    ValueError
        If a time is negative or not a number.
    TypeError
        If an argument has the wrong type.

    Examples
    --------
    >>> from kpops.training import Watch
    >>> Watch("DONE", seconds=24 * 3600)
    Watch(marker='DONE', seconds=86400, pause=1.0)
    """

    marker: str = FINISHED
    seconds: float = math.inf
    pause: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.marker, str):
            raise TypeError(f"marker is {described(self.marker)}: pass the name of a file")
        for name in ("seconds", "pause"):
            value = getattr(self, name)
            check_real(name, value)
            if not value >= 0:
                raise ValueError(f"{name}={value}: pass a time of 0 or more seconds")


def found(checkpoints: Any, watch: bool | Watch, at_once: bool) -> Any:
    """Checkpoints that other processes can read, too, and that can be followed if need be."""
    if not isinstance(watch, bool | Watch):
        raise TypeError(f"watch is {described(watch)}: pass True or a kpops.training.Watch")
    if isinstance(checkpoints, str | os.PathLike):
        folder = Path(checkpoints).absolute()
        if not watch:
            return read_checkpoints(folder)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"folder '{folder}' does not exist: make it, or pass the folder given to train"
            )
        return Checkpoints({}, found_by=(folder, PATTERN, None))
    if watch and not (isinstance(checkpoints, Checkpoints) and checkpoints.folder):
        raise TypeError(
            f"watch follows a folder, and checkpoints is {described(checkpoints)}: pass the folder "
            "or all that kpops.training.checkpoints returns"
        )
    is_iterable = isinstance(checkpoints, Iterable) and not isinstance(
        checkpoints, Mapping | Checkpoints
    )
    return list(checkpoints) if at_once and is_iterable and not watch else checkpoints


def batches(
    checkpoints: Any, watch: bool | Watch, done: Collection[int], in_order: bool
) -> Iterator[dict[int, Single]]:
    """Checkpoints by their steps, as they come: all at once, one by one, or while they appear."""
    if isinstance(checkpoints, Checkpoints):
        whole: Iterable[Checkpoints] = [checkpoints]
        if watch:
            watch = Watch() if watch is True else watch
            whole = followed(checkpoints, watch, done, in_order)
        for part in whole:
            yield {step: part.at([step]) for step in part.steps}
    elif isinstance(checkpoints, Sequence):
        yield {step: [(step, state)] for step, state in pairs_of(checkpoints)}
    else:
        for step, state in pairs_of(checkpoints):
            yield {step: [(step, state)]}


def followed(
    checkpoints: Checkpoints, watch: Watch, done: Collection[int], in_order: bool
) -> Iterator[Checkpoints]:
    """Checkpoints as they appear in their folder, each once, until the end of the watch.

    A file that cannot be read is taken for half written, and waits; at the end it is returned as it
    is. With `in_order`, later ones wait for it. Those `done` are not read.
    """
    folder, end = checkpoints.folder, time.monotonic() + watch.seconds
    assert folder is not None
    seen = set[int]()
    while True:
        # Looked at before the folder, so that no checkpoint comes between.
        is_last = (folder / watch.marker).exists() or time.monotonic() >= end
        current, ready = checkpoints.again(), list[int]()
        for step in current.steps:
            if step in seen:
                continue
            if is_last or step in done or _is_readable(current.at([step])):
                ready.append(step)
            elif in_order:
                break
        seen.update(ready)
        if ready:
            yield current.at(ready)
        if is_last:
            return
        if not ready:
            time.sleep(min(watch.pause, max(0.0, end - time.monotonic())))


def _is_readable(checkpoint: Checkpoints) -> bool:
    try:
        checkpoint[0]
    except OSError:
        return False
    except Exception:  # whole, and refused by name when it is measured
        return True
    return True
