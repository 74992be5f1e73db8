"""Short trainings of small networks, in memory, for the findings that no paper has."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import kpops

CELLS = {"gru": torch.nn.GRU, "rnn": torch.nn.RNN, "lstm": torch.nn.LSTM}


def network(cell: str, task: xr.Dataset, units: int, seed: int, g: float = 1.0) -> kpops.Network:
    """An untrained network for a task; g times PyTorch's own recurrent weights."""
    generator = np.random.default_rng((seed, zlib.crc32(cell.encode())))
    with torch.random.fork_rng([]):
        torch.manual_seed(int(generator.integers(2**63)))
        recurrent = CELLS[cell](task.sizes["input"], units, batch_first=True)
        readout = torch.nn.Linear(units, task.sizes["output"])
    kpops.models.initialize_recurrent(recurrent, g, distribution="uniform", rng=generator)
    return kpops.Network(recurrent, readout)


def tensors(task: xr.Dataset, like: kpops.Network) -> tuple[Tensor, Tensor]:
    """Inputs and targets in the dtype of a network."""
    dtype = next(like.parameters()).dtype
    return tuple(torch.as_tensor(task[name].values, dtype=dtype) for name in ("inputs", "targets"))


def train(
    model: kpops.Network,
    task: xr.Dataset,
    steps: int,
    *,
    learning_rate: float,
    batch_size: int,
    seed: int,
) -> Iterator[int]:
    """Train by Adam on minibatches of noisy trials; yields 0, 1, ..., `steps` before each update.

    Between two of them the caller may look at the model, and may stop.
    """
    inputs, targets = tensors(task, model)
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    generator = np.random.default_rng(seed)
    for step in range(steps):
        yield step
        chosen = torch.from_numpy(generator.choice(len(inputs), batch_size, replace=False))
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(inputs[chosen]), targets[chosen]).backward()
        optimizer.step()
    yield steps


def loss(model: kpops.Network, task: xr.Dataset) -> float:
    """Mean squared error on a task."""
    inputs, targets = tensors(task, model)
    with torch.no_grad():
        return float(torch.nn.functional.mse_loss(model(inputs), targets))


def blind_loss(task: xr.Dataset) -> float:
    """Loss of a network that keeps fixation, if there is one, and answers 0 otherwise.

    In Memory-Pro it is the loss of the best network without a memory.
    """
    others = [str(name) for name in task.output.values if name != "fixation"]
    squared = task.targets.sel(output=others).astype(float) ** 2
    return float(squared.sum() / task.targets.size)
