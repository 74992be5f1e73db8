"""Distance between Koopman spectra, by optimal matching."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from scipy.sparse import eye_array, kron, vstack

from kpops.kinds import described
from kpops.learning.required import labelled
from kpops.maturity import experimental
from kpops.spectral._result import unitless


@experimental
def spectral_distance(a: Any, b: Any, *, drop_spurious: bool = False) -> xr.Dataset:
    r"""Wasserstein distance between the eigenvalues of two decompositions.

    Parameters
    ----------
    a, b : Dataset or array
        Results of :func:`kpops.koopman.dmd`, or eigenvalues (mode,), real or complex. Their numbers
        may differ; the eigenvalues of each have equal weights that sum to one.
    drop_spurious : bool
        Leave out the eigenvalues that :func:`kpops.koopman.dmd` marks as spurious.

    Returns
    -------
    Dataset
        ``distance``: the mean absolute difference of the matched eigenvalues, in the matching that
        makes it smallest; ``matching(mode, mode2)``, the weight of each pair.

    Raises
    ------
    TypeError
        If `a` or `b` is neither such a Dataset nor an array of numbers.
    ValueError
        If there are no eigenvalues, or they are not finite.

    Notes
    -----
    :math:`W_1` in the complex plane, by which Redman and others (2024), Identifying equivalent
    training dynamics, arXiv 2302.09160, compare the dynamics of two trainings: systems that are
    topologically conjugate have the same Koopman eigenvalues. It is a metric on spectra.

    Examples
    --------
    >>> import kpops
    >>> found = kpops.koopman.spectral_distance([0.9, 0.5], [0.5, 0.8])
    >>> round(float(found.distance), 12)
    0.05
    """
    left, right = (_eigenvalues(x, name, drop_spurious) for x, name in ((a, "a"), (b, "b")))
    plain, matching = matched(left, right)
    dtype = np.result_type(left.real, right.real)
    distance = dtype.type(plain)
    numbers = (("mode", len(left)), ("mode2", len(right)))
    return xr.Dataset(
        {
            "distance": labelled(
                (), dtype.type(distance), "Wasserstein distance of the eigenvalues"
            ),
            "matching": labelled(("mode", "mode2"), matching.astype(dtype), "weight of the pair"),
        },
        {dim: (dim, np.arange(1, n + 1), unitless("mode")) for dim, n in numbers},
    )


def matched(a: np.ndarray, b: np.ndarray) -> tuple[float, np.ndarray]:
    """W1 of points of equal weights, and the optimal plan (a, b)."""
    # Imported here, since they add filters to those of warnings.
    from scipy.optimize import linear_sum_assignment, linprog

    n, m = len(a), len(b)
    costs = np.abs(a[:, None] - b)
    if n == m:  # a vertex of the doubly stochastic matrices is a permutation
        plan = np.zeros((n, m))
        plan[linear_sum_assignment(costs)] = 1 / n
    else:
        sums = [kron(eye_array(n), np.ones((1, m))), kron(np.ones((1, n)), eye_array(m))]
        weights = np.repeat([1 / n, 1 / m], [n, m])
        solved = linprog(costs.ravel(), A_eq=vstack(sums), b_eq=weights)
        if not solved.success:
            raise ArithmeticError(f"the matching of {n} with {m} eigenvalues: {solved.message}")
        plan = solved.x.reshape(n, m)
    return float((plan * costs).sum()), plan


def _eigenvalues(found: Any, name: str, drop_spurious: bool) -> np.ndarray:
    if isinstance(found, xr.Dataset):
        if "eigenvalue" not in found:
            raise TypeError(f"{name} is {described(found)}: pass what kpops.koopman.dmd returns")
        keep = ~found.spurious.values if drop_spurious else slice(None)
        values = found.eigenvalue.values[keep]
    else:
        if drop_spurious:
            raise TypeError(
                f"{name} is {described(found)}, and drop_spurious=True: eigenvalues alone do not "
                "say which are spurious, pass what kpops.koopman.dmd returns"
            )
        values = np.asarray(found)
    if values.dtype.kind not in "fciu":
        raise TypeError(f"{name} is {described(found)}: pass eigenvalues, an array of numbers")
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(
            f"{name} has eigenvalues of shape {values.shape}: pass one or more, finite, (mode,)"
        )
    return values.astype(np.result_type(values, np.complex64))
