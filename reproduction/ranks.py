"""Effective ranks over training, and the number of dominant eigenfunctions of K."""

from __future__ import annotations

from functools import partial

import numpy as np
import xarray as xr

import kpops
from reproduction.results import attributes, loss_blocks
from reproduction.trained import Trained

REDUCTIONS = ("none", "trial, time", "time")
NUM_MODES = 6
FRACTION = 0.9
_SEARCHED = 12
_SHOWN_TRIALS = slice(0, None, 5)

EVALUATION = {
    "memory_pro": partial(kpops.tasks.memory_pro, 20, angles="even", noise=0),
    "flip_flop": partial(kpops.tasks.flip_flop, 20, noise=0, rng=12345),
}


def measure(network: Trained) -> xr.Dataset:
    """Ranks, shares of the eigenfunctions of K, loss and accuracy at some checkpoints.

    Parameters
    ----------
    network : Trained
        A network trained on Memory-Pro or the flip-flop.

    Returns
    -------
    Dataset
        ``effective_rank`` and ``stderr`` (step, operator, kind) of :func:`kpops.collapse`;
        ``evaluation_loss`` and ``accuracy`` (step) without noise; ``share`` (moment, reduction,
        mode), ``modes_needed`` (moment, reduction) and, in some trials, ``eigenfunction`` (moment,
        mode, trial, time) of :func:`modes_of` before and after training; ``loss`` (iteration),
        ``last_iteration`` and ``initial_spectral_radius`` of the training.
    """
    task = EVALUATION[network.training.task]()
    mine = network.training.network()

    def at_checkpoint(lin: kpops.Linearization) -> xr.Dataset:
        return kpops.collapse(lin, num_modes=0, rng=0).assign(evaluation(task, lin))

    def at_end(lin: kpops.Linearization) -> xr.Dataset:
        found = modes_of(lin.K).isel(trial=_SHOWN_TRIALS)
        return found.drop_vars([name for name in found.coords if name not in found.dims])

    result = kpops.over_training(mine, network.checkpoints(), task.inputs, at_checkpoint)
    ends = kpops.over_training(mine, network.first_and_last(), task.inputs, at_end)
    names = np.array(["before training", "after training"], dtype=object)
    moment = xr.DataArray(names, dims="moment", attrs=attributes("moment"))
    ends = ends.rename(step="moment").assign_coords(moment=moment)
    return result.merge(ends).merge(loss_blocks(network.losses, network.radius))


def evaluation(task: xr.Dataset, lin: kpops.Linearization) -> dict[str, tuple]:
    """Mean squared error and fraction of correct trials without noise."""
    squared = (lin.outputs.values - task.targets.values) ** 2
    right = kpops.tasks.accuracy(task, lin.outputs).accuracy
    return {
        "evaluation_loss": ((), squared.mean(), attributes("mean squared error without noise")),
        "accuracy": ((), float(right), attributes("fraction of trials that are correct")),
    }


def modes_of(K: kpops.TrajectoryOperator) -> xr.Dataset:
    """Shares of the leading eigenvalues in the trace of K, under three reductions.

    Parameters
    ----------
    K : TrajectoryOperator
        The K of a model in which it couples no two units, such as ``nn.RNN`` and ``nn.GRU``.

    Returns
    -------
    Dataset
        ``share`` (reduction, mode), the six largest eigenvalues over the trace; ``modes_needed``
        (reduction), the number of modes that together hold 90 % of the trace (NaN if more than
        12); ``eigenfunction`` (mode, trial, time) of K averaged over units.

    Notes
    -----
    The reductions average over units, or over units and trials
    (:meth:`kpops.TrajectoryOperator.expand_average`); ``"none"`` is K itself.

    With E, which copies along S units so that E* E = S, the average is ``E* K E / S``. K couples no
    two units, so the trace of the average is ``tr(K E E*) / S = tr K / S``.

    Examples
    --------
    >>> import torch, kpops
    >>> from reproduction.ranks import modes_of
    >>> lin = kpops.linearize(torch.nn.GRU(3, 8, batch_first=True), torch.randn(5, 10, 3))
    >>> bool((modes_of(lin.K).share.sum("mode") <= 1 + 1e-5).all())
    True
    """
    whole = kpops.eigvalsh(K).eigenvalue.values.astype(float)
    over_time = kpops.eigvalsh(K.expand_average(keep=("time",))).eigenvalue.values.astype(float)
    averaged = K.expand_average(keep=("trial", "time"))
    modes = kpops.eigsh(averaged, k=_SEARCHED, rng=0)
    leading = modes.eigenvalue.values.astype(float)
    of_all = (
        (whole, whole.sum()),
        (leading, whole.sum() / K.domain.sizes["unit"]),
        (over_time, over_time.sum()),
    )
    found = [values / total for values, total in of_all]
    share = np.stack([values[:NUM_MODES] for values in found])
    return xr.Dataset(
        {
            "share": (
                ("reduction", "mode"),
                share.astype(np.float32),
                attributes("share of the mode in the trace of K"),
            ),
            "modes_needed": (
                "reduction",
                np.array([_needed(values) for values in found]),
                attributes("number of modes that hold 90 % of the trace of K"),
            ),
            "eigenfunction": modes.eigenfunction.isel(mode=slice(NUM_MODES)),
        },
        coords={
            "reduction": (
                "reduction",
                np.array(REDUCTIONS, dtype=object),
                attributes("dims that K is reduced to"),
            ),
            "mode": ("mode", np.arange(1, NUM_MODES + 1), attributes("mode")),
        },
    )


def _needed(values: np.ndarray) -> float:
    reached = np.flatnonzero(np.cumsum(values) >= FRACTION)
    return float(reached[0] + 1) if reached.size else np.nan
