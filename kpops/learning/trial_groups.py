"""Trials in groups, such as tasks: their members, matches, shuffles and gradients."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops.engines.memory import check_allocation
from kpops.labels import by_name
from kpops.learning.required import require_linearization
from kpops.linearization import Linearization


@dataclass(frozen=True)
class Groups:
    """Trials in two or more groups."""

    names: np.ndarray  # in the order in which they first appear
    members: tuple[np.ndarray, ...]  # positions of the trials of each group
    matched: bool  # whether the k-th members of all groups are of one condition

    def __len__(self) -> int:
        return len(self.names)

    def position(self, name: Any) -> int:
        """Number of the group `name`."""
        here = np.flatnonzero(self.names == name)
        if not here.size:
            raise ValueError(f"no task {name!r}: choose from {self.names.tolist()}")
        return int(here[0])

    def shuffled(self, rng: np.random.Generator) -> Groups:
        """Exchange trials between groups, only within each condition if they are matched."""
        if self.matched:
            members = tuple(rng.permuted(np.stack(self.members), axis=0))
        else:
            ends = np.cumsum([len(m) for m in self.members])[:-1]
            members = tuple(np.split(rng.permutation(np.concatenate(self.members)), ends))
        return dataclasses.replace(self, members=members)


def group_trials(lin: Linearization, by: Any, condition: Any = None) -> Groups:
    """Group the trials of a linearization, and match them.

    `by` and `condition` name a coordinate of trials, or label each trial. Trials of one condition
    match; without conditions, the k-th trials of groups of equal size do.
    """
    require_linearization(lin)
    labels = _labels(lin, by, "by")
    _, first, codes = np.unique(labels, return_index=True, return_inverse=True)
    if len(first) < 2:
        raise ValueError(
            f"by={_shown(by)}: all trials are of {labels[0]!r}, interference needs two groups"
        )
    order = np.argsort(first)
    members = tuple(np.flatnonzero(codes == code) for code in order)
    names = labels[first[order]]
    if condition is None:
        return Groups(names, members, len({len(m) for m in members}) == 1)
    values = _labels(lin, condition, "condition")
    members = tuple(m[np.argsort(values[m], kind="stable")] for m in members)
    for name, mine in zip(names[1:], members[1:], strict=True):
        if not np.array_equal(values[mine], values[members[0]]):
            raise ValueError(
                f"condition={_shown(condition)}: the conditions of {name!r} and {names[0]!r} are "
                "not the same, each as often; give every task the same ones, for example by "
                "angles='even'"
            )
    return Groups(names, members, True)


def of_trials(lin: Linearization, positions: np.ndarray) -> Linearization:
    """The linearization of some trials alone, at no cost for the others.

    Its J and P are rows and blocks of those of all trials. Under ``measure="mean"`` its K is not:
    it averages over its own valid steps.
    """
    index = torch.as_tensor(positions, device=lin.device)
    whole = lin.trajectory

    def taken(values: Tensor) -> Tensor:
        return values.index_select(0, index)

    trajectory = dataclasses.replace(
        whole,
        inputs=taken(whole.inputs),
        previous=taken(whole.previous),
        states=taken(whole.states),
        mask=None if whole.mask is None else taken(whole.mask),
    )
    space = lin.space.take({"trial": np.asarray(positions)})
    return dataclasses.replace(lin, trajectory=trajectory, space=space)


def trial_gradients(lin: Linearization, adjoint: Tensor) -> Tensor:
    """Each trial's part of the gradient, ``J_b* (P* Err)_b``, shape (trial, parameter)."""
    n_trials, n_parameters = len(adjoint), lin.parameter_space.size
    n_bytes = n_trials * n_parameters * adjoint.element_size()
    check_allocation(f"the gradients of {n_trials} trials", n_bytes, lin.device)
    rows = adjoint.new_empty(n_trials, n_parameters)
    # For one matvec nothing need be cached, and this engine is the quickest to set up.
    cheap = dataclasses.replace(lin, engine_asked="autodiff", gates_asked="auto")
    for b in range(n_trials):
        rows[b] = of_trials(cheap, np.array([b])).J.apply_adjoint(adjoint[None, b : b + 1])[0]
    return rows


def _labels(lin: Linearization, given: Any, argument: str) -> np.ndarray:
    """A label for each trial; strings as objects, which files can hold."""
    n_trials = lin.space.sizes["trial"]
    if isinstance(given, str):
        known = sorted(k for k, c in lin.space.coords.items() if c.dims == ("trial",))
        if given not in known:
            raise ValueError(
                f"{argument}={given!r} is no coordinate of trials, which are {known}: linearise "
                f"inputs that are a DataArray with it, or pass an array of {n_trials} labels"
            )
        values = np.asarray(lin.space.coords[given][1])
    else:
        if isinstance(given, xr.DataArray):
            given = by_name(given, lin.space.keep(("trial",)), argument)
        values = np.asarray(given)
        if values.shape != (n_trials,):
            raise ValueError(
                f"{argument} has shape {values.shape}, expected ({n_trials},): one label per trial"
            )
    missing = np.flatnonzero(values != values)
    if missing.size:
        raise ValueError(f"{argument} is not a number at trial {missing[0]}: label every trial")
    return values.astype(object) if values.dtype.kind in "UST" else values


def _shown(given: Any) -> str:
    return repr(given) if isinstance(given, str) else "<array>"
