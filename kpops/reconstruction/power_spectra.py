"""Agreement in time: the Hellinger distance of power spectra."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr

from kpops.reconstruction.series import Series, read_pair, read_series
from kpops.scalars import check_real


def power_spectrum_error(generated: Any, truth: Any, *, smoothing: float = 20.0) -> xr.Dataset:
    r"""Mean Hellinger distance D_H of the smoothed, normalised power spectra of two series.

    Of every unit, standardised, the squared amplitudes of the Fourier transform are averaged over
    trials, smoothed by a Gaussian along frequency, and normalised to the sum 1. Between the spectra
    p and q of a unit lies the distance

    .. math:: H(p, q) = \sqrt{1 - \sum_\omega \sqrt{p_\omega q_\omega}} \in [0, 1].

    Parameters
    ----------
    generated, truth : DataArray, Tensor or array_like, shape (trial, time, unit) or (time, unit)
        A free run of the model, and the true series, with equal steps of time.
    smoothing : float
        Standard deviation of the Gaussian, in bins of frequency, of ``1 / n_steps`` each; 0 for
        none.

    Returns
    -------
    Dataset
        ``estimate`` (), the mean over the units; ``distance`` (unit).

    Raises
    ------
    ValueError
        If the series differ in steps or units, are not finite, or have a constant unit.

    Notes
    -----
    The smoothing counts bins, so that its width in frequency depends on the length of the series.
    The distance of two finite runs of one chaotic system is not 0: compare with that.

    References
    ----------
    J. Mikhaeil, Z. Monfared and D. Durstewitz, On the difficulty of learning chaotic dynamics with
    RNNs, NeurIPS 2022 (arXiv 2110.07238).

    Examples
    --------
    >>> import numpy as np
    >>> from kpops.reconstruction import power_spectrum_error
    >>> time = np.arange(1000)
    >>> slow, fast = (np.sin(2 * np.pi * k * time / 1000)[:, None] for k in (100, 300))
    >>> round(float(power_spectrum_error(fast, slow).estimate), 6)
    1.0
    """
    check_real("smoothing", smoothing)
    if not 0 <= smoothing < np.inf:
        raise ValueError(f"smoothing={smoothing}: pass a number of bins, 0 or more")
    read_series(generated, "generated", varying=True)
    pair = read_pair(generated, truth, "generated", least=4, same=("time", "unit"), varying=True)
    p, q = (_spectra(series, smoothing) for series in pair)
    # Equal to the root of 1 - sum sqrt(p q), and exactly 0 for equal spectra.
    distance = np.sqrt(np.square(np.sqrt(p) - np.sqrt(q)).sum(axis=0) / 2)
    dtype = pair[1].values.dtype
    name = "Hellinger distance of the power spectra"
    return xr.Dataset(
        {
            "estimate": (
                (),
                dtype.type(distance.mean()),
                {"long_name": f"mean {name}", "units": "1"},
            ),
            "distance": ("unit", distance.astype(dtype), {"long_name": name, "units": "1"}),
        },
        coords=pair[1].kept("unit"),
        attrs={"configuration": json.dumps({"smoothing": float(smoothing)})},
    )


def _spectra(series: Series, smoothing: float) -> np.ndarray:
    """Power at every frequency, (frequency, unit), with the sum 1."""
    from scipy.ndimage import gaussian_filter1d

    values = series.values.astype(np.float64)
    values = (values - values.mean(axis=(0, 1))) / values.std(axis=(0, 1))
    power = np.square(np.abs(np.fft.rfft(values, axis=1))).mean(axis=0)
    if smoothing:
        power = gaussian_filter1d(power, smoothing, axis=0)
    return power / power.sum(axis=0)
