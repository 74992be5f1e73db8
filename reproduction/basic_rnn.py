"""The RNN without biases of arXiv 2605.08746: its start, fixed points in it, its training."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

import kpops


class BasicRNN(nn.Module):
    """``h <- (1 - alpha) h + alpha (W tanh h + U x)``, and an affine readout.

    W and the readout start uniform in ``+-1/sqrt(units)`` and U in ``+-1/sqrt(inputs)``, as those
    of ``nn.Linear``; then W is multiplied by `g`.

    Attributes
    ----------
    cell : kpops.models.LeakyCell
    readout : nn.Linear
    """

    def __init__(self, units: int, seed: int, *, g: float = 1.0, alpha: float = 0.7) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.cell = kpops.models.LeakyCell(3, units, alpha=alpha, form="current", bias=False)
            nn.init.uniform_(self.cell.weight_ih, -(3**-0.5), 3**-0.5)
            self.readout = nn.Linear(units, 3)
        with torch.no_grad():
            self.cell.weight_hh *= g

    def states(self, inputs: Tensor) -> Tensor:
        """States (trial, time, unit): the cell's own steps, in fewer operations."""
        alpha, W = self.cell.alpha, self.cell.weight_hh.T
        h = inputs.new_zeros(len(inputs), W.shape[0])
        found = []
        for drive in (inputs @ self.cell.weight_ih.T).unbind(1):
            h = torch.lerp(h, torch.addmm(drive, h.tanh(), W), alpha)
            found.append(h)
        return torch.stack(found, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (trial, time, output)."""
        return self.readout(self.states(inputs))

    def linearize(self, inputs: xr.DataArray) -> kpops.Linearization:
        """Linearise at the trajectories for some inputs, in float64."""
        return kpops.linearize(
            self.cell, inputs, readout=self.readout, dtype=torch.float64, engine="gated"
        )


def plant(W: Tensor, points: Iterable[Tensor]) -> Tensor:
    """Change recurrent weights so that ``W tanh d = d`` for each point d, one after another.

    ``W <- W + (d - W s) s^T / |s|^2`` with ``s = tanh d``. The last point is then a fixed point
    without inputs; earlier ones nearly are, as far as the s are orthogonal.
    """
    for point in points:
        s = point.tanh()
        W = W + torch.outer(point - W @ s, s) / s.dot(s)
    return W


def memoryless_loss(task: xr.Dataset) -> float:
    """Least mean squared error of outputs that depend on the present input alone.

    The best output at an input is the mean of the targets of all (trial, time) that have it. In
    Memory-Pro all trials share the input of the response, where the mean of (cos, sin) over the
    angles is zero, and all other targets are functions of the input. What is left is the variance
    of (cos, sin), which is 1 in a third of the steps, over three outputs: 1/9.
    """
    inputs = task.inputs.values.reshape(-1, task.sizes["input"]).round(9)
    targets = task.targets.values.reshape(-1, task.sizes["output"])
    _, group = np.unique(inputs, axis=0, return_inverse=True)
    members = np.eye(group.max() + 1)[group.reshape(-1)]
    means = (members.T @ targets) / members.sum(0)[:, None]
    return float(((targets - members @ means) ** 2).mean())


def descend(
    network: BasicRNN,
    seed: int,
    *,
    rate: float,
    batch: int,
    at: Sequence[int],
    optimizer: Any = "sgd",
) -> tuple[list[dict[str, Tensor]], np.ndarray]:
    """Train on 5,000 noisy trials of Memory-Pro, by gradient descent or as given.

    Returns
    -------
    weights : list of dict
        Those at the iterations `at`, which begin at 0.
    losses : ndarray
        Loss there on 100 evenly spaced trials without noise.
    """
    task = kpops.tasks.memory_pro(5000, rng=seed)
    even = kpops.tasks.memory_pro(100, angles="even", noise=0)
    inputs, targets = (torch.from_numpy(even[n].values) for n in ("inputs", "targets"))
    with tempfile.TemporaryDirectory() as folder:
        kpops.training.train(
            network,
            task,
            folder=folder,
            max_steps=at[-1],
            batch_size=batch,
            learning_rate=rate,
            optimizer=optimizer,
            checkpoint_every=at,
            rng=seed,
        )
        weights = [state for step, state in kpops.training.checkpoints(folder) if step in set(at)]
    losses = []
    with torch.no_grad():
        for state in weights:
            network.load_state_dict(state)
            losses.append(float(nn.functional.mse_loss(network(inputs), targets)))
    return weights, np.array(losses)
