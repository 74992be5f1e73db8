"""Write what the processes of a group hold of a result into one Zarr store."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Hashable, Mapping
from typing import Any

import torch.distributed as dist
import xarray as xr

from kpops.distributed.agreement import in_step
from kpops.distributed.gathering import (
    TRIAL,
    VALUES,
    agree_on,
    as_dataset,
    gathered,
    group_or_all,
    replaced,
    trial_variables,
)

_CHUNK = 2**24  # bytes; Zarr compresses several chunks at a time, each with a copy


def to_zarr(
    result: xr.Dataset | xr.DataArray,
    path: str | os.PathLike[str],
    group: dist.ProcessGroup | None = None,
) -> None:
    """Write the trials of all processes into one Zarr store, of which none needs the whole.

    Every process of the group calls it with its part of the same result. The first writes
    coordinates and what has no dimension ``trial``; then each writes its trials. On return the
    store is complete, and ``xarray.open_zarr(path)`` equals :func:`gather` of the same result.

    Parameters
    ----------
    result : Dataset or DataArray
        As for :func:`gather`; a DataArray has a name.
    path : str or path
        The folder to be made, on a file system that all processes share.
    group : torch.distributed.ProcessGroup, optional
        As for :func:`gather`.

    Raises
    ------
    DistributedError
        As for :func:`gather`. What has been written until then stays, incomplete.
    FileExistsError
        If `path` is there already.
    TypeError, ValueError
        If `result` is no Dataset or DataArray, has no name, or no trials here.

    Notes
    -----
    No two processes may write into one chunk, and chunks of Zarr are of equal size. Along ``trial``
    they have the greatest common divisor of the processes' numbers of trials, or 1 where that makes
    more than 16 MiB: spread trials evenly for few and large files.

    Examples
    --------
    >>> import tempfile, torch, xarray as xr, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(2, 3, batch_first=True), torch.zeros(2, 4, 2))
    >>> path = tempfile.mkdtemp() + "/states.zarr"
    >>> kpops.distributed.to_zarr(lin.states, path)
    >>> xr.open_zarr(path).states.equals(lin.states)
    True
    """
    with in_step(group_or_all(group)) as processes:
        dataset = as_dataset(result)
        if isinstance(result, xr.DataArray):
            if result.name is None:
                raise ValueError("result has no name to be saved by: use result.rename(...)")
            dataset = dataset.rename({VALUES: result.name})
        dataset = _writable(dataset)
        if dataset.sizes.get(TRIAL) == 0:
            raise ValueError("result has no trials here: leave this process out of the group")
        counts = agree_on(processes, dataset, f"to_zarr(path={os.fspath(path)!r})")
        spread = trial_variables(dataset)
        fields = {n: dataset.variables[n] for n in spread if n not in dataset.coords}
        leads = processes.rank == 0
        labels = [name for name in spread if name in dataset.coords]
        coords = gathered(processes, dataset, labels, counts, here=leads)
        if leads:
            _make(path, dataset, counts)
            _write(path, coords, 0)
        processes.exchange()
        _write(path, fields, sum(counts[: processes.rank]))
        processes.exchange()
        if leads:
            _consolidate(path)
        processes.exchange()


def _writable(dataset: xr.Dataset) -> xr.Dataset:
    """Without the marks of the file that it came from, and with strings that Zarr specifies."""
    texts = {n: v.astype(object) for n, v in dataset.variables.items() if v.dtype.kind == "U"}
    return replaced(dataset, texts).drop_encoding()


def _make(path: Any, dataset: xr.Dataset, counts: list[int]) -> None:
    """Make the store, of the size of all trials, with all that has no trials."""
    import zarr

    if os.path.exists(path):
        raise FileExistsError(f"{path} is there already: choose another path, or remove it")
    fields = {n: v.variable for n, v in dataset.data_vars.items() if TRIAL in v.dims}
    chunks = {n: {"chunks": _chunks(field, counts)} for n, field in fields.items()}
    one = dataset.isel({TRIAL: slice(0, 1)}, missing_dims="ignore")
    one.to_zarr(path, mode="w-", encoding=chunks, consolidated=False)
    arrays = dict(zarr.open_group(path, mode="r+").arrays())
    for name in trial_variables(dataset):
        sizes = {**dataset.variables[name].sizes, TRIAL: sum(counts)}
        arrays[str(name)].resize(tuple(sizes.values()))


def _write(path: Any, variables: Mapping[Hashable, xr.Variable], first: int) -> None:
    """Write variables with trials from the trial number `first` on."""
    if variables:
        part = xr.Dataset(variables)
        part = part.drop_indexes(list(part.xindexes))  # xarray writes none into a region
        region = {TRIAL: slice(first, first + part.sizes[TRIAL])}
        part.to_zarr(path, region=region, consolidated=False)


def _chunks(field: xr.Variable, counts: list[int]) -> tuple[int, ...]:
    sizes = {**field.sizes, TRIAL: math.gcd(*counts)}
    if math.prod(sizes.values()) * field.dtype.itemsize > _CHUNK:
        sizes[TRIAL] = 1
    while math.prod(sizes.values()) * field.dtype.itemsize > _CHUNK:
        longest = max(sizes, key=lambda dim: sizes[dim])
        sizes[longest] = math.ceil(sizes[longest] / 2)
    return tuple(sizes.values())


def _consolidate(path: Any) -> None:
    """Put the metadata of all arrays together, as xarray looks for first."""
    import zarr

    with warnings.catch_warnings():  # that the third version of the format does not specify it
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(path)
