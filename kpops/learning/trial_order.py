"""Whether a model reads (trial, time, feature), as the trials of a task come."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from kpops.models.network import Network


def refuse_time_first(model: nn.Module, inputs: Tensor) -> None:
    """Refuse a model whose recurrent layers take the trials for steps.

    Nothing else would tell where there are as many of them: the shape of the outputs is right.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.RNNBase) and not m.batch_first]
    transposes = type(model).forward is Network.forward
    if not layers or transposes or len(inputs) < 2:
        return
    private = copy.deepcopy(model).eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        both, alone, again = private(inputs[:2]), private(inputs[1:2]), private(inputs[1:2])
    parts = (both, alone, again)
    if not all(isinstance(y, Tensor) and y.ndim == 3 for y in parts) or not alone.equal(again):
        return  # it is random, or returns what the loss will refuse
    bound = 1e3 * torch.finfo(alone.dtype).eps * (alone.abs().max() + 1)
    if both[1:].shape != alone.shape or bool((both[1:] - alone).abs().max() > bound):
        raise ValueError(
            f"what {type(model).__name__} makes of a trial depends on the trial before it: its "
            f"{type(layers[0]).__name__} has batch_first=False and takes trials for steps; pass "
            "batch_first=True, or transpose inputs and outputs in its forward, as "
            "kpops.models.Network does"
        )
