"""What the functions of this room need before all else."""

from __future__ import annotations

from typing import Any

import xarray as xr
from torch import nn

from kpops.kinds import described
from kpops.linearization import Linearization
from kpops.operators.base import TrajectoryOperator


def require_linearization(lin: Any, argument: str = "lin") -> Linearization:
    """Return `lin`, or refuse what is not a :class:`kpops.Linearization`.

    Raises
    ------
    TypeError
        Naming what it is, and how to come to a linearization.

    Examples
    --------
    >>> import torch, kpops
    >>> kpops.collapse(torch.nn.GRU(2, 3))
    Traceback (most recent call last):
    TypeError: lin is a model (GRU), no Linearization: pass kpops.linearize(model, inputs)
    """
    if isinstance(lin, Linearization):
        return lin
    remedy = "pass what kpops.linearize(model, inputs) returns"
    if isinstance(lin, TrajectoryOperator):
        remedy += ", and not one of its operators"
    elif isinstance(lin, nn.Module):
        remedy = "pass kpops.linearize(model, inputs)"
    elif isinstance(lin, xr.Dataset):
        remedy = "pass kpops.linearize(model, task.inputs)"
    raise TypeError(f"{argument} is {described(lin)}, no Linearization: {remedy}")
