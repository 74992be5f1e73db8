"""One analysis of a model at its checkpoints: load the weights, linearise, measure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from kpops.arrays import refuse_complex
from kpops.kinds import described, has_argument
from kpops.learning.checkpoints import Checkpoints
from kpops.learning.resumption import describe_model
from kpops.linearization import Linearization
from kpops.snapshot import copied
from kpops.studies.identity import describe, fingerprint
from kpops.studies.results import Measure, as_dataset


@dataclass(frozen=True)
class Analysis:
    """What is measured at each checkpoint of a model, on a copy of its own."""

    model: nn.Module
    inputs: Any
    measure: Measure
    linearizer: Callable[..., Linearization]
    options: Mapping[str, Any]

    @classmethod
    def read(
        cls,
        model: nn.Module,
        inputs: Any,
        measure: Measure,
        linearizer: Callable[..., Linearization],
        options: Mapping[str, Any] | None,
    ) -> Analysis:
        """Analysis from the arguments of :func:`kpops.over_training`, which it checks."""
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"model is {described(model)}: pass the module whose checkpoints these are"
            )
        for name, function in (("measure", measure), ("linearizer", linearizer)):
            if not callable(function):
                hint = "; the measure of trials and time goes into options={'measure': ...}"
                hint = hint if isinstance(function, str) else ""
                raise TypeError(f"{name} is {described(function)}: pass a function{hint}")
        if not isinstance(options, Mapping | None):
            raise TypeError(
                f"options is {described(options)}: pass a dict, such as {{'mask': mask}}"
            )
        return cls(copied(model), inputs, measure, linearizer, options or {})

    @property
    def remembers(self) -> bool:
        """Whether the measure takes its result at the checkpoint before."""
        return has_argument(self.measure, "previous")

    def __call__(self, state: Any, previous: xr.Dataset | None) -> xr.Dataset:
        """Measure at the weights of a checkpoint."""
        load_weights(self.model, state)
        lin = self.linearizer(self.model, self.inputs, **self.options)
        result = self.measure(lin, previous=previous) if self.remembers else self.measure(lin)
        return as_dataset(result, reserved=("step",))

    def describe(self) -> dict[str, Any]:
        """What must be the same for results to stand side by side, as plain Python."""
        functions: dict[str, Any] = {"measure": self.measure, "linearizer": self.linearizer}
        return {
            **{n: "{name} {hash}".format_map(describe(f)) for n, f in functions.items()},
            "fingerprint of inputs": fingerprint(self.inputs),
            **{f"option {name}": _shown(value) for name, value in self.options.items()},
            **describe_model(self.model),
        }


def _shown(value: Any) -> Any:
    return value if isinstance(value, str | int | float | None) else fingerprint(value)


def fingerprint_of_weights(state: Mapping[str, Any]) -> str:
    """Hash of the names and values of a state dict."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        if isinstance(value, torch.Tensor):
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def checked_steps(checkpoints: Any) -> int | None:
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
    pairs = list(pairs_of(checkpoints))
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


def pairs_of(checkpoints: Iterable[Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The checkpoints one by one, with their steps as plain ints."""
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


def load_weights(model: nn.Module, state: Any) -> None:
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
