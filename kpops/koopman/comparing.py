"""Distances between networks, or between trainings, in one matrix."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from kpops.kinds import described
from kpops.koopman.fits import Fit, fit
from kpops.koopman.series import Series, read_series
from kpops.koopman.similarity import centred_kernel_alignment, dynamical_angle, procrustes_angle
from kpops.koopman.spectra import matched
from kpops.scalars import check_count, generator
from kpops.spectral._result import unitless

_RANK = 10
_LARGEST = 40  # of DSA, whose starts are eigenvectors of a matrix of size rank squared


class Options(NamedTuple):
    """How operators are fitted, how many draws there are of a null, and the source of both."""

    delays: int
    rank: int | None
    n_draws: int
    rng: np.random.Generator


Pair = Callable[[int, int], Any]


@dataclass(frozen=True)
class OfDynamics:
    """A distance between fitted operators; its null are halves of the trials of one network."""

    between: Callable[[Fit, Fit, np.random.Generator], float]
    long_name: str
    units: str
    null = "distances between random halves of the trials of either network"
    p_value = "chance of a null distance at least as large"
    sign = 1  # of a distance that is far out

    def prepare(self, networks: list[Series], options: Options) -> tuple[Pair, Pair]:
        """Return the distance of a pair of networks, and its draws of the null."""
        fits = [self._fit(s, options) for s in networks]
        # Those of a network serve all its pairs.
        draws = [[self._halves(s, options) for _ in range(options.n_draws)] for s in networks]
        return (
            lambda i, j: self.between(fits[i], fits[j], options.rng),
            lambda i, j: np.array(draws[i] + draws[j]),
        )

    def _fit(self, series: Series, options: Options) -> Fit:
        return fit(series, options.delays, options.rank, at_most=_RANK)

    def _halves(self, series: Series, options: Options) -> float:
        order = options.rng.permutation(len(series.trials))
        halves = np.array_split(order, 2)
        first, second = (self._fit(series.choose(half), options) for half in halves)
        return self.between(first, second, options.rng)


@dataclass(frozen=True)
class OfStates:
    """A distance between states at the same steps; its null are trials in another order."""

    between: Callable[[np.ndarray, np.ndarray], float]
    long_name: str
    units: str
    null = "distances with the trials of one network in random order"
    p_value = "chance of a null distance at most as large"
    sign = -1

    def prepare(self, networks: list[Series], options: Options) -> tuple[Pair, Pair]:
        """Return the distance of a pair of networks, and its draws of the null."""
        first = networks[0]
        for other in networks[1:]:
            if other.lengths != first.lengths:
                raise ValueError(
                    f"{first.name} has trials of {_told(first)} steps, {other.name} of "
                    f"{_told(other)}: this method compares states step by step, pass the same "
                    "trials of both"
                )
            if other.trial == first.trial:
                other.refuse_other_labels(first, first.trial)
        states = [np.concatenate(s.trials) for s in networks]
        n = range(options.n_draws)
        return (
            lambda i, j: self.between(states[i], states[j]),
            lambda i, j: np.array([self._permuted(networks[i], networks[j], options) for _ in n]),
        )

    def _permuted(self, a: Series, b: Series, options: Options) -> float:
        """Distance over the steps that both trials of a pair have."""
        order = options.rng.permutation(len(b.trials))
        pairs = [(x, b.trials[k]) for x, k in zip(a.trials, order, strict=True)]
        both = [(x[: len(y)], y[: len(x)]) for x, y in pairs]
        return self.between(*map(np.concatenate, zip(*both, strict=True)))


def _told(series: Series) -> str:
    lengths = series.lengths
    return f"{len(lengths)} x {lengths[0]}" if len(set(lengths)) == 1 else str(lengths)


def _similarity(a: Fit, b: Fit, rng: np.random.Generator) -> float:
    rank = min(len(a.sizes), len(b.sizes))
    return dynamical_angle(a.whitened(rank), b.whitened(rank), rng)


def _spectra(a: Fit, b: Fit, rng: np.random.Generator) -> float:
    return matched(a.eigenpairs()[0], b.eigenpairs()[0])[0]


def _alignment_angle(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.arccos(np.clip(centred_kernel_alignment(x, y), -1, 1)))


METHODS: dict[str, OfDynamics | OfStates] = {
    "dsa": OfDynamics(_similarity, "angle of dynamical similarity analysis", "rad"),
    "koopman": OfDynamics(_spectra, "Wasserstein distance of Koopman eigenvalues", "1"),
    "cka": OfStates(_alignment_angle, "angle of linear centred kernel alignment", "rad"),
    "procrustes": OfStates(procrustes_angle, "Procrustes angle", "rad"),
}


def compare(
    networks: Mapping[str, Any] | Sequence[Any],
    method: str = "dsa",
    *,
    delays: int = 1,
    rank: int | None = None,
    masks: Mapping[str, Any] | Sequence[Any] | None = None,
    n_permutations: int = 0,
    rng: Any = None,
) -> xr.Dataset:
    r"""Distances between networks, or between trainings, from their trajectories.

    Parameters
    ----------
    networks : mapping from name to series, or sequence of series
        Two or more. A series is a linearization, whose states are compared, or an array (trial,
        time, unit) or list of trials (time, unit) as :func:`kpops.koopman.dmd` takes them; weights
        (seed, step, parameter) compare trainings. Networks may differ in their numbers of units.
    method : {"dsa", "koopman", "cka", "procrustes"}
        ``"dsa"``: the operator of a Hankel-DMD of each network, in coordinates whose covariance is
        the identity, up to an orthogonal change of these (dynamical similarity analysis, Ostrow
        and others 2023). ``"koopman"``: the eigenvalues of that operator, by
        :func:`kpops.koopman.spectral_distance`. ``"cka"``: linear centred kernel alignment of the
        states (Kornblith and others 2019). ``"procrustes"``: the states, up to an orthogonal change
        of the units (Williams and others 2021). The first two compare dynamics, and trials need not
        correspond; the last two compare states, of which every step needs its counterpart.
    delays, rank : int
        Of the DMD, for the first two methods. Default of `rank`: the numerical rank of the windows,
        10 at most. DSA takes the smaller one of each pair, and no rank above 40.
    masks : like `networks`, optional
        Mask (trial, time) of each network, or None.
    n_permutations : int
        Number of draws of the null distribution, for each network or for each pair; 0 for none.
        Each costs as much as a distance, which for DSA is a search.
    rng : int, Generator or None
        Source of the permutations, and of the starts of the search of DSA.

    Returns
    -------
    Dataset
        ``distance(network, network2)``: angles in radians, but for ``"koopman"``; for ``"cka"``
        also ``similarity``, whose arc cosine the distance is. With `n_permutations`, ``null_mean``,
        ``null_std`` and ``p_value``, NaN on the diagonal.

    Raises
    ------
    TypeError
        If `networks` is no mapping or sequence, or a series is complex.
    ValueError
        If there are fewer than two networks, `method` is unknown, or a series is constant, not
        finite, or too short; if `masks` are not as many; for ``"cka"`` and ``"procrustes"`` if
        trials differ in length or labels.
    ImportError
        For the first two methods without PyDMD, which the extra ``koopman`` installs.

    Notes
    -----
    For the methods of dynamics the null are distances between random halves of the trials of one
    network, and ``p_value`` is the chance of one at least as large: a small one says that the
    dynamics differ by more than a sample of trials does. Halves have fewer trials than the networks
    that are compared, which makes the test conservative. For the methods of states the null are
    distances after the trials of one network were permuted, and ``p_value`` is the chance of one at
    most as large: a small one says that the networks represent the trials alike. Both include the
    observed distance, so p is at least one over the number of draws plus one.

    DSA minimises a function that is not convex. Here the search starts from several orthogonal
    matrices, among them polar factors of approximate intertwiners, runs in float64, and returns the
    smallest angle that it found: zero to rounding for orthogonally related systems, an upper bound
    in general.

    Examples
    --------
    >>> import numpy as np, kpops
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((20, 1, 3)) * 0.9 ** np.arange(15)[:, None] ** [1, 1.2, 1.4]
    >>> turned = x @ np.linalg.qr(rng.standard_normal((3, 3)))[0]
    >>> found = kpops.compare({"x": x, "turned": turned, "fast": x[:, ::2]}, "koopman")
    >>> found.distance.sel(network="x").values.round(3).tolist()
    [0.0, 0.0, 0.119]
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: choose one of {', '.join(map(repr, METHODS))}")
    check_count("n_permutations", n_permutations, 0)
    check_count("delays", delays, 1)
    if method == "dsa" and rank is not None:
        check_count("rank", rank, 1, _LARGEST)
    names, series = _read(networks, masks)
    measure = METHODS[method]
    alone = [s.name for s in series if len(s.trials) < 2]
    if n_permutations and alone:
        raise ValueError(
            f"{alone[0]} has 1 trial, and the null permutes trials: pass more, or n_permutations=0"
        )
    options = Options(delays, rank, int(n_permutations), generator(rng))
    distance, draws = measure.prepare(series, options)
    n, dtype = len(names), np.result_type(*(s.dtype for s in series))
    matrices = {"distance": np.zeros((n, n), dtype)}
    if n_permutations:
        of_null = ("null_mean", "null_std", "p_value")
        matrices |= {name: np.full((n, n), np.nan, dtype) for name in of_null}
    for i, j in combinations(range(n), 2):
        numbers = [distance(i, j)]
        if n_permutations:
            drawn = draws(i, j)
            beyond = int((measure.sign * (drawn - numbers[0]) >= 0).sum())
            numbers += [drawn.mean(), drawn.std(), (1 + beyond) / (1 + len(drawn))]
        for matrix, number in zip(matrices.values(), numbers, strict=True):
            matrix[i, j] = matrix[j, i] = number
    texts = {
        "distance": (measure.long_name, measure.units),
        "null_mean": ("mean distance under the null", measure.units),
        "null_std": ("standard deviation of the distance under the null", measure.units),
        "p_value": (measure.p_value, "1"),
    }
    dims = ("network", "network2")
    result = xr.Dataset(
        {
            name: (dims, matrix, dict(zip(("long_name", "units"), texts[name], strict=True)))
            for name, matrix in matrices.items()
        },
        {dim: (dim, np.array(names, dtype=object), {"long_name": "network"}) for dim in dims},
        {
            "method": method,
            "null": measure.null if n_permutations else "",
            "configuration": json.dumps(
                {
                    "delays": int(delays),
                    "rank": None if rank is None else int(rank),
                    "n_permutations": int(n_permutations),
                }
            ),
        },
    )
    if method == "cka":
        result["similarity"] = np.cos(result.distance).assign_attrs(
            unitless("linear centred kernel alignment")
        )
    return result


def _read(networks: Any, masks: Any) -> tuple[list[str], list[Series]]:
    """Names and series of the networks."""
    if not isinstance(networks, Mapping | list | tuple):
        raise TypeError(
            f"networks is {described(networks)}: pass a dict from names to series, or a list"
        )
    named = networks if isinstance(networks, Mapping) else dict(enumerate(networks))
    if len(named) < 2:
        raise ValueError(f"networks has {len(named)} entries: pass two or more to compare")
    if masks is None:
        masks = {}
    elif isinstance(masks, list | tuple) and len(masks) == len(named):
        masks = dict(zip(named, masks, strict=True))
    elif not isinstance(masks, Mapping):
        raise ValueError(
            f"masks is {described(masks)}: pass a dict, or a list of {len(named)} masks or None, "
            "one of each network"
        )
    unknown = sorted(str(k) for k in masks if k not in named)
    if unknown:
        raise ValueError(f"masks has {unknown}, which are no networks: choose from {list(named)}")
    series = [read_series(s, masks.get(k), f"networks[{k!r}]") for k, s in named.items()]
    names = [str(k) for k in named]
    if len(set(names)) < len(names):
        raise ValueError(f"networks has the names {list(named)}: give each a text of its own")
    return names, series
