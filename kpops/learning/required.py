"""Helpers of all functions here: checks of arguments, and labels of numbers."""

from __future__ import annotations

from typing import Any

import xarray as xr
from torch import nn

from kpops.kinds import described
from kpops.linearization import Linearization
from kpops.operators.base import TrajectoryOperator


def require_linearization(
    lin: Any, argument: str = "lin", *, spread: bool = False
) -> Linearization:
    """Return `lin`, or raise a TypeError if it is no :class:`kpops.Linearization`.

    A ValueError if it is `spread` over processes where the caller does not take that.
    """
    if isinstance(lin, Linearization):
        if not spread:
            lin.space.parts.refuse_spread(lin.flow)
        return lin
    remedy = "pass what kpops.linearize(model, inputs) returns"
    if isinstance(lin, TrajectoryOperator):
        remedy += ", and not one of its operators"
    elif isinstance(lin, nn.Module):
        remedy = "pass kpops.linearize(model, inputs)"
    elif isinstance(lin, xr.Dataset):
        remedy = "pass kpops.linearize(model, task.inputs)"
    raise TypeError(f"{argument} is {described(lin)}, no Linearization: {remedy}")


def refuse_beside(lin: Linearization) -> None:
    """Refuse outputs of a network that depend on parameters beside its sites.

    Their part of the gradient is missing in ``J* P* Err``.
    """
    if lin.readout is not None:
        lin.J_C  # noqa: B018, refuses them


def labelled(dims: str | tuple[str, ...], values: Any, long_name: str) -> tuple[Any, ...]:
    """Dims, values and attributes, as xarray takes them."""
    return dims, values, {"long_name": long_name, "units": "1"}
