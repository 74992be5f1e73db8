"""The state change predicted by the flow operator against that of true gradient steps."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

import kpops
from reproduction.results import attributes
from reproduction.trained import Training

LEARNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1)
STEPS = 20


@dataclass(frozen=True)
class Model:
    """An untrained network for Memory-Pro."""

    cell: str
    seed: int
    units: int = 256
    measured: str = "state change"

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"state_change-{self.cell}-{self.units}-seed{self.seed}"

    def network(self) -> kpops.Network:
        """The network, in float64."""
        training = Training("memory_pro", self.cell, self.units, self.seed)
        return training.network().double()


MODELS = [Model(cell, seed) for cell in ("gru", "rnn") for seed in range(3)]


def measure(model: Model) -> xr.Dataset:
    """Relative errors of the predicted state change over the first steps of gradient descent.

    Parameters
    ----------
    model : Model
        Trained from the start with each learning rate, by ``torch.optim.SGD`` on 20 noise-free
        trials, all of them in each step.

    Returns
    -------
    Dataset
        ``relative_error`` (learning_rate, step), ``|dh + eta Phi Err| / |dh|`` of the change dh of
        the states from one step to the next; ``loss`` (learning_rate, step) before the step.

    Notes
    -----
    Gradients come from autograd and states from the module itself; only the prediction is that of
    :func:`kpops.gradient_flow`.
    """
    task = kpops.tasks.memory_pro(20, angles="even", noise=0, dtype="float64")
    found = [_descend(model.network(), task, rate) for rate in LEARNING_RATES]
    errors, losses = np.moveaxis(np.array(found), 2, 0)
    dims = ("learning_rate", "step")
    text = "relative error of the predicted state change"
    return xr.Dataset(
        {
            "relative_error": (dims, errors, attributes(text)),
            "loss": (dims, losses, attributes("loss before the step")),
        },
        coords={
            "learning_rate": (
                "learning_rate",
                np.array(LEARNING_RATES),
                attributes("learning rate"),
            ),
            "step": ("step", np.arange(STEPS), attributes("training iteration")),
        },
        attrs={"configuration": json.dumps({"optimizer": "sgd", "n_trials": 20})},
    )


def _descend(network: kpops.Network, task: xr.Dataset, rate: float) -> list[tuple[float, float]]:
    """Relative error and loss of each step."""
    inputs, targets = (torch.from_numpy(task[name].values) for name in ("inputs", "targets"))
    optimizer = torch.optim.SGD(network.parameters(), rate)
    before, found = _states(network, inputs), []
    for _ in range(STEPS):
        flow = kpops.gradient_flow(kpops.linearize(network, task.inputs), task.targets)
        predicted = rate * torch.from_numpy(flow.state_change.values)
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(network(inputs), targets)
        loss.backward()
        optimizer.step()
        after = _states(network, inputs)
        real, before = after - before, after
        found.append((float((real - predicted).norm() / real.norm()), loss.item()))
    return found


@torch.no_grad()
def _states(network: kpops.Network, inputs: torch.Tensor) -> torch.Tensor:
    """States (trial, time, unit) by the module's own forward."""
    return network.recurrent(inputs.transpose(0, 1))[0].transpose(0, 1)
