"""Forecasts: of a trained cell that runs freely, and two baselines."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from kpops.arrays import as_tensor, numpy_dtype, to_numpy
from kpops.labels import refuse_other_labels
from kpops.models.wrapping import pulled, sizes_of_cell
from kpops.read_inputs import read_state
from kpops.reconstruction.free_step import free_step
from kpops.reconstruction.series import DIMS, Series, read_series
from kpops.scalars import check_count, check_real


@torch.no_grad()
def forecast(model: nn.Module, context: Any, n_steps: int, *, h0: Any = None) -> xr.DataArray:
    """Free run of a cell that :func:`kpops.training.reconstruct` has trained, after observations.

    Parameters
    ----------
    model : nn.Module
        As for :func:`kpops.training.reconstruct`.
    context : DataArray, Tensor or array_like, shape (trial, time, unit) or (time, unit)
        Observations before the forecast, one step or more. Each replaces the first units of the
        state before a step.
    n_steps : int
        Steps to forecast.
    h0 : Tensor or array_like, shape (trial, unit), optional
        State before the first observation. Only its unobserved units matter. Default: 0, as in
        training.

    Returns
    -------
    DataArray
        The observed units at the `n_steps` steps after the context, dims (trial, time, unit), in
        the dtype of the model. If the times of the context are numbers at equal distances, they go
        on.

    Raises
    ------
    ValueError
        If the context or `h0` has another shape or is not finite, or the context has more units
        than the model.
    FloatingPointError
        If the forecast becomes non-finite; the first trial and step are named.

    Examples
    --------
    >>> import torch, kpops
    >>> cell = kpops.models.PLRNNCell(0, 1, rectified=0)  # h' = h / 2 + 1
    >>> for name, value in (("A", 0.5), ("W", 0.0), ("b", 1.0)):
    ...     _ = torch.nn.init.constant_(getattr(cell, name), value)
    >>> kpops.reconstruction.forecast(cell, [[6.0]], 4).values.ravel()
    array([4.  , 3.  , 2.5 , 2.25], dtype=float32)
    """
    check_count("n_steps", n_steps, 1)
    n_features, state_size = sizes_of_cell(model)
    read = read_series(context, "context")
    n_trials, n_context, observed = read.values.shape
    if observed > state_size:
        raise ValueError(f"context has {observed} units, the model {state_size}")
    like = next(model.parameters(), torch.zeros(()))
    numpy_dtype(like.dtype)
    data = torch.from_numpy(read.values).to(like)
    step = free_step(model, n_features, data)
    h = data.new_zeros(n_trials, state_size)
    if h0 is not None:
        by_dims = isinstance(h0, xr.DataArray)
        given = (read_state(h0, None, read.coords) if by_dims else as_tensor(h0, "h0")).to(like)
        if tuple(given.shape) != tuple(h.shape):
            raise ValueError(f"h0 has shape {tuple(given.shape)}, expected {tuple(h.shape)}")
        if not given.isfinite().all():
            raise ValueError("h0 is not finite: pass numbers, 0 for those that are not known")
        h = given
    for t in range(n_context):
        h = step(pulled(h, data[:, t], 1.0))
    free = [h[:, :observed]]
    for _ in range(n_steps - 1):
        h = step(h)
        free.append(h[:, :observed])
    values = torch.stack(free, dim=1)
    lost = (~values.isfinite()).any(-1).nonzero()
    if len(lost):
        trial, time = lost[lost[:, 1].argmin()].tolist()
        raise FloatingPointError(
            f"the forecast of trial {trial} is not finite from step {time} on (from 0): the model "
            "diverges from there; train it longer, or forecast fewer steps"
        )
    return _labelled(to_numpy(values), read, "forecast")


def persistence(context: Any, n_steps: int) -> xr.DataArray:
    """Baseline: the last observation stays.

    Parameters
    ----------
    context, n_steps
        As for :func:`forecast`.

    Returns
    -------
    DataArray
        As of :func:`forecast`, in the dtype of the context.

    Raises
    ------
    ValueError
        If the context has another shape or is not finite.

    Examples
    --------
    >>> from kpops.reconstruction import persistence
    >>> persistence([[1.0], [3.0]], 2).values.ravel()
    array([3., 3.])
    """
    check_count("n_steps", n_steps, 1)
    read = read_series(context, "context")
    return _labelled(read.values[:, -1:].repeat(n_steps, axis=1), read, "persistence")


def linear_forecast(
    series: Any, context: Any, n_steps: int, *, ridge: float = 1e-6
) -> xr.DataArray:
    """Baseline: the linear model of one step, fitted by ridge regression (a VAR(1)), runs freely.

    Parameters
    ----------
    series : DataArray, Tensor or array_like, shape (trial, time, unit) or (time, unit)
        Observations to fit ``d[t+1] = M d[t] + c`` to.
    context, n_steps
        As for :func:`forecast`; only the last observation counts.
    ridge : float
        Penalty of the squared entries of M for units of standard deviation 1, per step of the
        series.

    Returns
    -------
    DataArray
        As of :func:`forecast`, in the dtype of the series.

    Raises
    ------
    ValueError
        If the series has too few steps, a constant unit, another shape or other units than the
        context, or is not finite; if `ridge` is negative or not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from kpops.reconstruction import linear_forecast
    >>> decay = 0.5 ** np.arange(10.0)[:, None]
    >>> linear_forecast(decay, [[8.0]], 3, ridge=0).values.ravel().round(12)
    array([4., 2., 1.])
    """
    check_count("n_steps", n_steps, 1)
    check_real("ridge", ridge)
    if not 0 <= ridge < np.inf:
        raise ValueError(f"ridge={ridge}: pass 0 or more")
    fitted = read_series(series, "series", least=3)
    read = read_series(context, "context")
    n_units = fitted.values.shape[-1]
    if read.values.shape[-1] != n_units:
        raise ValueError(
            f"context has {read.values.shape[-1]} units, series {n_units}: pass the same units"
        )
    refuse_other_labels(read.coords, fitted.coords, ("context", "series"), ("unit",))
    read_series(fitted.values[:, :-1], "series", varying=True)  # a unit that moves at the end alone
    before = fitted.values[:, :-1].reshape(-1, n_units)
    after = fitted.values[:, 1:].reshape(-1, n_units)
    if len(before) <= n_units:
        raise ValueError(
            f"series has {len(before)} pairs of steps for {n_units} units: pass more than that"
        )
    mean, scale = before.mean(0, dtype=np.float64), before.std(0, dtype=np.float64)
    X, ahead = (before - mean) / scale, (after - mean) / scale
    offset = ahead.mean(axis=0)  # that of X is 0
    damping = np.sqrt(ridge * len(X)) * np.eye(n_units)
    left, right = np.vstack([X, damping]), np.vstack([ahead - offset, np.zeros_like(damping)])
    M = np.linalg.lstsq(left, right, rcond=None)[0]
    state = (read.values[:, -1] - mean) / scale
    free = []
    for _ in range(n_steps):
        state = state @ M + offset
        free.append(state)
    values = (np.stack(free, axis=1) * scale + mean).astype(fitted.values.dtype)
    return _labelled(values, read, "linear forecast")


def _labelled(values: np.ndarray, context: Series, name: str) -> xr.DataArray:
    """A forecast with the labels of its context."""
    n_steps = values.shape[1]
    coords = context.kept("trial") | context.kept("unit")
    time = context.coords.get("time")
    if time is not None and time.dims == ("time",) and time.values.dtype.kind in "fiu":
        gaps = np.diff(time.values)
        if len(gaps) and np.allclose(gaps, gaps[0], rtol=1e-6, atol=0):
            _, _, attrs = time.described("time")
            gap = gaps.mean() if time.values.dtype.kind == "f" else gaps[0]  # ints stay ints
            coords["time"] = (
                "time",
                time.values[-1] + gap * np.arange(1, n_steps + 1),
                attrs,
            )
    return xr.DataArray(
        values, dims=DIMS, coords=coords, name=name, attrs={"long_name": name, "units": "1"}
    )
