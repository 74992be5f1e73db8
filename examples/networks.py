"""The trained networks of the gallery, from one resumable script.

``python examples/networks.py`` (``make checkpoints``) trains those that are missing, and continues
where it was interrupted. Checkpoints are kept outside the repository, in ``~/.cache/kpops`` or in
the folder named by the environment variable ``KPOPS_CACHE``. The examples call :func:`trained`,
which trains what is missing; a network of the gallery takes a minute at most. The smallest networks
come with the repository, in ``examples/checkpoints``.
"""

import argparse
import functools
import os
import shutil
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr

import kpops

REPOSITORY = Path(__file__).resolve().parents[1]
COMMITTED = REPOSITORY / "examples" / "checkpoints"
CACHE = Path(os.environ.get("KPOPS_CACHE", Path.home() / ".cache" / "kpops")) / "checkpoints"

TASKS = {
    "memory_pro": kpops.tasks.memory_pro,
    "flip_flop": kpops.tasks.flip_flop,
    "four_tasks": kpops.tasks.four_task_mix,
}
RECURRENT = {"gru": torch.nn.GRU, "rnn": torch.nn.RNN}


@dataclass(frozen=True)
class Training:
    """A network and its training."""

    task: str
    cell: str
    units: int
    seed: int
    g: float = 1.0  # times PyTorch's own recurrent weights, as in the paper
    n_trials: int = 5000
    batch_size: int = 64
    learning_rate: float = 1e-3
    max_steps: int = 2000
    checkpoint_every: int = 50

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.task}-{self.cell}-{self.units}-g{self.g:g}-seed{self.seed}"

    def network(self) -> kpops.Network:
        """The untrained network."""
        task = TASKS[self.task](4, rng=0)
        generator = np.random.default_rng((self.seed, zlib.crc32(self.cell.encode())))
        with torch.random.fork_rng([]):  # the weights depend on the seed alone
            torch.manual_seed(int(generator.integers(2**63)))
            recurrent = RECURRENT[self.cell](task.sizes["input"], self.units)
            readout = torch.nn.Linear(self.units, task.sizes["output"])
        if self.g != 1:
            kpops.models.initialize_recurrent(
                recurrent, self.g, distribution="uniform", rng=generator
            )
        return kpops.Network(recurrent, readout)


def _gallery() -> dict[str, list[Training]]:
    small = functools.partial(Training, units=64, n_trials=2000, batch_size=100, learning_rate=2e-3)
    return {
        "collapse": [small("memory_pro", "gru", seed=0, max_steps=800)],
        "flip-flop": [small("flip_flop", "gru", seed=0, max_steps=800)],
        "interference": [small("four_tasks", "gru", seed=s, max_steps=1500) for s in range(5)],
        "g": [
            small("memory_pro", "rnn", seed=0, g=g, max_steps=600, checkpoint_every=100)
            for g in (0.5, 1.0, 2.0, 3.0)
        ],
    }


GALLERY = _gallery()


class Trained(NamedTuple):
    """A trained network, how it was trained, its checkpoints and the loss of every iteration."""

    network: kpops.Network
    training: Training
    folder: Path
    history: xr.Dataset


def trained(training: Training, *, progress: bool = False) -> Trained:
    """Train a network, or continue or read an existing training."""
    network, folder = training.network(), CACHE / training.name
    if (COMMITTED / training.name).exists() and not folder.exists():
        shutil.copytree(COMMITTED / training.name, folder)
    history = kpops.training.train(
        network,
        TASKS[training.task](training.n_trials, rng=training.seed),
        folder=folder,
        max_steps=training.max_steps,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        checkpoint_every=training.checkpoint_every,
        rng=training.seed,
        progress=progress,
    )
    return Trained(network, training, folder, history)


def main() -> None:
    """Train all networks, or those of one group."""
    parser = argparse.ArgumentParser(description="Train the networks of the gallery.")
    parser.add_argument("groups", nargs="*", help=f"of {', '.join(GALLERY)}, or their beginnings")
    parser.add_argument("--progress", action="store_true", help="show a bar for each network")
    options = parser.parse_args()
    wanted = [g for g in GALLERY if not options.groups or g.startswith(tuple(options.groups))]
    print(f"checkpoints in {CACHE}")
    for group in wanted:
        for training in GALLERY[group]:
            start = time.perf_counter()
            history = trained(training, progress=options.progress).history
            steps, loss = history.sizes["step"] - 1, float(history.loss[-50:].mean())
            seconds = time.perf_counter() - start
            print(
                f"{group:22} {training.name:34} {steps:6} iterations, loss {loss:.4f}, "
                f"{seconds:6.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
