"""The networks of the page, and the records of their training."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from kpops.learning.checkpoints import newest_checkpoint
from kpops.training import checkpoints

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import networks  # type: ignore[import-not-found]
from networks import Training

MOST_CHECKPOINTS = 18


class Trained(NamedTuple):
    """A network whose training has ended.

    Attributes
    ----------
    training : Training
        The network, and how it was trained.
    losses : ndarray
        Minibatch loss of every iteration.
    radius : float
        Spectral radius of the recurrent weights before training, the largest of the gates'.
    """

    training: Training
    losses: np.ndarray
    radius: float

    @property
    def folder(self) -> Path:
        """The folder of its checkpoints."""
        return networks.CACHE / self.training.name

    def checkpoints(self) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Some of its checkpoints, including the first and the last."""
        saved = checkpoints(self.folder)
        return (saved[i] for i in positions(len(saved)))

    def first_and_last(self) -> tuple[tuple[int, dict[str, Tensor]], tuple[int, dict[str, Tensor]]]:
        """Its checkpoints before and after training."""
        saved = checkpoints(self.folder)
        return saved[0], saved[-1]


def of_paper() -> list[Training]:
    """All networks of the page."""
    return [training for group in networks.PAPER.values() for training in group]


def finished(training: Training) -> Trained | None:
    """The network, or None while its training has not ended."""
    newest = newest_checkpoint(networks.CACHE / training.name)
    if newest is None:
        return None
    stopped = training.stop_loss is not None and newest["loss"][-1] <= training.stop_loss
    if not stopped and newest["step"] < training.max_steps:
        return None
    radius = max(newest["initial_spectral_radius"])
    return Trained(training, np.array(newest["loss"], np.float32), radius)


def positions(count: int, most: int = MOST_CHECKPOINTS) -> list[int]:
    """Positions of at most `most` of `count` checkpoints, including the first and the last.

    They are evenly spaced in the square root of the position, since most happens early.
    """
    if count <= most:
        return list(range(count))
    return np.unique(np.rint((count - 1) * np.linspace(0, 1, most) ** 2).astype(int)).tolist()
