"""Whether the leading modes of the flow operator predict the learning curve."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from reproduction.results import attributes
from reproduction.row import Row
from reproduction.verdicts import Check, between, check, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    import kpops

MOMENTS = ("before training", "as the memory forms")
ENOUGH = 10
"""Modes of the criterion."""


def measure(
    seed: int,
    *,
    units: int,
    epochs: list[int],
    trials: int,
    modes: list[int],
    steps: int,
    renew: int,
    learning_rate: float,
    most: int,
) -> xr.Dataset:
    """Loss over steps of gradient descent, true and predicted from few modes of P K P*.

    A GRU learns Memory-Pro by Adam until its loss without noise is half of that of a network
    without a memory. From there, and from the untrained network, SGD on the recurrent parameters
    (the readout is fixed) descends on all noise-free trials in each step. The prediction never
    sees the true states after the first: they move by ``-eta Phi_k Err`` of the predicted states,
    where Phi_k has the k leading modes of P K P* of the true network of every `renew`-th step.

    Parameters
    ----------
    seed : int
        Of the weights, the trials and the batches.
    units, epochs, trials
        Units of the GRU; steps of stimulus, memory and response; noise-free trials.
    modes : list of int
        Values of k.
    steps, renew : int
        Steps of SGD; steps after which the modes are computed anew.
    learning_rate : float
        Of SGD.
    most : int
        Iterations of Adam after which the search for the moment ends.

    Returns
    -------
    Dataset
        ``loss`` (moment, step) of the true descent; ``predicted`` (moment, modes, step), where 0
        modes stands for the whole operator; ``moment_step`` (moment), iterations of Adam before;
        ``states`` (), the size of the operator.
    """
    import kpops
    from reproduction import short

    task = kpops.tasks.memory_pro(trials, angles="even", noise=0, steps=epochs, dtype="float64")
    training = kpops.tasks.memory_pro(2000, steps=epochs, rng=seed)
    network = short.network("gru", training, units, seed)
    curves, starts = [], []
    half = short.blind_loss(task) / 2
    options = {"learning_rate": 2e-3, "batch_size": 64, "seed": seed}
    for step in short.train(network, training, most, **options):
        if step in (0, most) or short.loss(network, task) <= half:
            starts.append(step)
            curves.append(_curves(network, task, modes, steps, renew, learning_rate))
            if step:
                break
    text = "loss of all noise-free trials"
    found = {
        "loss": (("moment", "step"), [c[0] for c in curves], attributes(text)),
        "predicted": (
            ("moment", "modes", "step"),
            [c[1] for c in curves],
            attributes(f"predicted {text}"),
        ),
        "moment_step": ("moment", starts, attributes("iterations of Adam before")),
        "states": ((), trials * sum(epochs) * units, attributes("size of the flow operator")),
    }
    coords = {
        "moment": ("moment", np.array(MOMENTS, dtype=object), attributes("moment")),
        "modes": ("modes", [*modes, 0], attributes("leading modes, 0 for all")),
        "step": ("step", np.arange(steps + 1), attributes("step of gradient descent")),
    }
    return xr.Dataset(found, coords)


def _curves(
    network: kpops.Network,
    task: xr.Dataset,
    modes: list[int],
    steps: int,
    renew: int,
    learning_rate: float,
) -> tuple[list[float], list[list[float]]]:
    """True losses, and those predicted from each number of modes and from all."""
    import copy

    import kpops
    from reproduction import short

    model = copy.deepcopy(network).double()
    inputs, targets = short.tensors(task, model)
    lins, losses = [], []
    for step in range(steps + 1):
        if step % renew == 0 and step < steps:
            lins.append(kpops.linearize(model, task.inputs))
        losses.append(_descend(model, inputs, targets, learning_rate))
    most = max(modes)
    leading = [kpops.eigsh(lin.flow, k=most, rng=0) for lin in lins]
    kernels = [
        [_kernel(lin, found, k) for lin, found in zip(lins, leading, strict=True)]
        for k in [*modes, None]
    ]
    return losses, [
        predict(lins[0], targets, each, steps, renew, learning_rate) for each in kernels
    ]


def _descend(model: kpops.Network, inputs, targets, learning_rate: float) -> float:  # type: ignore[no-untyped-def]
    """The loss, and then one step of SGD on the recurrent parameters."""
    import torch

    parameters = list(model.recurrent.parameters())
    loss = torch.nn.functional.mse_loss(model(inputs), targets)
    gradients = torch.autograd.grad(loss, parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= learning_rate * gradient
    return loss.item()


def _kernel(lin: kpops.Linearization, found: xr.Dataset, k: int | None):  # type: ignore[no-untyped-def]
    """Action of the flow operator through its k leading modes, or of all of it."""
    import torch

    if k is None:
        return lambda error: lin.flow.apply(error[None])[0]
    vectors = torch.as_tensor(found.eigenfunction.isel(mode=slice(k)).values)
    values = torch.as_tensor(found.eigenvalue.values[:k])

    def act(error: torch.Tensor) -> torch.Tensor:
        along = torch.tensordot(vectors, error, dims=error.ndim)
        return torch.tensordot(values * along, vectors, dims=1)

    return act


def predict(lin, targets, kernels, steps: int, renew: int, learning_rate: float) -> list[float]:  # type: ignore[no-untyped-def]
    """Losses of states that move by ``-eta Phi Err``, with another Phi every `renew` steps.

    Parameters
    ----------
    lin : Linearization
        Where the states start; its readout, which is linear, stays.
    targets : Tensor, shape (trial, time, output)
        For the mean squared error.
    kernels : sequence of callable
        Each maps an error of the states to Phi times it.
    steps, renew, learning_rate
        Of the descent.
    """
    import torch

    states = torch.as_tensor(lin.states.values)
    bias, weight = lin.readout.bias.detach(), lin.readout.weight.detach()
    losses = []
    for step in range(steps + 1):
        missing = states @ weight.T + bias - targets
        losses.append(float(missing.square().mean()))
        error = 2 / missing.numel() * missing @ weight
        if step < steps:
            states = states - learning_rate * kernels[step // renew](error)
    return losses


def explained(found: xr.Dataset) -> xr.DataArray:
    """Predicted over true fall of the loss by the last step (seed, moment, modes)."""
    fall = found.loss.isel(step=0) - found.loss.isel(step=-1)
    return (found.predicted.isel(step=0) - found.predicted.isel(step=-1)) / fall


def error(found: xr.Dataset) -> xr.DataArray:
    """Root mean square error of the predicted curve over the true fall."""
    fall = found.loss.isel(step=0) - found.loss.isel(step=-1)
    return ((found.predicted - found.loss) ** 2).mean("step") ** 0.5 / fall


def judge(found: xr.Dataset) -> list[Check]:
    """Ten modes explain the fall as the memory forms, and the error falls with their number."""
    formed = MOMENTS[1]
    of = explained(found).sel(moment=formed)
    text = f"{ENOUGH} modes predict 0.9 to 1.1 of the fall of the loss as the memory forms"
    checks = [check(text, of.sel(modes=ENOUGH).values, between(0.9, 1.1))]
    for moment in MOMENTS:
        errors = error(found).sel(moment=moment)
        some = errors.where(errors.modes > 0, drop=True).sortby("modes").transpose("seed", "modes")
        rise = some.diff("modes").max("modes").values
        checks.append(
            check(f"error falls with the number of modes, {moment}", rise, lambda v: v <= 1e-9)
        )
    whole = of.sel(modes=0).values
    text = "the whole operator predicts 0.9 to 1.1 of the fall as the memory forms"
    return [*checks, check(text, whole, between(0.9, 1.1))]


def draw(found: xr.Dataset) -> Figure:
    """Curves of one seed at both moments, and what is explained in all."""
    from reproduction.figures import COLOURS, grid, legend

    figure, axes = grid(7.2, 2.9, 1, 3)
    numbers = [int(k) for k in found.modes.values]
    for ax, moment in zip(axes[0], MOMENTS, strict=False):
        one = found.sel(moment=moment).isel(seed=0)
        for k, colour in zip(numbers, COLOURS, strict=False):
            label = f"{k} mode{'s' * (k > 1)}" if k else "all modes"
            curve = one.predicted.sel(modes=k)
            ax.plot(found.step, curve, color=colour, label=label, linewidth=0.9)
        ax.plot(found.step, one.loss, "--", color="black", label="true", linewidth=1.2)
        ax.set(title=moment, xlabel="step of gradient descent")
    axes[0, 0].set_ylabel("loss")
    shown = axes[0, 0].get_legend_handles_labels()
    figure.legend(*shown, loc="outside lower center", ncols=6, fontsize=7)
    last = axes[0, 2]
    few = [k for k in numbers if k]
    for moment, colour in zip(MOMENTS, (COLOURS[5], COLOURS[1]), strict=True):
        values = explained(found).sel(moment=moment, modes=few).transpose("modes", "seed")
        last.plot(few, values, marker=".", color=colour, label=moment, linewidth=0.8)
    last.axhspan(0.9, 1.1, color="0.9", zorder=0)
    last.set(xscale="log", xticks=few, xlabel="leading modes", ylim=(0, 1.4))
    last.set_xticklabels([str(k) for k in few])
    last.minorticks_off()
    last.set_ylabel("predicted over true fall")
    legend(last, loc="upper left")
    return figure


def notes(found: xr.Dataset) -> list[str]:
    """What was measured."""
    settings = json.loads(found.attrs["settings"])
    share = 1 - found.loss.isel(step=-1) / found.loss.isel(step=0)
    before = explained(found).sel(moment=MOMENTS[0], modes=ENOUGH).values
    falls = ", ".join(f"{100 * float(share.sel(moment=m).median()):.0f} % {m}" for m in MOMENTS)
    return [
        f"A GRU of {settings['units']} units, Memory-Pro with epochs of "
        f"{', '.join(map(str, settings['epochs']))} steps, {settings['trials']} trials: the flow "
        f"operator has the size {int(found.states[0]):,}. SGD with learning rate "
        f"{settings['learning_rate']:g} on the recurrent parameters takes {settings['steps']} "
        f"steps, in which the loss falls by {falls} (median). The modes are computed anew every "
        f"{settings['renew']} steps, on the true path; the predicted states never are.",
        "As the memory forms, the curves from few modes fall with the true one for a few steps "
        "and then stay: the error along the leading modes is gone by then, and what is left to "
        "learn goes through modes of small eigenvalues. Thirty modes predict "
        f"{spread(explained(found).sel(moment=MOMENTS[1], modes=max(settings['modes'])).values)} "
        "of the fall. The whole operator predicts the curve, so it is the truncation that fails, "
        "not the linear prediction. Before training the leading modes carry more: "
        f"{ENOUGH} modes predict {spread(before)} of the fall. The hypothesis of ten modes was "
        "taken from a single step at the steepest moment (gallery, truncated flow).",
    ]


ROW = Row(
    name="truncated_flow_predicts",
    title="A learning curve from ten modes",
    paper="kpops",
    where="beyond the papers",
    says="As the memory forms, ten of thousands of modes of P K P* predict the fall of the loss "
    "over the next 50 steps of gradient descent within 10 %, and the error falls with their "
    "number.",
    measure=measure,
    settings={
        "units": 64,
        "epochs": [10, 10, 10],
        "trials": 12,
        "modes": [1, 3, 10, 30],
        "steps": 50,
        "renew": 10,
        "learning_rate": 0.1,
        "most": 600,
    },
    quick={
        "units": 32,
        "epochs": [5, 5, 5],
        "trials": 4,
        "modes": [1, 10],
        "steps": 10,
        "renew": 5,
    },
    judge=judge,
    draw=draw,
    notes=notes,
)
