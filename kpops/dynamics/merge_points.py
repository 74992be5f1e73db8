"""Points that several starts have come to, each kept once."""

from __future__ import annotations

import numpy as np


def merge(
    states: np.ndarray, speed: np.ndarray, kind: np.ndarray, distance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Put together what is near, or near something that is near, and so on.

    Parameters
    ----------
    states : ndarray, shape (start, unit)
        Where the starts have come to.
    speed, kind : ndarray, shape (start,)
        What they have found there.
    distance : float
        States that are no farther from each other are near.

    Returns
    -------
    kept : ndarray of int
        Of every group the best: of the least kind, and of these the slowest.
    count : ndarray of int
        The size of its group.
    """
    # Imported here, since scipy.special, which these load, adds a filter to the warnings'.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    n = len(states)
    pairs = cKDTree(states).query_pairs(distance, output_type="ndarray")
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    _, group = connected_components(graph, directed=False)
    best_first = np.lexsort((speed, kind))
    _, first = np.unique(group[best_first], return_index=True)
    return best_first[first], np.bincount(group)


def reading_order(
    states: np.ndarray, n_unstable: np.ndarray, kind: np.ndarray, distance: float
) -> np.ndarray:
    """Order of points: by kind, number of unstable directions, and the states themselves.

    States are rounded to the `distance`, so that their own rounding does not decide.
    """
    digits = np.round(states / distance)
    return np.lexsort((*digits.T[::-1], n_unstable, kind))
