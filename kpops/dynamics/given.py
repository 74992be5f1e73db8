"""Read what users pass: a model, a constant input, states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from kpops import snapshot
from kpops.arrays import as_tensor, numpy_dtype
from kpops.models.recurrence import Recurrence


def read_model(
    model: Any,
    dtype: torch.dtype | None,
    device: torch.device | str | None = None,
    inputs: Any = None,
    h0: Any = None,
) -> Recurrence:
    """Private copy of a model, or of its recurrent part, in which nothing learns."""
    parts = snapshot.take_apart(model, inputs, dtype, h0=h0)
    return snapshot.of_model(parts, dtype, device).requires_grad_(False)


def like_what(
    recurrence: Recurrence, given: Mapping[str, Any], dtype: torch.dtype | None
) -> Tensor:
    """An empty tensor of the dtype and on the device of the computation.

    These are the model's; without parameters and buffers, those of the first floating array given.
    """
    arrays = [_first(array, name) for name, array in given.items() if array is not None]
    every = (*recurrence.parameters(), *recurrence.buffers(), *arrays)
    like = next((a for a in every if a.is_floating_point()), torch.empty(0))
    like = torch.empty(0, dtype=dtype or like.dtype, device=like.device)
    numpy_dtype(like.dtype)  # refuses dtypes that kpops does not compute in
    return like


def _first(array: Any, name: str) -> Tensor:
    """The array, or the first of several (parts of a state, trials), as a tensor."""
    if isinstance(array, tuple | list) and len(array):
        array = array[0]
    return as_tensor(array.data if isinstance(array, xr.DataArray) else array, name)


def bring(array: Any, like: Tensor, name: str, convert: bool) -> Tensor:
    """A private copy of `array` in the dtype and on the device of `like`; it must be finite."""
    tensor = as_tensor(array, name)
    if tensor.is_floating_point() and tensor.dtype != like.dtype and not convert:
        raise TypeError(
            f"{name} is {tensor.dtype}, the model {like.dtype}: convert one of them, for example "
            f"both by dtype={tensor.dtype} where the model is passed"
        )
    if not tensor.isfinite().all():
        raise ValueError(f"{name} is not finite: leave such values out")
    return tensor.to(device=like.device, dtype=like.dtype, copy=True)


def steady_input(recurrence: Recurrence, x: Tensor) -> Tensor:
    """What every step but the first reads if the input is constantly x (feature,) or rows of x."""
    rows = recurrence.prepare_inputs(torch.atleast_2d(x)[:, None].expand(-1, 2, -1))[:, 1]
    return rows if x.ndim == 2 else rows[0]


def n_inputs(recurrence: Recurrence, n_read: int | None = None) -> int:
    """Number of features of the user's input if the steps read `n_read`; 1 if nothing is known."""
    if recurrence.input_size is not None:
        return recurrence.input_size
    if n_read is None:
        return 1
    return n_read + 1 - len(steady_input(recurrence, torch.zeros(1)))


def constant_input(
    recurrence: Recurrence, n_read: int | None, x: Any, like: Tensor, convert: bool
) -> Tensor:
    """One constant input (feature,), zeros if None is given, for steps that read `n_read`."""
    size = n_inputs(recurrence, n_read)
    if x is None:
        return like.new_zeros(size)
    x = bring(x, like, "input", convert)
    anyhow = n_read is None and recurrence.input_size is None
    if x.ndim != 1 or not (anyhow or len(x) == size):
        raise ValueError(
            f"input has shape {tuple(x.shape)}, expected (feature,) = ({size},): one constant "
            "input; call once for each"
        )
    return x
