"""Leaky tanh networks that learn the 15 tasks of Driscoll et al. at once, and what they reach."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

import kpops
from reproduction.protocol import networks

ALPHA = 0.2  # 20 ms steps, time constant 100 ms
REACT = ("ReactPro", "ReactAnti")
LEARNED = {
    "context": (10, 25),
    "stimulus1": (10, 25),
    "memory1": (10, 50),
    "stimulus2": (10, 20),
    "memory2": (5, 10),
    "response": (10, 25),
}
"""Durations in training, in steps: shorter than the paper's, but up to those of evaluation."""
LEARNED_REACT = {"context": (15, 100), "response": (10, 25)}


class Leaky(nn.Module):
    """A :class:`kpops.models.LeakyCell` with a linear readout, with a fast backward pass.

    Parameters
    ----------
    inputs, units, outputs : int
        Sizes.
    """

    def __init__(self, inputs: int, units: int, outputs: int) -> None:
        super().__init__()
        self.cell = kpops.models.LeakyCell(inputs, units, alpha=ALPHA)
        self.readout = nn.Linear(units, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (trial, time, output) for inputs (trial, time, input), from the state 0."""
        drive = self.cell.driven(inputs).transpose(0, 1)
        states = _Run.apply(drive, self.cell.weight_hh, self.cell.alpha)
        return self.readout(states).transpose(0, 1)


class _Run(torch.autograd.Function):
    """States (time, trial, unit) of the rate form under a drive, from the state 0."""

    @staticmethod
    def forward(ctx: Any, drive: Tensor, weight: Tensor, alpha: float) -> Tensor:
        states, rates = torch.empty_like(drive), torch.empty_like(drive)
        h, transposed = torch.zeros_like(drive[0]), weight.t().contiguous()
        for t, d in enumerate(drive.unbind(0)):
            torch.tanh(torch.addmm(d, h, transposed), out=rates[t])
            h = torch.lerp(h, rates[t], alpha, out=states[t])
        ctx.save_for_backward(states, rates, weight)
        ctx.alpha = alpha
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (given,) = gradients
        states, rates, weight = ctx.saved_tensors
        slope = ctx.alpha * (1 - rates.square())
        deltas = torch.empty_like(states)
        adjoint = torch.zeros_like(states[0])
        for t in range(len(states) - 1, -1, -1):
            adjoint += given[t]
            torch.mul(adjoint, slope[t], out=deltas[t])
            adjoint = torch.addmm(adjoint, deltas[t], weight, beta=1 - ctx.alpha)
        of_weight = deltas[1:].flatten(0, 1).t() @ states[:-1].flatten(0, 1)
        return deltas, of_weight, None


@dataclasses.dataclass(frozen=True)
class Multitask:
    """A network and its training on all 15 tasks; keyword names are those of the settings."""

    seed: int
    units: int
    steps: int
    batch_size: int = 32
    learning_rate: float = 2e-3
    trials_per_task: int = 400

    @property
    def name(self) -> str:
        """Name of its folder of checkpoints."""
        return f"driscoll-leaky-{self.units}-{self.steps}-seed{self.seed}"

    def network(self) -> Leaky:
        """The untrained network."""
        with torch.random.fork_rng([]):
            torch.manual_seed(self.seed)
            return Leaky(20, self.units, 3)

    def trained(self) -> Leaky:
        """Train the network, or continue or read an existing training."""
        network, steps = self.network(), self.steps

        def optimizer(parameters: Any, rate: float) -> Any:
            adam = torch.optim.Adam(parameters, rate)
            return adam, torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.05, total_iters=steps)

        kpops.training.train(
            network,
            training_set(self.trials_per_task, self.seed),
            folder=networks.CACHE / self.name,
            max_steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            optimizer=optimizer,
            checkpoint_every=500,
            rng=self.seed,
        )
        return network


def training_set(trials_per_task: int, seed: int) -> xr.Dataset:
    """Noisy trials of all 15 tasks; a step of the response counts five times in the loss."""
    rng = np.random.default_rng(seed)
    others = [name for name in kpops.tasks.DRISCOLL_TASKS if name not in REACT]
    parts = [
        _of(trials_per_task, others, LEARNED, rng),
        _of(trials_per_task, list(REACT), LEARNED_REACT, rng),
    ]
    length = max(part.sizes["time"] for part in parts)
    names = ("inputs", "targets", "mask", "loss_mask")
    padded = [_padded(part[list(names)], length) for part in parts]
    return xr.concat(padded, "trial", coords="minimal", compat="override")


def _of(
    each: int, tasks: list[str], steps: Mapping[str, tuple[int, int]], rng: np.random.Generator
) -> xr.Dataset:
    task = kpops.tasks.driscoll(each * len(tasks), tasks=tasks, steps=steps, rng=rng)
    weights = np.where(task.epoch.values == "response", 5.0, 1.0) * task.mask.values
    return task.assign(loss_mask=(("trial", "time"), weights.astype(np.float32)))


def _padded(part: xr.Dataset, length: int) -> xr.Dataset:
    """The same trials with zeros (in the mask, False) up to a length."""
    bare = part.drop_vars(list(part.coords))
    longer = bare.pad(time=(0, length - bare.sizes["time"]), constant_values=0)
    return longer.assign(mask=longer["mask"].astype(bool))


def evaluation(task: str, trials: int, steps: Mapping[str, int] | None = None) -> xr.Dataset:
    """Noise-free trials of evenly spaced directions, with the paper's durations unless given."""
    return kpops.tasks.driscoll(
        trials, tasks=task, angles="even", noise=0, steps=steps or {}, dtype="float64", rng=0
    )
