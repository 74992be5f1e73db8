"""Statistics of the growth of tangents: means, standard errors, dimension and entropy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops.arrays import as_tensor, to_numpy

_BATCHES = 20


def kaplan_yorke_dimension(exponents: Any, *, complete: bool = True) -> Any:
    """Kaplan-Yorke dimension of Lyapunov spectra.

    Parameters
    ----------
    exponents : DataArray with dim ``mode``, Tensor or array_like, shape (..., mode)
        Lyapunov exponents, in any order.
    complete : bool
        Whether these are all exponents, or only the leading ones.

    Returns
    -------
    DataArray or ndarray
        Without the dimension ``mode``. NaN where more exponents are needed.

    Raises
    ------
    ValueError
        If there is no exponent, or a DataArray lacks the dimension ``mode``.

    Notes
    -----
    With exponents in falling order and j the largest number of them whose sum is not negative, it
    is ``j + (lambda_1 + .. + lambda_j) / |lambda_{j+1}|``; 0 if all are negative, their number if
    no sum is (Frederickson, Kaplan, Yorke and Yorke 1983, J. Differ. Equ. 49, 185-207). It is
    conjectured to be the information dimension of the attractor. Average exponents, not dimensions:
    the dimension is not linear in them.

    Examples
    --------
    >>> import kpops
    >>> print(f"{kpops.kaplan_yorke_dimension([0.905, 0, -14.57]):.3f}")  # Lorenz
    2.062
    """

    def dimension(values: np.ndarray) -> np.ndarray:
        ordered = -np.sort(-values, axis=-1)
        sums = ordered.cumsum(-1)
        j = (sums >= 0).sum(-1)
        n = values.shape[-1]
        before = np.take_along_axis(sums, np.maximum(j - 1, 0)[..., None], -1)[..., 0]
        after = np.take_along_axis(ordered, np.minimum(j, n - 1)[..., None], -1)[..., 0]
        between = j + np.where(j > 0, before, 0) / np.where(after < 0, -after, 1)
        result = np.where(j == 0, 0.0, np.where(j < n, between, n if complete else np.nan))
        return np.where(np.isnan(values).any(-1), np.nan, result)

    return _over_modes(dimension, exponents, "Kaplan-Yorke dimension", "1")


def entropy_bound(exponents: Any, *, complete: bool = True) -> Any:
    """Sum of the positive Lyapunov exponents: an upper bound of the metric entropy.

    Parameters
    ----------
    exponents, complete
        As for :func:`kpops.kaplan_yorke_dimension`.

    Returns
    -------
    DataArray or ndarray
        Without the dimension ``mode``, in nats per unit of time of the exponents. NaN where more
        exponents are needed.

    Raises
    ------
    ValueError
        As for :func:`kpops.kaplan_yorke_dimension`.

    Notes
    -----
    It bounds the entropy of Kolmogorov and Sinai from above (Ruelle 1978, Bol. Soc. Bras. Mat. 9,
    83-87), and equals it for smooth measures (Pesin 1977, Russ. Math. Surv. 32, 55-114). Zero
    exponents contribute the positive part of their errors.

    Examples
    --------
    >>> import kpops
    >>> float(kpops.entropy_bound([0.419, -1.623]))  # Henon
    0.419
    """

    def entropy(values: np.ndarray) -> np.ndarray:
        sums = np.maximum(values, 0).sum(-1)  # keeps NaN
        return sums if complete else np.where((values > 0).all(-1), np.nan, sums)

    units = exponents.attrs.get("units", "1") if isinstance(exponents, xr.DataArray) else "1"
    return _over_modes(entropy, exponents, "sum of the positive exponents", units)


def _over_modes(
    function: Callable[[np.ndarray], np.ndarray], exponents: Any, long_name: str, units: str
) -> Any:
    if not isinstance(exponents, xr.DataArray):
        values = to_numpy(as_tensor(exponents, "exponents").double())
        if not values.ndim or not values.shape[-1]:
            raise ValueError(f"exponents has shape {values.shape}: pass one exponent or more")
        return function(values)
    if "mode" not in exponents.dims:
        raise ValueError(f"exponents has dims {exponents.dims}, expected mode among them")
    as_tensor(exponents.data, "exponents")  # refuses what is not real
    result = xr.apply_ufunc(function, exponents.astype(float), input_core_dims=[["mode"]])
    return result.astype(exponents.dtype).assign_attrs(long_name=long_name, units=units)


def of_windows(growth: Tensor, steps: Tensor) -> dict[str, Tensor]:
    """Exponents and their errors, by the names of the variables of :func:`lyapunov_spectrum`.

    growth : (trial, window, mode), sums of log |R_ii| in float64.
    steps : (trial, window), the valid steps of each window.
    """
    n_trials = len(growth)
    whole = steps == steps.max()
    rates = (growth / steps[..., None]).masked_fill(~whole[..., None], torch.nan)
    exponents = growth.sum(1) / steps.sum(1)[:, None]
    series = [r[w] for r, w in zip(rates, whole, strict=True)]
    between = _deviation(exponents) / math.sqrt(n_trials)
    history = growth.cumsum(1) / steps.cumsum(1)[..., None]
    return {
        "exponent": exponents.mean(0),
        "stderr": between if n_trials >= _BATCHES else torch.fmax(between, _within(series)),
        "trial_exponent": exponents,
        "trial_stderr": torch.stack([_batch_means(r, _BATCHES) for r in series]),
        "finite_time_exponent": rates,
        "finite_time_std": _deviation(rates[whole]),
        "history": history.mean(0),
    }


def _within(series: list[Tensor]) -> Tensor:
    """Standard error of the mean of all series, with `_BATCHES` batches in all."""
    n_batches = max(2, _BATCHES // len(series))
    errors = torch.stack([_batch_means(rates, n_batches) for rates in series])
    return errors.square().sum(0).sqrt() / len(series)


def _batch_means(rates: Tensor, n_batches: int) -> Tensor:
    """Standard error of the mean of a series (window, mode)."""
    n_batches = min(n_batches, len(rates))
    if n_batches < 2:
        return rates.new_full(rates.shape[1:], torch.nan)
    size = len(rates) // n_batches
    batches = rates[len(rates) - n_batches * size :].unflatten(0, (n_batches, size))
    return _deviation(batches.mean(1)) / math.sqrt(n_batches)


def _deviation(samples: Tensor) -> Tensor:
    """Standard deviation over the first axis; NaN for a single sample."""
    return samples.std(0) if len(samples) > 1 else samples.new_full(samples.shape[1:], torch.nan)
