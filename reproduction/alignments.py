"""How alike four tasks are, in their states and in their operators, over training."""

from __future__ import annotations

from functools import partial

import xarray as xr

import kpops
from reproduction.ranks import evaluation
from reproduction.results import loss_blocks
from reproduction.trained import Trained

QUANTITIES = (
    "state_cosine",
    "state_cka",
    "state_tuning_cosine",
    "trace_alignment",
    "gauss_newton_alignment",
    "kernel_alignment",
    "gradient_cosine",
    "gradient_tuning_cosine",
)
EVALUATION = partial(kpops.tasks.four_task_mix, 20, angles="even", noise=0)


def measure(network: Trained) -> xr.Dataset:
    """Alignments of the four tasks at some checkpoints.

    Parameters
    ----------
    network : Trained
        A network trained on the mix of four tasks.

    Returns
    -------
    Dataset
        The cosines of :func:`kpops.interference` (step, task, task_in), with standard errors of
        those that are estimated; ``evaluation_loss`` and ``accuracy`` (step); the losses of the
        training as from :func:`reproduction.ranks.measure`.
    """
    task = EVALUATION()

    def at_checkpoint(lin: kpops.Linearization) -> xr.Dataset:
        found = kpops.interference(lin, targets=task.targets, condition="angle", rng=0)
        errors = [f"{name}_stderr" for name in QUANTITIES if f"{name}_stderr" in found]
        return found[[*QUANTITIES, *errors]].assign(evaluation(task, lin))

    checkpoints, model = network.checkpoints(), network.training.network()
    result = kpops.over_training(model, checkpoints, task.inputs, at_checkpoint)
    return result.merge(loss_blocks(network.losses, network.radius))
