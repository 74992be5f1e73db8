"""Measure the same thing at every checkpoint of a training run."""

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
from kpops.kinds import described
from kpops.learning.checkpoints import Checkpoints
from kpops.learning.checkpoints import checkpoints as read_checkpoints
from kpops.learning.measurements import as_dataset, join, refuse_other_shape
from kpops.learning.required import takes
from kpops.linearization import Linearization, linearize

Measure = Callable[..., "xr.Dataset | xr.DataArray | Mapping[str, Any]"]


class MeasureError(RuntimeError):
    """A checkpoint could not be read, linearised or measured; the others are not lost.

    Attributes
    ----------
    finished : Dataset or None
        What :func:`kpops.over_training` would have returned of the checkpoints before.
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
    """Linearise a model at each checkpoint and collect what `measure` says of it.

    Parameters
    ----------
    model : nn.Module
        The architecture; a copy of it takes the weights of each checkpoint.
    checkpoints : path, or iterable of (step, state_dict)
        A folder written by :func:`kpops.training.train`, what :func:`kpops.training.checkpoints`
        finds, or anybody's checkpoints, in any order. Steps are whole numbers.
    inputs : Tensor, array_like or DataArray
        Passed to the linearizer.
    measure : callable
        ``measure(lin)`` takes a :class:`kpops.Linearization` and returns a Dataset, a DataArray
        with a name, or a mapping of names to numbers, arrays or DataArrays. The axes of an array
        become the dims ``name_dim_0``, ``name_dim_1``, and so on. If it has a parameter
        ``previous``, it gets what it returned of the checkpoint before, as a Dataset, or None.
    linearizer : callable
        ``linearizer(model, inputs, **options)``. Give your own where the model is not what
        :func:`kpops.linearize` takes, for example ``lambda model, inputs:
        kpops.linearize(model.gru, inputs, readout=model.fc)``.
    options : mapping, optional
        Options of the linearizer, such as ``{"mask": mask, "measure": "mean"}``.
    progress : bool
        Show a progress bar.
    on_interrupt : {"raise", "return"}
        What Ctrl-C does: raise KeyboardInterrupt, whose attribute ``finished`` has what is
        finished, or return that, if anything is.

    Returns
    -------
    Dataset
        What `measure` returned, with the new leading dim ``step``, the training iteration, in
        increasing order.

    Raises
    ------
    ValueError
        If there are no checkpoints, steps repeat or are no whole numbers, or the state dicts of two
        steps share their memory.
    TypeError
        If `model`, `checkpoints`, `measure` or `options` is of another kind.
    MeasureError
        If a checkpoint cannot be read, does not fit the model, cannot be linearised or measured, or
        is measured as something else than those before. It names the step; its attribute
        ``finished`` has the steps before, its ``__cause__`` is the error itself.

    Examples
    --------
    >>> import copy, torch, kpops
    >>> gru = torch.nn.GRU(3, 4, batch_first=True)
    >>> checkpoints = [(step, copy.deepcopy(gru.state_dict())) for step in (0, 10)]
    >>> norm = lambda lin: {"norm": float(abs(lin.states).max())}
    >>> kpops.over_training(gru, checkpoints, torch.zeros(2, 5, 3), norm).step.values
    array([ 0, 10])

    The modes of a checkpoint are near those of the one before, where the search for them starts:

    >>> def modes(lin, previous):
    ...     v0 = None if previous is None else previous.eigenfunction
    ...     return kpops.eigsh(lin.flow, 2, v0=v0, rng=0)
    >>> kpops.over_training(gru, checkpoints, torch.zeros(2, 5, 3), modes).eigenvalue.sizes
    Frozen({'step': 2, 'mode': 2})
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {described(model)}: pass the module whose checkpoints these are")
    options = _checked_options(measure, linearizer, options, on_interrupt)
    if isinstance(checkpoints, str | os.PathLike):
        checkpoints = read_checkpoints(checkpoints)
    total = _checked_steps(checkpoints)
    mine = copy.deepcopy(model)
    remembers = takes(measure, "previous")
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
                lin = linearizer(mine, inputs, **options)
                result = measure(lin, previous=previous) if remembers else measure(lin)
                previous = as_dataset(result)
                refuse_other_shape(previous, results)
                results[step] = previous
                where = f"at the checkpoint after step {step}"
                bar.update()
    except KeyboardInterrupt as interrupt:
        interrupt.finished = join(results)  # type: ignore[attr-defined]
        if on_interrupt == "raise" or not results:
            raise
    except Exception as error:
        kind = "" if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: "
        raise MeasureError(f"{where}: {kind}{error}", join(results)) from error
    joined = join(results)
    if joined is None:
        raise ValueError("checkpoints is empty: pass at least one (step, state_dict)")
    return joined


def _checked_options(
    measure: Any, linearizer: Any, options: Any, on_interrupt: str
) -> dict[str, Any]:
    for name, function in (("measure", measure), ("linearizer", linearizer)):
        if not callable(function):
            hint = ""
            if isinstance(function, str):
                hint = "; the measure of trials and time goes into options={'measure': ...}"
            raise TypeError(f"{name} is {described(function)}: pass a function{hint}")
    if not isinstance(options, Mapping | None):
        raise TypeError(f"options is {described(options)}: pass a dict, such as {{'mask': mask}}")
    work.check_on_interrupt(on_interrupt)
    return dict(options or {})


def _checked_steps(checkpoints: Any) -> int | None:
    """Number of checkpoints, None if they come one by one; refuses what can be seen before."""
    if isinstance(checkpoints, Checkpoints):
        return len(checkpoints)
    if isinstance(checkpoints, Mapping):
        raise TypeError(
            f"checkpoints is {described(checkpoints)}: pass pairs (step, state_dict), for example "
            "a dict's .items(), or [(0, model.state_dict())] for a single one"
        )
    if not isinstance(checkpoints, Iterable):
        raise TypeError(
            f"checkpoints is {described(checkpoints)}: pass a folder, or pairs (step, state_dict)"
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
                "training has gone on to change: keep copy.deepcopy(model.state_dict()) of each"
            )
    return len(steps)


def _memory(state: Any) -> dict[str, int]:
    """Where the tensors of a state dict are in memory."""
    items = state.items() if isinstance(state, Mapping) else ()
    return {k: v.data_ptr() for k, v in items if isinstance(v, torch.Tensor) and v.numel()}


def _pairs(checkpoints: Iterable[Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, pair in enumerate(checkpoints):
        if not (isinstance(pair, tuple | list) and len(pair) == 2):
            raise TypeError(
                f"checkpoint number {number} is {described(pair)}, expected (step, state_dict)"
            )
        yield _whole(pair[0]), pair[1]


def _whole(step: Any) -> int:
    number = step.item() if isinstance(step, torch.Tensor | np.ndarray) and not step.shape else step
    is_number = isinstance(number, int | float | np.number) and not isinstance(number, bool)
    if not is_number or number != np.floor(number) or not np.isfinite(number):
        raise ValueError(
            f"step {step!r} is no whole number: number the checkpoints by training iterations"
        )
    return int(number)


def _load(model: nn.Module, state: Any) -> None:
    """Load weights, none of which may lose precision."""
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
    """The remedy where names of a checkpoint only have a prefix too much."""
    first = next(iter(mine), None)
    prefixes = {n.removesuffix(first) for n in state if first and n.endswith(f".{first}")}
    found = [p for p in prefixes if set(mine) <= {n.removeprefix(p) for n in state}]
    if not found:
        return "\nPass the model whose checkpoints these are, of the same sizes and names"
    return (
        f"\nAll names begin with {found[0]!r}: read the folder by kpops.training.checkpoints("
        f"folder, prefix={found[0]!r}), or remove it from the names"
    )
