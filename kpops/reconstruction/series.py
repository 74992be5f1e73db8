"""Series of users, (trial, time, unit): the one place that reads and refuses them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr

from kpops.arrays import as_tensor, to_numpy
from kpops.labels import Coordinate, coordinates_of, refuse_other_labels
from kpops.scalars import check_count

DIMS = ("trial", "time", "unit")


class Series(NamedTuple):
    """Finite real numbers in float32 or float64, and their labels."""

    values: np.ndarray  # (trial, time, unit)
    coords: dict[str, Coordinate]

    @property
    def points(self) -> np.ndarray:
        """All states in float64, (trial and time, unit)."""
        return self.values.reshape(-1, self.values.shape[-1]).astype(np.float64)

    def kept(self, *dims: str) -> dict[str, Any]:
        """Coordinates that lie along some of the dimensions."""
        return {k: c.described(k) for k, c in self.coords.items() if {*c.dims} <= {*dims}}


def read_series(series: Any, name: str, *, least: int = 1, varying: bool = False) -> Series:
    """Read a series (trial, time, unit), or (time, unit) of one trial.

    Anything else is refused by `name`: fewer steps than `least`, numbers that are not finite,
    padding, and, if it must be `varying`, a unit that is constant.
    """
    coords: dict[str, Coordinate] = {}
    if isinstance(series, xr.DataArray):
        if {*series.dims, "trial"} != {*DIMS}:
            raise ValueError(
                f"{name} has the dims {series.dims}, expected ('trial', 'time', 'unit') or "
                f"('time', 'unit'): rename them, as in {name}.rename(space='unit')"
            )
        if "trial" not in series.dims:
            series = series.expand_dims("trial")  # and the label of one that was selected
        series = series.transpose(*DIMS)
        coords = coordinates_of(series, DIMS)
        if "mask" in coords and not coords["mask"].values.all():
            raise ValueError(
                f"{name} has masked steps, which hold no data: pass its trials one at a time, each "
                f"cut to its length, or drop those that are shorter"
            )
        series = series.data
    tensor = as_tensor(series, name)
    values = to_numpy(tensor if tensor.dtype == torch.float32 else tensor.double())
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise ValueError(
            f"{name} has shape {values.shape}, expected (trial, time, unit) or (time, unit)"
        )
    values = values.reshape(-1, *values.shape[-2:])
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        where = ", ".join(f"{d} {int(i)}" for d, i in zip(DIMS, wrong[0], strict=True))
        raise ValueError(
            f"{name} is {values[tuple(wrong[0])]} at {where} (positions from 0): cut the series "
            "there, or interpolate"
        )
    if values.shape[1] < least:
        raise ValueError(f"{name} has {values.shape[1]} steps, and {least} are needed")
    if varying:
        still = np.flatnonzero((values == values[:1, :1]).all(axis=(0, 1)))
        if len(still):
            raise ValueError(f"{name} is constant in unit {still[0]} (from 0): leave that unit out")
    return Series(values, coords)


def read_pair(
    first: Any,
    truth: Any,
    name: str,
    *,
    least: int = 1,
    same: tuple[str, ...] = ("unit",),
    varying: bool = False,
) -> tuple[Series, Series]:
    """Read two series that have the `same` sizes; `varying` is required of the truth."""
    one = read_series(first, name, least=least)
    two = read_series(truth, "truth", least=least, varying=varying)
    for dim in same:
        mine, theirs = (s.values.shape[DIMS.index(dim)] for s in (one, two))
        if mine != theirs:
            plural = "steps" if dim == "time" else f"{dim}s"
            raise ValueError(
                f"{name} has {mine} {plural}, truth {theirs}: cut both to the same {plural}"
            )
    # Runs that are compared as a whole have times and trials of their own.
    compared = same if "trial" in same else ("unit",)
    refuse_other_labels(one.coords, two.coords, (name, "truth"), compared)
    return one, two


def windows(series: Any, length: int, *, every: int | None = None) -> xr.DataArray:
    """Cut a series into stretches of equal length.

    Parameters
    ----------
    series : DataArray, Tensor or array_like, shape (trial, time, unit) or (time, unit)
        Finite real numbers.
    length : int
        Steps of a stretch.
    every : int, optional
        Steps from the start of one stretch to that of the next, in each trial. Default: `length`,
        without overlap.

    Returns
    -------
    DataArray
        Dims (trial, time, unit), with the coordinates ``start`` (trial), the step at which the
        stretch starts, and ``series`` (trial), the trial that it is of. What is left at the end of
        a trial is dropped.

    Raises
    ------
    ValueError
        If the series is shorter than `length`, has another shape, or is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from kpops.reconstruction import windows
    >>> windows(np.arange(7.0)[:, None], 3, every=2)[:, :, 0].values
    array([[0., 1., 2.],
           [2., 3., 4.],
           [4., 5., 6.]])
    """
    check_count("length", length, 1)
    every = length if every is None else every
    check_count("every", every, 1)
    read = read_series(series, "series", least=length)
    cut = np.lib.stride_tricks.sliding_window_view(read.values, length, axis=1)[:, ::every]
    n_trials, n_starts = cut.shape[:2]
    of = np.arange(n_trials).repeat(n_starts)
    starts = np.tile(np.arange(n_starts) * every, n_trials)
    return xr.DataArray(
        np.ascontiguousarray(cut.reshape(n_trials * n_starts, -1, length).swapaxes(1, 2)),
        dims=DIMS,
        coords={
            "start": ("trial", starts, {"long_name": "start of the stretch", "units": "step"}),
            "series": ("trial", of, {"long_name": "trial of the series", "units": "1"}),
            **read.kept("unit"),
        },
        name="windows",
        attrs={"long_name": "observation", "units": "1"},
    )
