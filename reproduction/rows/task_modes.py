"""Which components of Memory-Pro a network learns, and what they owe to its start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from reproduction.results import attributes
from reproduction.row import Row
from reproduction.verdicts import Check, between, check

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    import kpops

CASES = ("SGD", "SGD, planted", "Shampoo")
MODES = ("fixation", "cos", "sin")
MEMORY = ["cos", "sin"]


def measure(
    seed: int,
    *,
    units: int,
    planted: int,
    sgd_rate: float,
    shampoo_rate: float,
    batch: int,
    iterations: int,
    points: int,
) -> xr.Dataset:
    """How much of each target mode the outputs have, for three ways to train.

    The targets of noise-free, evenly spaced trials have orthogonal columns ``sigma_i u_i``, one for
    each output, so that the u_i (trial, time) are their left singular vectors: fixation, and the
    cosine and the sine of the angle, which no input shows when they are asked for. The amplitude of
    mode i in the outputs Y is ``|u_i^T Y| / sigma_i``: 1 where Y is the target. How fast
    gradient descent moves the states along a mode is the Rayleigh quotient of the flow operator
    P K P* at ``q = u_i (1, 1, 1) C``, with the readout weights C: the error that has u_i in all
    outputs, brought to the states.

    All networks of a seed start from the same weights and see the same batches; `planted` fixed
    points, drawn from the standard normal distribution, are put into those of the second case.

    Returns
    -------
    Dataset
        ``amplitude`` and ``rayleigh`` (case, mode, step); ``loss`` (case, step).
    """
    import torch

    import kpops
    from reproduction.basic_rnn import BasicRNN, descend, plant
    from reproduction.shampoo import Shampoo

    at = np.unique(np.linspace(0, iterations, points).astype(int)).tolist()
    drawn = torch.randn(planted, units, generator=torch.Generator().manual_seed(seed))
    task = kpops.tasks.memory_pro(30, angles="even", noise=0, dtype="float64")
    amplitude, rayleigh = np.empty((2, len(CASES), len(MODES), len(at)))
    losses = []
    for i, case in enumerate(CASES):
        network = BasicRNN(units, seed)
        if case == "SGD, planted":
            with torch.no_grad():
                network.cell.weight_hh.copy_(plant(network.cell.weight_hh, drawn))
        how: dict[str, Any] = {"rate": sgd_rate}
        if case == "Shampoo":
            how = {"rate": shampoo_rate, "optimizer": Shampoo}
        weights, loss = descend(network, seed, batch=batch, at=at, **how)
        losses.append(loss)
        for j, state in enumerate(weights):
            network.load_state_dict(state)
            lin = network.linearize(task.inputs)
            C = state["readout.weight"].double().numpy()
            amplitude[i, :, j], rayleigh[i, :, j] = along_modes(lin, task.targets.values, C)
    dims = ("case", "mode", "step")
    return xr.Dataset(
        {
            "amplitude": (dims, amplitude, attributes("amplitude of a target mode")),
            "rayleigh": (dims, rayleigh, attributes("Rayleigh quotient of P K P*")),
            "loss": (("case", "step"), np.array(losses), attributes("loss on noise-free trials")),
        },
        coords={
            "case": ("case", list(CASES), attributes("how it is trained")),
            "mode": ("mode", list(MODES), attributes("target mode")),
            "step": ("step", at, attributes("iteration")),
        },
    )


def along_modes(
    lin: kpops.Linearization, targets: np.ndarray, C: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Amplitudes in the outputs, and Rayleigh quotients (mode).

    Parameters
    ----------
    lin : Linearization
        At the trials of the targets.
    targets : ndarray
        Shape (trial, time, output), with orthogonal columns.
    C : ndarray
        Readout weights (output, unit).
    """
    columns = targets.reshape(-1, targets.shape[-1])
    sigma = np.linalg.norm(columns, axis=0)
    modes = columns / sigma
    outputs = lin.outputs.values.reshape(len(modes), -1)
    amplitudes = np.linalg.norm(modes.T @ outputs, axis=1) / sigma
    q = np.einsum("pm,u->pum", modes, C.sum(0)).reshape(-1, len(sigma))
    return amplitudes, (q * (lin.flow @ q)).sum(0) / (q * q).sum(0)


def judge(found: xr.Dataset) -> list[Check]:
    """Plain SGD learns fixation alone; planted points, or Shampoo, bring memory."""
    end, start = found.amplitude.isel(step=-1), found.rayleigh.isel(step=0)
    memory = end.sel(mode=MEMORY)
    ratio = start.sel(case="SGD, planted") / start.sel(case="SGD")
    return [
        check(
            "SGD: last amplitude of fixation from 0.9 to 1.1",
            end.sel(case="SGD", mode="fixation").values,
            between(0.9, 1.1),
        ),
        check(
            "SGD: last amplitudes of cos and sin at most 0.1 (the greater)",
            memory.sel(case="SGD").max("mode").values,
            lambda value: value <= 0.1,
        ),
        *(
            check(
                f"{case}: last amplitudes of cos and sin at least 0.5 (the lesser)",
                memory.sel(case=case).min("mode").values,
                lambda value: value >= 0.5,
            )
            for case in CASES[1:]
        ),
        check(
            "before training: Rayleigh quotients of P K P* at cos and sin greater with planted "
            "points (the lesser ratio)",
            ratio.sel(mode=MEMORY).min("mode").values,
            lambda value: value > 1,
        ),
    ]


def draw(found: xr.Dataset) -> Figure:
    """Squared amplitudes of fixation and of memory, and the Rayleigh quotient of memory."""
    from reproduction.figures import COLOURS, grid, legend

    figure, axes = grid(7.2, 2.8, 1, 3)
    memory = {"mode": MEMORY}
    panels = (
        (found.amplitude.sel(mode="fixation") ** 2, "fixation, squared amplitude"),
        ((found.amplitude.sel(memory) ** 2).mean("mode"), "cos and sin, squared amplitude"),
        (found.rayleigh.sel(memory).mean("mode"), "cos and sin, quotient of P K P*"),
    )
    for ax, (values, label) in zip(axes[0], panels, strict=True):
        for colour, case in zip(COLOURS, CASES, strict=False):
            ax.plot(found.step, values.sel(case=case).T, color=colour, label=case, linewidth=0.8)
        ax.set(xlabel="iteration", ylabel=label, xlim=(0, None))
    axes[0, 2].set_yscale("log")
    legend(axes[0, 0], loc="lower right")
    return figure


def notes(found: xr.Dataset) -> list[str]:
    """What differs from the paper, and what its code says."""
    return [
        "The paper says that the dynamics at the start keep task components from being learned. "
        "Its figures show it, by the authors' scripts, as the squared amplitude of each target "
        "mode over training and the NTK's quotient at the third mode, for SGD without and with "
        "five planted points and for Shampoo without them, which by the script passes a "
        "bifurcation. The bounds are ours. The second and the third mode have equal singular "
        "values.",
        "The paper trains 256 units with learning rate 0.01, batches of 500 and at most 10,000 "
        "iterations; ours has 64 units and batches of 100. SGD's learning rate is 0.04, so that "
        "its product with the number of units is that of the paper; Shampoo's is the paper's own "
        "0.01. Shampoo is that of the torch_optimizer package, as there: with the exponent -1/2 on "
        "both sides of a matrix, where Gupta et al. have -1/4.",
        "Without planted points the quotient at memory is practically zero: W is uniform within "
        "1 / sqrt(units) at g = 1, so that its spectral radius is 0.58, and a trial's angle is "
        "forgotten in the 30 steps of the delay. The last check says no more than that.",
        "An earlier run, reproduced in part, ended after 6,000 iterations, when the cosine of one "
        "of the five networks by Shampoo was at 0.05 and rising.",
    ]


ROW = Row(
    name="task_modes",
    title="Task components that are not learned",
    paper="2605.08746",
    where="the Memory-Pro case of its section on initial dynamics",
    says="The dynamics before training keep components of a task from being learned: a tanh RNN at "
    "g = 1 does not learn the memory of Memory-Pro by SGD. With planted fixed points the tangent "
    "kernel has more of these components, and they are learned; Shampoo learns them without.",
    measure=measure,
    settings={
        "units": 64,
        "planted": 5,
        "sgd_rate": 0.04,
        "shampoo_rate": 0.01,
        "batch": 100,
        "iterations": 10000,
        "points": 51,
    },
    quick={"units": 16, "iterations": 100, "points": 5, "batch": 20},
    judge=judge,
    draw=draw,
    notes=notes,
)
