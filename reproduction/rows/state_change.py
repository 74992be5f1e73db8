"""The state change predicted by the flow operator against that of true gradient steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from reproduction.results import attributes
from reproduction.row import Row
from reproduction.verdicts import Check, between, check

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

    import kpops


def measure(
    seed: int, *, cells: Sequence[str], units: int, learning_rates: Sequence[float], steps: int
) -> xr.Dataset:
    """Relative errors of the predicted state change over the first steps of gradient descent.

    An untrained network descends with each learning rate by ``torch.optim.SGD`` on 20 noise-free
    trials of Memory-Pro, all of them in each step. Gradients come from autograd and states from the
    module itself; only the prediction is that of :func:`kpops.gradient_flow`.

    Returns
    -------
    Dataset
        ``relative_error`` (cell, learning_rate, step), ``|dh + eta Phi Err| / |dh|`` of the change
        dh of the states from one step to the next; ``loss`` (cell, learning_rate, step) before it.
    """
    import kpops
    from reproduction.protocol import Protocol

    task = kpops.tasks.memory_pro(20, angles="even", noise=0, dtype="float64")

    def network(cell: str) -> kpops.Network:
        return Protocol("memory_pro", cell, units).network(seed).double()

    found = [[_descend(network(c), task, rate, steps) for rate in learning_rates] for c in cells]
    errors, losses = np.moveaxis(np.array(found), 3, 0)
    dims = ("cell", "learning_rate", "step")
    text = "relative error of the predicted state change"
    return xr.Dataset(
        {
            "relative_error": (dims, errors, attributes(text)),
            "loss": (dims, losses, attributes("loss before the step")),
        },
        coords={
            "cell": ("cell", list(cells), attributes("cell")),
            "learning_rate": ("learning_rate", list(learning_rates), attributes("learning rate")),
            "step": ("step", np.arange(steps), attributes("training iteration")),
        },
    )


def _descend(
    network: kpops.Network, task: xr.Dataset, rate: float, steps: int
) -> list[tuple[float, float]]:
    """Relative error and loss of each step."""
    import torch

    import kpops

    inputs, targets = (torch.from_numpy(task[name].values) for name in ("inputs", "targets"))
    optimizer = torch.optim.SGD(network.parameters(), rate)
    before, found = _states(network, inputs), []
    for _ in range(steps):
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


def _states(network: kpops.Network, inputs: torch.Tensor) -> torch.Tensor:
    """States (trial, time, unit) by the module's own forward."""
    return network.recurrent(inputs.transpose(0, 1))[0].transpose(0, 1).detach()


def judge(found: xr.Dataset) -> list[Check]:
    """The error is of second order in the learning rate, and small at the smallest."""
    checks = []
    for cell in found.cell.values:
        errors = found.relative_error.sel(cell=cell)
        text = f"{cell.upper()}: slope of log error in log eta from 0.9 to 1.1"
        checks.append(check(text, slopes(errors.isel(step=0)), between(0.9, 1.1)))
        text = f"{cell.upper()}: largest error of all steps at the smallest eta below 0.001"
        least = errors.isel(learning_rate=0).max("step").values
        checks.append(check(text, least, lambda value: value < 1e-3))
    return checks


def slopes(errors: xr.DataArray) -> list[float]:
    """Slope of log error (seed, learning_rate) in log learning rate, of each seed."""
    rates = np.log(errors.learning_rate.values)
    return [float(np.polyfit(rates, np.log(one), 1)[0]) for one in errors.values]


def draw(found: xr.Dataset) -> Figure:
    """Errors over steps, and of the first step over learning rates."""
    from reproduction.figures import COLOURS, grid, legend

    figure, axes = grid(7.2, 3.0, 1, 3)
    axes[0, 1].sharey(axes[0, 0])
    for ax, cell in zip(axes[0], found.cell.values, strict=False):
        for rate, colour in zip(found.learning_rate.values, COLOURS, strict=False):
            errors = found.relative_error.sel(cell=cell, learning_rate=rate)
            ax.plot(found.step, errors.T, color=colour, label=f"eta = {rate:g}", linewidth=0.8)
        ax.set(title=cell.upper(), yscale="log", xlabel="step of gradient descent")
    axes[0, 0].set_ylabel("relative error")
    legend(axes[0, 0], loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    last, rates = axes[0, 2], found.learning_rate.values
    for colour, cell in zip(COLOURS, found.cell.values, strict=False):
        errors = found.relative_error.sel(cell=cell).isel(step=0)
        last.plot(rates, errors.T, color=colour, label=cell.upper(), marker=".", linewidth=0.8)
    last.plot(rates, 0.003 * rates, ":", color="0.4", label="slope 1")
    last.set(title="first step", xlabel="learning rate eta", xscale="log", yscale="log")
    legend(last)
    return figure


def notes(found: xr.Dataset) -> list[str]:
    """How it was measured."""
    return [
        "The first steps of gradient descent (SGD) of untrained networks on 20 noise-free trials "
        "of Memory-Pro, in float64, with PyTorch's own gradients and states as the reference. The "
        "relative error is |dh + eta P K P* Err| / |dh|. The neglected terms are of second order "
        "in eta, so the relative error should be proportional to eta at the first step, where all "
        "learning rates start from the same weights."
    ]


ROW = Row(
    name="state_change",
    title="The state change of a gradient step",
    paper="2507.06381",
    where="Proposition 1",
    says="To first order a gradient step moves the states by -eta P K P* Err.",
    measure=measure,
    settings={
        "cells": ["gru", "rnn"],
        "units": 256,
        "learning_rates": [0.001, 0.003, 0.01, 0.03, 0.1],
        "steps": 20,
    },
    quick={"units": 16, "steps": 3},
    judge=judge,
    draw=draw,
    notes=notes,
)
