"""Take the same measure at every checkpoint of a training run."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import nn
from tqdm.auto import tqdm

from kpops import work
from kpops.arrays import refuse_complex
from kpops.kinds import described, has_argument
from kpops.learning.checkpoints import Checkpoints
from kpops.learning.checkpoints import checkpoints as read_checkpoints
from kpops.learning.required import labelled
from kpops.linearization import Linearization, linearize
from kpops.studies.results import Measure, as_dataset


class MeasureError(RuntimeError):
    """A checkpoint could not be read, linearised or measured; the others are not lost.

    ``finished`` is the result of :func:`kpops.over_training` for those before, or None.
    """

    def __init__(self, message: str, finished: xr.Dataset | None = None) -> None:
        super().__init__(message)
        self.finished = finished


def over_training(
    model: nn.Module,
    checkpoints: str | os.PathLike[str] | Iterable[tuple[int, Mapping[str, Any]]],
    inputs: Any,
    measure: Measure,
    *,
    linearizer: Callable[..., Linearization] = linearize,
    options: Mapping[str, Any] | None = None,
    progress: bool = False,
    on_interrupt: Literal["raise", "return"] = "raise",
) -> xr.Dataset:
    """Linearise a model at each checkpoint and collect the results of `measure`.

    Parameters
    ----------
    model : nn.Module
        The architecture; a copy of it gets the weights of each checkpoint.
    checkpoints : path, or iterable of (step, state_dict)
        A folder written by :func:`kpops.training.train`, the result of
        :func:`kpops.training.checkpoints`, or any checkpoints, in any order of whole steps.
    inputs : Tensor, array_like or DataArray
        Passed to the linearizer.
    measure : callable
        ``measure(lin)`` takes a :class:`kpops.Linearization` and returns a Dataset, a named
        DataArray, or a mapping of names to numbers, arrays or DataArrays. The axes of an array
        become the dimensions ``name_dim_0``, ``name_dim_1``, and so on. If it has a parameter
        ``previous``, that gets the result at the checkpoint before as a Dataset, or None.
    linearizer : callable
        ``linearizer(model, inputs, **options)``, for models that :func:`kpops.linearize` does not
        take: ``lambda model, inputs: kpops.linearize(model.gru, inputs, readout=model.fc)``.
    options : mapping, optional
        Options of the linearizer, such as ``{"mask": mask, "measure": "mean"}``.
    progress : bool
        Show a progress bar.
    on_interrupt : {"raise", "return"}
        What Ctrl-C does: raise KeyboardInterrupt with the finished part in its attribute
        ``finished``, or return that part, if there is one.

    Returns
    -------
    Dataset
        The results of `measure`, with the leading dimension ``step``, the training iteration,
        increasing.

    Raises
    ------
    ValueError
        If there are no checkpoints, steps repeat or are no whole numbers, or the state dicts of two
        steps share memory.
    TypeError
        If `model`, `checkpoints`, `measure` or `options` has the wrong type.
    MeasureError
        If a checkpoint cannot be read, does not fit the model, cannot be linearised or measured, or
        its result has another form than those before. It names the step; ``finished`` holds the
        steps before, ``__cause__`` the original error.

    Examples
    --------
    >>> import copy, torch, kpops
    >>> gru = torch.nn.GRU(3, 4, batch_first=True)
    >>> checkpoints = [(step, copy.deepcopy(gru.state_dict())) for step in (0, 10)]
    >>> norm = lambda lin: {"norm": float(abs(lin.states).max())}
    >>> kpops.over_training(gru, checkpoints, torch.zeros(2, 5, 3), norm).step.values
    array([ 0, 10])

    Modes change little from one checkpoint to the next, so the search starts from the last ones:

    >>> def modes(lin, previous):
    ...     v0 = None if previous is None else previous.eigenfunction
    ...     return kpops.eigsh(lin.flow, 2, v0=v0, rng=0)
    >>> kpops.over_training(gru, checkpoints, torch.zeros(2, 5, 3), modes).eigenvalue.sizes
    Frozen({'step': 2, 'mode': 2})
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {described(model)}: pass the module whose checkpoints these are")
    for name, function in (("measure", measure), ("linearizer", linearizer)):
        if not callable(function):
            hint = "; the measure of trials and time goes into options={'measure': ...}"
            hint = hint if isinstance(function, str) else ""
            raise TypeError(f"{name} is {described(function)}: pass a function{hint}")
    if not isinstance(options, Mapping | None):
        raise TypeError(f"options is {described(options)}: pass a dict, such as {{'mask': mask}}")
    work.check_on_interrupt(on_interrupt)
    if isinstance(checkpoints, str | os.PathLike):
        checkpoints = read_checkpoints(checkpoints)
    total = _checked_steps(checkpoints)
    mine = copy.deepcopy(model)
    remembers = has_argument(measure, "previous")
    results: dict[int, xr.Dataset] = {}
    where, previous = "at the first checkpoint", None
    bar = tqdm(total=total, desc="checkpoints", disable=not progress)
    try:
        with bar:
            for step, state in _pairs(checkpoints):
                where = f"at step {step}"
                if step in results:
                    raise ValueError("the step is there twice: number the checkpoints")
                bar.set_postfix_str(f"step {step}")
                _load(mine, state)
                lin = linearizer(mine, inputs, **(options or {}))
                result = measure(lin, previous=previous) if remembers else measure(lin)
                previous = as_dataset(result, reserved=("step",))
                _refuse_other_form(previous, results)
                results[step] = previous
                where = f"at the checkpoint after step {step}"
                bar.update()
    except KeyboardInterrupt as interrupt:
        interrupt.finished = _join(results)  # type: ignore[attr-defined]
        if on_interrupt == "raise" or not results:
            raise
    except Exception as error:
        kind = "" if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: "
        raise MeasureError(f"{where}: {kind}{error}", _join(results)) from error
    joined = _join(results)
    if joined is None:
        raise ValueError("checkpoints is empty: pass at least one (step, state_dict)")
    return joined


def _checked_steps(checkpoints: Any) -> int | None:
    """Number of checkpoints, None if they come one by one; refuses what is wrong from the start."""
    if isinstance(checkpoints, Checkpoints):
        return len(checkpoints)
    if isinstance(checkpoints, Mapping) or not isinstance(checkpoints, Iterable):
        raise TypeError(
            f"checkpoints is {described(checkpoints)}: pass a folder, or pairs (step, state_dict), "
            "such as a dict's .items(), or [(0, model.state_dict())] for a single one"
        )
    if not isinstance(checkpoints, Sequence):
        return None
    pairs = list(_pairs(checkpoints))
    steps = [step for step, _ in pairs]
    if len(set(steps)) < len(steps):
        raise ValueError(f"checkpoints repeat a step: {sorted(steps)}; pass each once")
    for (step, state), (later, other) in pairwise(pairs):
        if _memory(state) and _memory(state) == _memory(other):
            raise ValueError(
                f"checkpoints of steps {step} and {later} are the same tensors in memory, which "
                "training went on to change: keep copy.deepcopy(model.state_dict()) of each"
            )
    return len(steps)


def _memory(state: Any) -> dict[str, int]:
    """Memory addresses of the tensors of a state dict."""
    items = state.items() if isinstance(state, Mapping) else ()
    return {k: v.data_ptr() for k, v in items if isinstance(v, torch.Tensor) and v.numel()}


def _pairs(checkpoints: Iterable[Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, pair in enumerate(checkpoints):
        if not (isinstance(pair, tuple | list) and len(pair) == 2):
            raise TypeError(
                f"checkpoint number {number} is {described(pair)}, expected (step, state_dict)"
            )
        step, state = pair
        scalar = isinstance(step, torch.Tensor | np.ndarray) and not step.shape
        number = step.item() if scalar else step
        is_number = isinstance(number, int | float | np.number) and not isinstance(number, bool)
        if not is_number or number != np.floor(number) or not np.isfinite(number):
            raise ValueError(
                f"step {step!r} is no whole number: number the checkpoints by training iterations"
            )
        yield int(number), state


def _load(model: nn.Module, state: Any) -> None:
    """Load weights, without loss of precision."""
    if not isinstance(state, Mapping):
        raise TypeError(f"the checkpoint is {described(state)}, expected a state dict")
    refuse_complex(state.items(), "the checkpoint")
    mine = model.state_dict()
    for name in state.keys() & mine.keys():
        value, like = state[name], mine[name]
        if torch.promote_types(value.dtype, like.dtype) != like.dtype:
            raise ValueError(
                f"the checkpoint holds {name} in {value.dtype}, the model in {like.dtype}: convert "
                "the model, for example by model.double(), or the checkpoint"
            )
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the checkpoint does not fit: {error}{_prefix(state, mine)}") from error


def _prefix(state: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    """The remedy, in particular where the names only have an extra prefix."""
    first = next(iter(mine), None)
    prefixes = {n.removesuffix(first) for n in state if first and n.endswith(f".{first}")}
    found = [p for p in prefixes if set(mine) <= {n.removeprefix(p) for n in state}]
    if not found:
        return "\nPass the model whose checkpoints these are, of the same sizes and names"
    return (
        f"\nAll names begin with {found[0]!r}: read the folder by kpops.training.checkpoints("
        f"folder, prefix={found[0]!r}), or remove it from the names"
    )


def _refuse_other_form(result: xr.Dataset, before: Mapping[int, xr.Dataset]) -> None:
    """Refuse what cannot be joined with the results of the steps before."""
    if not before:
        return
    step, first = next(iter(before.items()))
    for kind, noun in {"data_vars": "variables", "coords": "coordinates"}.items():
        mine, theirs = (sorted(map(str, getattr(d, kind))) for d in (result, first))
        if mine != theirs:
            raise ValueError(
                f"measure returned the {noun} {mine}, at step {step} {theirs}: return the same at "
                "every checkpoint"
            )
    for name, variable in result.variables.items():
        sizes, wanted = dict(variable.sizes), dict(first[name].sizes)
        if sizes != wanted:
            raise ValueError(
                f"measure returned {name} of sizes {sizes}, at step {step} {wanted}: return the "
                "same sizes at every checkpoint, padded with NaN if need be"
            )
    for dim in result.dims:
        if dim in result.coords and not result[dim].equals(first[dim]):
            raise ValueError(
                f"measure returned other labels of {dim} than at step {step}: give the dimension "
                "the same labels at every checkpoint, and return what differs as a variable"
            )


def _join(results: Mapping[int, xr.Dataset]) -> xr.Dataset | None:
    """One Dataset with the dimension step, or None if there are no results."""
    if not results:
        return None
    steps = sorted(results)
    joined = xr.concat(
        [results[step] for step in steps],
        dim="step",
        combine_attrs="drop_conflicts",
        join="exact",
        data_vars="all",
        coords="different",  # a coordinate that changes over training is kept for every step
        compat="equals",
    )
    return joined.assign_coords(step=labelled("step", np.array(steps), "training iteration"))
