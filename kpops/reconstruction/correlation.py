"""The correlation dimension of the set that a series visits."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import xarray as xr

from kpops.reconstruction.series import read_series
from kpops.scalars import check_count, check_real
from kpops.spectral._result import estimates, unitless

_N_BLOCKS = 16


def correlation_dimension(
    series: Any,
    *,
    theiler: int = 0,
    scaling: tuple[float, float] = (0.02, 0.2),
    n_radii: int = 12,
) -> xr.Dataset:
    r"""Correlation dimension, by the slope of the correlation sum (Grassberger and Procaccia).

    .. math:: C(r) = \mathrm{fraction\ of\ pairs\ with}\; |x_i - x_j| < r, \; |i - j| > w,
       \qquad C(r) \propto r^D

    Parameters
    ----------
    series : DataArray, Tensor or array_like, shape (trial, time, unit) or (time, unit)
        States of a system. Reconstruct them by delays first if only one unit was observed.
    theiler : int
        Theiler window w: pairs of one trial up to w steps apart do not count, since they are close
        in time. Choose more than the correlation time of a flow.
    scaling : pair of float
        The least and the largest radius of the scaling range, relative to the root mean square
        distance of the states from their mean.
    n_radii : int
        Radii, equally spaced in log r, through which the line is fitted.

    Returns
    -------
    Dataset
        ``estimate`` () and ``stderr`` (), the slope of log C by least squares over the scaling
        range and its standard error by a jackknife over 16 blocks of consecutive states;
        ``correlation_sum`` (radius) and ``local_slope`` (radius), which should be flat in the
        scaling range.

    Raises
    ------
    ValueError
        If the series is short, not finite or constant, no pair is left by the window, no pair is
        closer than the least radius, or an argument is out of range.

    Notes
    -----
    The standard error is statistical. What the choice of the range does is not in it: look at
    ``local_slope``.

    References
    ----------
    P. Grassberger and I. Procaccia, Measuring the strangeness of strange attractors, Physica D 9
    (1983). J. Theiler, Spurious dimension from correlation algorithms applied to limited
    time-series data, Physical Review A 34 (1986).

    Examples
    --------
    >>> import numpy as np
    >>> from kpops.reconstruction import correlation_dimension
    >>> angle = 2 * np.pi * np.random.default_rng(0).random(2000)
    >>> circle = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    >>> round(float(correlation_dimension(circle).estimate), 1)
    1.0
    """
    check_count("theiler", theiler, 0)
    check_count("n_radii", n_radii, 3)
    low, high = _range(scaling)
    read = read_series(series, "series", least=2)
    n_trials, n_steps, _ = read.values.shape
    points = read.points
    if len(points) < 4 * _N_BLOCKS:
        raise ValueError(
            f"series has {len(points)} states, and {4 * _N_BLOCKS} are needed for a standard error"
        )
    if theiler >= n_steps - 1 and n_trials == 1:
        raise ValueError(f"theiler={theiler} leaves no pair of the {n_steps} steps: shorten it")
    if (points == points[0]).all():
        raise ValueError("series is constant: there is no set of states to measure")
    size = np.sqrt(np.square(points - points.mean(axis=0)).sum(axis=1).mean())
    relative = np.geomspace(low, high, n_radii)
    counts, pairs = _pairs(points, n_trials, theiler, relative * size)
    # A block leaves with all pairs in which it takes part.
    left, n_left = (x.sum(axis=(0, 1)) - 2 * x.sum(axis=1) + _own(x) for x in (counts, pairs))
    total, n_total = counts.sum(axis=(0, 1)), pairs.sum()
    if total[0] == 0 or (left[:, 0] == 0).any():
        raise ValueError(
            f"scaling={scaling}: too few pairs are closer than the least radius, {low} of the size "
            "of the set; raise it, or pass more states"
        )
    log_r = np.log(relative)
    log_sum = np.log(total / n_total)
    dimension = _slope(log_r, log_sum)
    without = np.array([_slope(log_r, np.log(c / n)) for c, n in zip(left, n_left, strict=True)])
    stderr = np.sqrt((_N_BLOCKS - 1) * np.square(without - without.mean()).mean())
    dtype = read.values.dtype
    return xr.Dataset(
        {
            **estimates([dtype.type(dimension), dtype.type(stderr)], "correlation dimension"),
            "correlation_sum": (
                "radius",
                np.exp(log_sum).astype(dtype),
                unitless("correlation sum"),
            ),
            "local_slope": (
                "radius",
                np.gradient(log_sum, log_r).astype(dtype),
                unitless("slope of the logarithm of the correlation sum"),
            ),
        },
        coords={
            "radius": (
                "radius",
                relative,
                {"long_name": "radius relative to that of the set", "units": "1"},
            )
        },
        attrs={
            "configuration": json.dumps({"theiler": int(theiler), "scaling": [low, high]}),
            "size": float(size),
        },
    )


def _range(scaling: Any) -> tuple[float, float]:
    if not isinstance(scaling, tuple | list) or len(scaling) != 2:
        raise TypeError(f"scaling={scaling!r}: pass two radii, such as (0.02, 0.2)")
    for radius in scaling:
        check_real("scaling", radius)
    low, high = map(float, scaling)
    if not 0 < low < high < np.inf:
        raise ValueError(f"scaling={scaling}: pass two radii, 0 < the first < the second")
    return low, high


def _pairs(
    points: np.ndarray, n_trials: int, theiler: int, radii: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ordered pairs closer than each radius, and all pairs, between blocks of states.

    Shapes (block, block, radius) and (block, block); pairs within the window do not count.
    """
    from scipy.spatial import cKDTree

    n = len(points)
    n_steps = n // n_trials
    block_of = np.arange(n) * _N_BLOCKS // n
    edges = np.searchsorted(block_of, np.arange(_N_BLOCKS + 1))
    blocks = [points[a:b] for a, b in itertools.pairwise(edges)]
    trees = [cKDTree(block) for block in blocks]
    counts = np.empty((_N_BLOCKS, _N_BLOCKS, len(radii)))
    for i, tree in enumerate(trees):
        for j in range(i + 1):
            counts[i, j] = counts[j, i] = tree.count_neighbors(trees[j], radii)
    sizes = np.diff(edges).astype(float)
    pairs = np.outer(sizes, sizes)
    for lag in range(min(theiler, n_steps - 1) + 1):  # lag 0: a state and itself
        first = np.flatnonzero(np.arange(n) % n_steps + lag < n_steps)
        near = np.sqrt(np.square(points[first + lag] - points[first]).sum(axis=1))[:, None] <= radii
        a, b = block_of[first], block_of[first + lag]
        for one, two in ((a, b), (b, a))[: 1 if lag == 0 else 2]:
            np.add.at(counts, (one, two), -near.astype(float))
            np.add.at(pairs, (one, two), -1.0)
    return counts, pairs


def _own(matrix: np.ndarray) -> np.ndarray:
    """Entries of blocks with themselves."""
    return matrix[np.arange(len(matrix)), np.arange(len(matrix))]


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.polynomial.polynomial.polyfit(x, y, 1)[1])
