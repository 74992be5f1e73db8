"""The inputs, masks and initial states of users, and their labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence, pad_sequence

from kpops.arrays import as_tensor, to_numpy
from kpops.distributed.parts import WHOLE, Parts
from kpops.labels import Coordinate, Space, by_name, coordinates_of, disagreeing
from kpops.models.recurrence import Recurrence

_OURS = ("unit", "output", "parameter", "parameter_name", "mode", "operator", "kind")
"""Coordinates that results have beside those of the inputs."""


class Reading(NamedTuple):
    """How the inputs were read; later arrays without labels are read alike."""

    time_first: bool = False
    converted: str = ""
    by_trial: bool = False  # a list of trials, for a model whose own order is time first

    def trial_first(self, tensor: Tensor, name: str, *sizes: int) -> Tensor:
        """Bring a tensor without labels to (trial, time, ...), if it has both dimensions."""
        if self == BY_TRIAL:
            return tensor
        n_trials, n_steps = sizes
        shape = tuple(tensor.shape[:2])
        if self.by_trial and shape == (n_trials, n_steps) and n_trials == n_steps > 1:
            dims = ("trial", "time", "output")[: tensor.ndim]
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} and no labels; inputs were a list of "
                "trials, the model reads time first, and both sizes are alike: pass it as "
                f"xarray.DataArray({name}, dims={dims})"
            )
        if not self.time_first or tensor.ndim < 2:
            return tensor
        if shape == (n_trials, n_steps) and shape != (1, 1):
            dims = ("time", "trial", "output")[: tensor.ndim]
            many = f", and both sizes are {n_steps}" if n_trials == n_steps else ""
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} and no labels, the inputs were read as "
                f"(time, trial, feature){many}: give it in the same order, and if the sizes leave "
                f"the order open, as xarray.DataArray({name}, dims={dims})"
            )
        return tensor.transpose(0, 1) if shape == (n_steps, n_trials) else tensor

    def __str__(self) -> str:
        order = ", inputs read as (time, trial, feature)" if self.time_first else ""
        order += ", inputs read as a list of trials" if self.by_trial else ""
        return order + (f", inputs {self.converted}" if self.converted else "")


BY_TRIAL = Reading()
"""Arrays are (trial, time, ...)."""


class Inputs(NamedTuple):
    """The inputs of all steps, which of them are valid, the user's labels, and the order."""

    x: Tensor  # (trial, time, feature)
    valid: Tensor | None  # (trial, time); None if all are
    coords: dict[str, Coordinate]
    reading: Reading


def read_inputs(
    inputs: Any, mask: Any, recurrence: Recurrence, like: Tensor, *, convert: bool
) -> Inputs:
    """Read inputs and mask, in the dtype and on the device of `like`.

    With `convert`, other floating dtypes are converted; else they are refused.
    """
    coords: dict[str, Coordinate] = {}
    time_first = recurrence.time_major
    by_trial = time_first and _is_list_of_arrays(inputs)
    lengths = None
    if isinstance(inputs, xr.DataArray):
        inputs, coords, time_first = _by_dims(inputs)
    elif isinstance(inputs, PackedSequence):
        inputs, lengths = pad_packed_sequence(inputs, batch_first=not time_first)
    elif _is_list_of_arrays(inputs):
        inputs, lengths, time_first = _padded(inputs, time_first)
    x = as_tensor(inputs, "inputs")
    _check_shape(x, recurrence, time_first)
    if time_first:
        x = x.transpose(0, 1)
    if lengths is not None:
        if mask is not None:
            raise ValueError(
                "mask is given with a PackedSequence or a list of trials, which have their own "
                "lengths: drop it"
            )
        mask = xr.DataArray(np.arange(x.shape[1]) < lengths.numpy()[:, None], dims=_STEPS)
    given = x
    if x.is_floating_point() and x.dtype != like.dtype and not convert:
        raise TypeError(
            f"inputs is {x.dtype}, the model {like.dtype}: convert one of them, or pass "
            f"dtype={like.dtype} to convert both"
        )
    # A snapshot: row-major by trial, and never shared with the user's array.
    x = x.to(device=like.device, dtype=like.dtype, copy=True).contiguous()
    reading = Reading(time_first, _conversion(given, x), by_trial)
    valid = _read_mask(mask, x, coords, reading)
    if "mask" in coords:
        own = xr.DataArray(coords["mask"].values, dims=coords["mask"].dims)
        theirs = _read_mask(own, x, coords, reading)
        if mask is not None and not _same(valid, theirs):
            raise ValueError("mask and the coordinate mask of inputs differ: drop one")
        valid = theirs
    elif valid is not None:
        coords["mask"] = valid_steps(to_numpy(valid))
    coords = _times(recurrence, given, valid) | coords
    return Inputs(recurrence.prepare_inputs(x), valid, coords, reading)


_STEPS = ("trial", "time")


def valid_steps(mask: np.ndarray) -> Coordinate:
    """The coordinate ``mask`` (trial, time)."""
    return Coordinate(_STEPS, mask, {"long_name": "valid step"})


def _by_dims(inputs: xr.DataArray) -> tuple[Any, dict[str, Coordinate], bool]:
    """Values (trial, time, feature) or (time, trial, feature), labels, and if time is first."""
    if inputs.ndim != 3 or not set(_STEPS) <= set(inputs.dims):
        raise ValueError(f"inputs has dims {inputs.dims}, expected trial, time and one of features")
    coords = coordinates_of(inputs, _STEPS)
    _refuse_taken(coords, _OURS, "kpops needs for its own")
    if "mask" in coords and sorted(coords["mask"].dims) != sorted(_STEPS):
        raise ValueError(
            f"inputs has a coordinate mask with dims {coords['mask'].dims}, and kpops reads it as "
            "the valid steps (trial, time): rename it, or drop it by inputs.drop_vars('mask')"
        )
    order = [d for d in inputs.dims if d in _STEPS]
    return inputs.transpose(*order, ...).data, coords, order[0] == "time"


def _refuse_taken(coords: Iterable[str], names: Iterable[str], whose: str) -> None:
    taken = sorted(set(coords) & set(names))
    if taken:
        raise ValueError(
            f"inputs has the coordinates {taken}, which {whose}: rename them, or drop them by "
            f"inputs.drop_vars({taken})"
        )


def _is_list_of_arrays(inputs: Any) -> bool:
    several = isinstance(inputs, list | tuple) and len(inputs) > 0
    return several and all(hasattr(trial, "ndim") for trial in inputs)


def _padded(trials: Any, time_first: bool) -> tuple[Tensor, Tensor | None, bool]:
    """Trials (time, feature) as one tensor; their lengths, if they differ; if time is first."""
    if any(isinstance(trial, xr.DataArray) for trial in trials):
        raise TypeError(
            "inputs is a list of DataArrays: join them by xarray.concat(inputs, 'trial'), and pass "
            "mask= if their lengths differ"
        )
    tensors = [as_tensor(trial, f"inputs[{i}]") for i, trial in enumerate(trials)]
    for i, tensor in enumerate(tensors):
        first, shape = tensors[0], tuple(tensor.shape)
        if tensor.ndim != 2 or not len(tensor):
            raise ValueError(
                f"inputs[{i}] has shape {shape}, expected (time, feature) with one step or more"
                + _one_hot(tensor, None)
            )
        if (shape[1], tensor.dtype) != (first.shape[1], first.dtype):
            raise ValueError(
                f"inputs[{i}] is {shape}, {tensor.dtype}, and inputs[0] {tuple(first.shape)}, "
                f"{first.dtype}: give all trials the same features and dtype"
            )
    if len({len(tensor) for tensor in tensors}) > 1:
        lengths = torch.tensor([len(tensor) for tensor in tensors])
        return pad_sequence(tensors, batch_first=True), lengths, False
    if time_first:
        raise ValueError(
            "inputs is a list of arrays of one length, and the model reads (time, trial, feature): "
            "if they are trials, pass torch.stack(inputs, dim=1), if steps, torch.stack(inputs)"
        )
    return torch.stack(tensors), None, False


def _check_shape(x: Tensor, recurrence: Recurrence, time_first: bool) -> None:
    size, shape = recurrence.input_size, tuple(x.shape)
    expected = "(time, trial, feature)" if time_first else "(trial, time, feature)"
    if x.ndim != 3:
        raise ValueError(
            f"inputs has shape {shape}, expected {expected}; for a single trial add a "
            "dimension of size 1, for a model without inputs give 0 features" + _one_hot(x, size)
        )
    if 0 in shape[:2]:
        raise ValueError(
            f"inputs has shape {shape} as {expected}: pass one trial and one step or more"
        )
    if size is not None and shape[2] != size:
        raise ValueError(
            f"inputs has shape {shape} as {expected}, the model takes {size} features: give the "
            "last dimension that size" + (_one_hot(x, size) if shape[2] == 1 else "")
        )


def _one_hot(x: Tensor, size: int | None) -> str:
    """The remedy for indices of classes, if x may be such."""
    if x.is_floating_point() or x.dtype == torch.bool:
        return ""
    number = "num_classes" if size is None else size
    return f"; indices of classes become features by torch.nn.functional.one_hot(inputs, {number})"


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


def _conversion(given: Tensor, x: Tensor) -> str:
    """Dtypes before and after, of inputs that are not floating-point numbers."""
    if given.is_floating_point():
        return ""
    names = [str(t.dtype).removeprefix("torch.") for t in (given, x)]
    if not torch.equal(x.to(torch.int64), given.to(x.device, torch.int64)):
        raise ValueError(
            f"inputs is {names[0]} with integers that {names[1]} does not hold: scale them, or "
            "pass dtype=torch.float64"
        )
    return " -> ".join(names)


def _times(recurrence: Recurrence, inputs: Tensor, valid: Tensor | None) -> dict[str, Coordinate]:
    """Coordinates of the times at which steps end, if the model knows them."""
    times = recurrence.times(inputs)
    if times is None:
        return {}
    there = np.ones(times.shape, bool) if valid is None else to_numpy(valid)
    longest = times[there.sum(1).argmax()]
    if ((times == longest) | ~there).all():
        rises = bool((np.diff(longest) > 0).all())
        return {"time": Coordinate(("time",), longest, _TIME)} if rises else {}
    return {"trial_time": Coordinate(_STEPS, times, {**_TIME, "long_name": "time of the trial"})}


_TIME = {"long_name": "time", "units": "1"}


def _read_mask(
    mask: Any, x: Tensor, coords: dict[str, Coordinate], reading: Reading
) -> Tensor | None:
    """The mask as booleans (trial, time), or None if every step is valid."""
    if mask is None:
        return None
    labelled = isinstance(mask, xr.DataArray)
    if labelled:
        mask = by_name(mask, Space(_STEPS, (x.shape[0], x.shape[1]), coords), "mask")
    valid = as_tensor(mask, "mask").to(device=x.device)
    if not labelled:
        valid = reading.trial_first(valid, "mask", *x.shape[:2])
    if tuple(valid.shape) != tuple(x.shape[:2]):
        order = -1 if reading.time_first else 1
        expected = f"({', '.join(_STEPS[::order])}) = {tuple(x.shape[:2])[::order]}"
        raise ValueError(f"mask has shape {tuple(valid.shape)}, expected {expected}")
    if valid.dtype != torch.bool:
        if not ((valid == 0) | (valid == 1)).all():
            raise ValueError(
                f"mask has values other than 0 and 1, {valid.unique()[:3].tolist()}: pass "
                "booleans, and weights as loss_mask"
            )
        valid = valid.bool()
    empty = (~valid[:, 0]).nonzero()
    if len(empty):
        raise ValueError(
            f"mask has no valid first step in trial {int(empty[0])}: drop empty trials, "
            "and shift those that are padded on the left"
        )
    resumed = (valid[:, 1:] & ~valid[:, :-1]).nonzero()
    if len(resumed):
        raise ValueError(
            f"mask of trial {int(resumed[0, 0])} is True after a False: valid steps must come "
            "first, padding last; to weight a loss, put the weights into the loss"
        )
    return None if valid.all() else valid.clone()


def read_state(h0: Any, dtype: torch.dtype | None, coords: dict[str, Coordinate]) -> Any:
    """Initial state, or its parts, as tensors; in `dtype`, if it is given."""
    if h0 is None:
        return None
    if isinstance(h0, tuple):
        return tuple(read_state(part, dtype, coords) for part in h0)
    if isinstance(h0, xr.DataArray):
        if set(h0.dims) not in ({"unit"}, {"trial", "unit"}):
            raise ValueError(f"h0 has dims {h0.dims}, expected trial and unit, or unit")
        own = {k: c for k, c in coords.items() if c.dims == ("trial",)}
        labels = disagreeing(h0, Space(("trial",), (h0.sizes.get("trial", 1),), own))
        if labels:
            raise ValueError(f"h0 and the inputs disagree on the labels of {labels}: align them")
        h0 = h0.transpose(..., "unit").data
    tensor = as_tensor(h0, "h0")
    return tensor if dtype is None else tensor.to(dtype)


def trajectory_space(
    recurrence: Recurrence,
    shape: tuple[int, ...],
    coords: dict[str, Coordinate],
    parts: Parts = WHOLE,
) -> Space:
    """Space (trial, time, unit) of a `shape`, with the user's labels where there are any."""
    dims = ("trial", "time", "unit")
    of_units = recurrence.unit_coords(shape[2])
    _refuse_taken(coords, of_units, f"the units of {type(recurrence.module).__name__} have")
    firsts = {"trial": parts.offset, "time": 1, "unit": 0}
    numbers = {d: np.arange(n) + firsts[d] for d, n in zip(dims, shape, strict=True)}
    ours = {d: Coordinate((d,), values) for d, values in numbers.items()}
    ours |= {k: Coordinate(("unit",), values) for k, values in of_units.items()}
    return Space(dims, tuple(shape), ours | coords, parts)
