"""Agreement in space: the divergence between the states that two series visit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr

from kpops.reconstruction.series import read_pair
from kpops.scalars import check_count, check_real, generator
from kpops.spectral._result import estimates, unitless

_MAX_CELLS = 2**27


def state_space_divergence(
    generated: Any,
    truth: Any,
    *,
    method: str = "bins",
    bins: int = 30,
    smoothing: float = 1e-5,
    width: float = 1.0,
    n_samples: int = 1000,
    rng: int | np.random.Generator | None = None,
) -> xr.Dataset:
    r"""Kullback-Leibler divergence D_stsp of generated from true states.

    .. math:: D = \int p(x) \log \frac{p(x)}{q(x)}\, dx, \quad p \text{ of the truth},\;
       q \text{ of the generated series}

    Parameters
    ----------
    generated, truth : DataArray, Tensor or array_like, shape (trial, time, unit) or (time, unit)
        A free run of the model, and the true series. Their states are pooled; they may differ in
        number.
    method : {"bins", "mixture"}
        How densities are estimated; see Notes.
    bins : int
        Bins along every unit.
    smoothing : float
        Count that is added to every bin (Laplace smoothing), which keeps the divergence finite.
    width : float
        Standard deviation of the Gaussians of the mixture, in standard deviations of each unit of
        the truth.
    n_samples : int
        Random states at which the mixtures are compared.
    rng : int, Generator or None
        Seed of those states.

    Returns
    -------
    Dataset
        ``estimate`` (), in nats; with bins ``outside`` (), the fraction of generated states out of
        the range of the truth, which no bin counts; with mixtures ``stderr`` (), of the average
        over random states.

    Raises
    ------
    ValueError
        If the series differ in units, are not finite, or a unit of the truth is constant; if the
        bins are too many to hold; if an argument is out of range.

    Notes
    -----
    *Bins* divide the range of the truth, from its least to its largest value in every unit. They
    suit up to about five units. The value depends on bins, smoothing and the numbers of states;
    states of one chaotic system have D > 0, so compare with that of a second true run.

    *Mixtures* put a Gaussian at each state of a series and suit any number of units. The integral
    is the average of log p/q over `n_samples` states drawn from p. If both series are Gaussian with
    covariances S, T and D is the diagonal matrix of ``width**2`` times the variances of the truth,
    it converges to the divergence of Gaussians with covariances S + D and T + D.

    References
    ----------
    G. Koppe et al., Identifying nonlinear dynamical systems via generative recurrent neural
    networks with applications to fMRI, PLoS Computational Biology 15 (2019). J. R. Hershey and
    P. A. Olsen, Approximating the Kullback Leibler divergence between Gaussian mixture models,
    ICASSP 2007.

    Examples
    --------
    >>> import numpy as np
    >>> from kpops.reconstruction import state_space_divergence
    >>> angle = np.linspace(0, 2 * np.pi, 1000)
    >>> circle = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    >>> float(state_space_divergence(circle[::-1], circle).estimate)
    0.0
    >>> found = state_space_divergence(circle + 1, circle, method="mixture", rng=0)
    >>> bool(found.estimate > 10 * found.stderr)
    True
    """
    if method not in ("bins", "mixture"):
        raise ValueError(f"method={method!r}: choose 'bins' or 'mixture'")
    check_count("bins", bins, 2)
    check_count("n_samples", n_samples, 2)
    for name, value in (("smoothing", smoothing), ("width", width)):
        check_real(name, value)
        if not 0 < value < np.inf:
            raise ValueError(f"{name}={value}: pass a positive number")
    bins, n_samples = int(bins), int(n_samples)  # of NumPy they overflow, and are no JSON
    one, two = read_pair(generated, truth, "generated", least=2, varying=True)
    dtype = two.values.dtype.type
    if method == "bins":
        value, outside = _by_bins(one.points, two.points, bins, smoothing)
        variables: dict[str, Any] = {
            "estimate": ((), dtype(value), unitless("state-space divergence")),
            "outside": ((), dtype(outside), unitless("fraction of states outside the bins")),
        }
        settings: dict[str, Any] = {"bins": bins, "smoothing": float(smoothing)}
    else:
        found = _by_mixtures(one.points, two.points, width, n_samples, generator(rng))
        variables = estimates([dtype(v) for v in found], "state-space divergence")
        settings = {"width": float(width), "n_samples": n_samples}
    configuration = json.dumps({"method": method, **settings})
    return xr.Dataset(variables, attrs={"configuration": configuration})


def _by_bins(
    generated: np.ndarray, truth: np.ndarray, bins: int, smoothing: float
) -> tuple[float, float]:
    n_units = truth.shape[1]
    if bins**n_units > _MAX_CELLS:
        raise ValueError(
            f"bins={bins} make {bins}**{n_units} cells for {n_units} units: pass fewer bins, or "
            "method='mixture'"
        )
    low, high = truth.min(axis=0), truth.max(axis=0)
    inside = ((generated >= low) & (generated <= high)).all(axis=1)

    def density(points: np.ndarray) -> np.ndarray:
        places = np.minimum((bins * ((points - low) / (high - low))).astype(int), bins - 1)
        flat = np.ravel_multi_index(tuple(places.T), (bins,) * n_units)
        counts = np.bincount(flat, minlength=bins**n_units) + smoothing
        return counts / counts.sum()

    p, q = density(truth), density(generated[inside])
    return float((p * np.log(p / q)).sum()), 1 - float(inside.mean())


def _by_mixtures(
    generated: np.ndarray,
    truth: np.ndarray,
    width: float,
    n_samples: int,
    random: np.random.Generator,
) -> tuple[float, float]:
    scale = width * truth.std(axis=0)
    # About the mean, since squares of far states would lose the distances between them.
    one, two = ((states - truth.mean(axis=0)) / scale for states in (generated, truth))
    samples = two[random.integers(len(two), size=n_samples)]
    samples = samples + random.standard_normal(samples.shape)
    logs = _log_density(samples, two) - _log_density(samples, one)
    return float(logs.mean()), float(logs.std(ddof=1) / n_samples**0.5)


def _log_density(samples: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Log of the mean of unit Gaussians, up to a constant that all mixtures share."""
    from scipy.special import logsumexp

    block = max(1, 2**22 // len(centres))
    norms = np.square(centres).sum(axis=1) / 2
    parts = []
    for start in range(0, len(samples), block):
        some = samples[start : start + block]
        exponents = some @ centres.T - norms - np.square(some).sum(axis=1, keepdims=True) / 2
        parts.append(logsumexp(exponents, axis=1))
    return np.concatenate(parts) - np.log(len(centres))
