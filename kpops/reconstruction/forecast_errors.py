"""How far, and how well, a forecast follows the truth."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr

from kpops.maturity import experimental
from kpops.reconstruction.series import DIMS, read_pair
from kpops.scalars import check_real


def valid_prediction_time(
    forecast: Any,
    truth: Any,
    *,
    lyapunov_time: float,
    dt: float = 1.0,
    threshold: float = 0.4,
) -> xr.Dataset:
    r"""Time for which forecasts stay close to the truth, in Lyapunov times.

    The error of a step, :math:`e_t = \sqrt{\frac1N \sum_i (f_{ti} - x_{ti})^2 / s_i^2}`, with
    s_i the standard deviation of unit i of the truth over all trials and steps, is valid until it
    first exceeds the threshold.

    Parameters
    ----------
    forecast, truth : DataArray, Tensor or array_like, shape (trial, time, unit) or (time, unit)
        Forecasts, and what they forecast, at the same steps.
    lyapunov_time : float
        One over the largest Lyapunov exponent of the true system, as
        :func:`kpops.lyapunov_spectrum` finds it, in the units of `dt`.
    dt : float
        Time from one step to the next.
    threshold : float
        Largest valid error, in standard deviations.

    Returns
    -------
    Dataset
        ``valid_prediction_time`` (trial), in Lyapunov times: the number of steps before the error
        first exceeds the threshold, times ``dt / lyapunov_time``; ``censored`` (trial), whether it
        never does, so that the time is only a lower bound; ``median_time`` () over the trials;
        ``error`` (trial, time).

    Raises
    ------
    ValueError
        If the two differ in size or labels, are not finite or masked, or a unit of the truth is
        constant; if a number is not positive.

    References
    ----------
    P. R. Vlachas et al., Backpropagation algorithms and reservoir computing in recurrent neural
    networks for the forecasting of complex spatiotemporal dynamics, Neural Networks 126 (2020),
    arXiv 1910.05266.

    Examples
    --------
    >>> import numpy as np
    >>> from kpops.reconstruction import valid_prediction_time
    >>> truth = np.array([[1.0], [-1], [1], [-1]])  # of standard deviation 1
    >>> forecast = truth + np.array([[0.0], [0.1], [0.3], [0.9]])
    >>> float(valid_prediction_time(forecast, truth, lyapunov_time=2.0).median_time)
    1.5
    """
    for name, value in (("lyapunov_time", lyapunov_time), ("dt", dt), ("threshold", threshold)):
        check_real(name, value)
        if not 0 < value < np.inf:
            raise ValueError(f"{name}={value}: pass a positive number")
    one, two = read_pair(forecast, truth, "forecast", least=2, same=DIMS, varying=True)
    scale = two.points.std(axis=0)
    gap = (one.values.astype(np.float64) - two.values) / scale
    error = np.sqrt(np.square(gap).mean(axis=-1))
    beyond = error > threshold
    censored = ~beyond.any(axis=1)
    steps = np.where(censored, error.shape[1], beyond.argmax(axis=1))
    dtype = two.values.dtype
    times = (steps * dt / lyapunov_time).astype(dtype)
    unit = {"units": "Lyapunov time"}
    return xr.Dataset(
        {
            "valid_prediction_time": (
                "trial",
                times,
                {"long_name": "valid prediction time", **unit},
            ),
            "censored": (
                "trial",
                censored,
                {"long_name": "whether the error stays below the threshold", "units": "1"},
            ),
            "median_time": ((), np.median(times), {"long_name": "median over the trials", **unit}),
            "error": (
                ("trial", "time"),
                error.astype(dtype),
                {"long_name": "root mean squared error", "units": "standard deviation"},
            ),
        },
        coords=two.kept("trial", "time"),
        attrs={
            "configuration": json.dumps(
                {
                    "dt": float(dt),
                    "lyapunov_time": float(lyapunov_time),
                    "threshold": float(threshold),
                }
            )
        },
    )


@experimental
def smape(forecast: Any, truth: Any) -> xr.Dataset:
    r"""Symmetric mean absolute percentage error of forecasts.

    .. math:: 100\,\% \cdot \mathrm{mean}\; \frac{2 |f - x|}{|f| + |x|}

    Parameters
    ----------
    forecast, truth : DataArray, Tensor or array_like, shape (trial, time, unit) or (time, unit)
        Forecasts, and what they forecast, at the same steps.

    Returns
    -------
    Dataset
        ``smape`` (trial), the mean over times and units, between 0 and 200 percent; a term with
        f = x = 0 is 0. ``mean_smape`` () and its ``stderr`` () over the trials, NaN for one trial.

    Raises
    ------
    ValueError
        If the two differ in size or labels, or are not finite or masked.

    Notes
    -----
    It depends on the origin of the units: state which one you chose.

    References
    ----------
    W. Gilpin, Chaos as an interpretable benchmark for forecasting and data-driven modelling,
    NeurIPS 2021 (arXiv 2110.05266).

    Examples
    --------
    >>> from kpops.reconstruction import smape
    >>> float(smape([[1.0], [3.0]], [[1.0], [1.0]]).mean_smape)
    50.0
    """
    one, two = read_pair(forecast, truth, "forecast", same=DIMS)
    f, x = one.values.astype(np.float64), two.values.astype(np.float64)
    size = abs(f) + abs(x)
    terms = np.divide(2 * abs(f - x), size, out=np.zeros_like(size), where=size > 0)
    values = 100 * terms.mean(axis=(1, 2))
    n = len(values)
    stderr = values.std(ddof=1) / n**0.5 if n > 1 else np.nan
    dtype = two.values.dtype
    name = "symmetric mean absolute percentage error"
    return xr.Dataset(
        {
            "smape": ("trial", values.astype(dtype), {"long_name": name, "units": "percent"}),
            "mean_smape": (
                (),
                dtype.type(values.mean()),
                {"long_name": f"mean {name}", "units": "percent"},
            ),
            "stderr": ((), dtype.type(stderr), {"long_name": "standard error", "units": "percent"}),
        },
        coords=two.kept("trial"),
    )
