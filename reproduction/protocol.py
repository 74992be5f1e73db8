"""How the KPFlow paper trains its networks, by the scripts of its authors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import kpops
from kpops.learning.checkpoints import newest_checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import networks  # type: ignore[import-not-found]

TASKS = {
    "memory_pro": kpops.tasks.memory_pro,
    "short_memory_pro": partial(kpops.tasks.memory_pro, steps=(10, 10, 10)),
    "flip_flop": kpops.tasks.flip_flop,
    "four_tasks": kpops.tasks.four_task_mix,
}


@dataclass(frozen=True)
class Protocol:
    """A task, a network and its training.

    Attributes
    ----------
    task, cell, units, g
        The task of :data:`TASKS`, ``"gru"`` or ``"rnn"``, its units, and the factor of PyTorch's
        own recurrent weights.
    batch_size, n_trials
        Trials of a step, and of the training set.
    learning_rate, clip
        Of Adam, and the largest norm of the gradient, which is scaled down to it; None for none.
    stop_loss, max_steps
        Training ends when the mean of the loss and that of the last multiple of 20 iterations is
        below the first, or after so many iterations.
    """

    task: str
    cell: str = "gru"
    units: int = 256
    g: float = 1.0
    batch_size: int = 200
    n_trials: int = 5000
    learning_rate: float = 1e-3
    clip: float | None = 1e-4
    stop_loss: float = 1e-3
    max_steps: int = 10_000
    checkpoint_every: int = 100

    def network(self, seed: int) -> kpops.Network:
        """The untrained network."""
        task = "memory_pro" if self.task == "short_memory_pro" else self.task
        return networks.Training(task, self.cell, self.units, seed, g=self.g).network()

    def folder(self, seed: int) -> Path:
        """Folder of its checkpoints."""
        settings = {k: v for k, v in asdict(self).items() if k not in ("max_steps", "stop_loss")}
        name = "-".join(f"{value:g}" if isinstance(value, float) else str(value)
                        for value in settings.values())  # fmt: skip
        return networks.CACHE / "protocol" / f"{name}-seed{seed}"

    def train(self, seed: int) -> list[tuple[int, dict[str, torch.Tensor]]]:
        """Train, or go on where a training was interrupted, and return the checkpoints."""
        folder = self.folder(seed)
        if len(self.losses(seed)) <= self.max_steps:
            kpops.training.train(
                self.network(seed),
                TASKS[self.task](self.n_trials, rng=seed),
                folder=folder,
                max_steps=self.max_steps,
                batch_size=self.batch_size,
                learning_rate=self.learning_rate,
                optimizer=partial(clipped_adam, clip=self.clip),
                stop=partial(is_learned, stop_loss=self.stop_loss),
                checkpoint_every=self.checkpoint_every,
                rng=seed,
            )
        saved = kpops.training.checkpoints(folder)
        return [(step, weights) for step, weights in saved if step <= self.max_steps]

    def losses(self, seed: int) -> list[float]:
        """Loss of the minibatch of every iteration so far."""
        newest = newest_checkpoint(self.folder(seed))
        return [] if newest is None else list(newest["loss"])


def clipped_adam(
    params: list[Any], learning_rate: float, clip: float | None = None
) -> torch.optim.Adam:
    """Adam after scaling the gradient of all parameters down to a norm of at most `clip`."""
    optimizer = torch.optim.Adam(params, learning_rate)

    def scale_down(*_: Any) -> None:
        torch.nn.utils.clip_grad_norm_(params, clip)

    if clip is not None:
        optimizer.register_step_pre_hook(scale_down)
    return optimizer


def is_learned(step: int, losses: Sequence[float], stop_loss: float) -> bool:
    """Whether the loss and that of the last multiple of 20 steps are below a loss on average."""
    return step > 40 and (losses[20 * ((step - 1) // 20)] + losses[step]) / 2 < stop_loss
