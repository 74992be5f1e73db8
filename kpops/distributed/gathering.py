"""Bring together what the processes of a group hold of a result."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, TypeVar

import numpy as np
import torch.distributed as dist
import xarray as xr

from kpops.distributed.agreement import Processes, fingerprint, in_step
from kpops.kinds import described

Result = TypeVar("Result", xr.Dataset, xr.DataArray)

TRIAL = "trial"
VALUES = "values of a DataArray"  # its name within a Dataset


def gather(
    result: Result, group: dist.ProcessGroup | None = None, *, to: int | None = None
) -> Result | None:
    """Bring the trials of all processes together.

    Every process of the group calls it with its part of the same result. Variables with the
    dimension ``trial`` are put together in the order of the ranks; all others are equal on every
    process, and stay as they are.

    Parameters
    ----------
    result : Dataset or DataArray
        What a function or an operator of a linearization with `process_group` has returned here.
    group : torch.distributed.ProcessGroup, optional
        The group of that linearization. Default: all processes; this one alone where
        ``torch.distributed`` is not initialised.
    to : int, optional
        The rank that receives the whole. Default: every process does, and needs the memory for it.

    Returns
    -------
    Dataset, DataArray or None
        The whole, with the trials' coordinates; None on the processes that `to` leaves out.

    Raises
    ------
    DistributedError
        If the processes hold other variables, dtypes or sizes, or other values without ``trial``;
        if one of them fails or has ended.
    TypeError, ValueError
        If `result` is no Dataset or DataArray, or `to` no rank of the group.

    See Also
    --------
    to_zarr : writes a result that no process can hold.

    Notes
    -----
    The parts come one after the other: beside the whole, a process holds two copies of one part.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(2, 3, batch_first=True), torch.zeros(2, 4, 2))
    >>> kpops.distributed.gather(lin.states).sizes  # of one process
    Frozen({'trial': 2, 'time': 4, 'unit': 3})
    """
    with in_step(group_or_all(group)) as processes:
        if to is not None and to not in range(processes.n):
            raise ValueError(f"to={to!r}: choose a rank from 0 to {processes.n - 1}")
        dataset = as_dataset(result).compute()
        counts = agree_on(processes, dataset, f"gather(to={to})")
        here = to is None or to == processes.rank
        wanted = trial_variables(dataset)
        whole = gathered(processes, dataset, wanted, counts, here=here)
        if not here:
            return None
        whole_dataset = replaced(dataset, whole)
        if isinstance(result, xr.Dataset):
            return whole_dataset
        return whole_dataset[VALUES].rename(result.name)


def group_or_all(group: Any) -> Any:
    """The group, by default that of all processes, if there are others."""
    return dist.group.WORLD if group is None and dist.is_initialized() else group


def as_dataset(result: Any) -> xr.Dataset:
    """A result as a Dataset, with the levels of a MultiIndex as plain coordinates."""
    if not isinstance(result, xr.Dataset | xr.DataArray):
        raise TypeError(f"result is {described(result)}, expected a Dataset or DataArray")
    dataset = result.to_dataset(name=VALUES) if isinstance(result, xr.DataArray) else result
    several = [n for n, i in dataset.xindexes.items() if isinstance(i, xr.indexes.PandasMultiIndex)]
    return dataset.reset_index([name for name in several if name in dataset.dims])


def trial_variables(dataset: xr.Dataset) -> list[Hashable]:
    """Names of the variables that are spread over processes, in an order that all share."""
    return sorted((n for n, v in dataset.variables.items() if TRIAL in v.dims), key=str)


def agree_on(processes: Processes, dataset: xr.Dataset, call: str) -> list[int]:
    """Refuse calls and results that differ in more than trials; return their numbers of trials."""
    names = sorted(dataset.variables, key=str)
    facts: dict[str, Any] = {"called": call, "variables": names}
    facts["coordinates"] = sorted(dataset.coords, key=str)
    for name in names:
        variable = dataset.variables[name]
        # Strings of another length are no other kind.
        kind = "text" if variable.dtype.kind == "U" else str(variable.dtype)
        sizes = {d: n for d, n in variable.sizes.items() if d != TRIAL}
        facts[f"{name} of kind, dims and sizes"] = (kind, variable.dims, sizes)
        if TRIAL not in variable.dims:
            facts[f"values of {name} with the hash"] = fingerprint(variable.values)
    return processes.agree(facts, dataset.sizes.get(TRIAL, 0))


def gathered(
    processes: Processes,
    dataset: xr.Dataset,
    names: list[Hashable],
    counts: list[int],
    *,
    here: bool = True,
) -> dict[Hashable, xr.Variable]:
    """The variables called `names` of all trials, if they are wanted here."""
    total = sum(counts) if here else 0
    whole: dict[Hashable, xr.Variable] = {}
    for name in names:
        part = dataset.variables[name]
        shape = [total if dim == TRIAL else size for dim, size in part.sizes.items()]
        # Strings may be longer elsewhere.
        dtype = object if part.dtype.kind == "U" else part.dtype
        whole[name] = xr.Variable(part.dims, np.empty(shape, dtype), part.attrs)
    processes.exchange()  # who has no memory for it fails before the others wait
    for name in names:
        first = 0
        for values in processes.in_turn(dataset.variables[name].values):
            axis = dataset.variables[name].dims.index(TRIAL)
            last = first + values.shape[axis]
            if here:
                whole[name][{TRIAL: slice(first, last)}] = values
            first = last
    return whole


def replaced(dataset: xr.Dataset, whole: dict[Hashable, xr.Variable]) -> xr.Dataset:
    """`dataset` with variables of other sizes."""
    variables = {name: whole.get(name, v) for name, v in dataset.variables.items()}
    coords = {name: v for name, v in variables.items() if name in dataset.coords}
    data = {name: v for name, v in variables.items() if name not in dataset.coords}
    return xr.Dataset(data, coords, dataset.attrs)
