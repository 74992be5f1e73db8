"""Points that several starts have come to, each kept once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_BYTES = 2**26  # of distances that are there together


def merge(
    states: np.ndarray, speed: np.ndarray, kind: np.ndarray, distance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Keep the best point, leave out all that is near it, keep the best of the rest, and so on.

    What is kept is apart from each other, and near everything that is not: isolated points are
    found once, and a continuum is covered, however many starts have come to it.

    Parameters
    ----------
    states : ndarray, shape (start, unit)
        Where the starts have come to.
    speed, kind : ndarray, shape (start,)
        What they have found there. The best are of the least kind, and of these the slowest.
    distance : float
        States that are no farther from each other are near.

    Returns
    -------
    kept : ndarray of int
        The points, the best first.
    count : ndarray of int
        How many starts each stands for, itself among them.
    """
    # Imported here, since scipy.special, which this loads, adds a filter to the warnings'.
    from scipy.spatial import cKDTree

    tree = cKDTree(states)
    stands_for = np.full(len(states), -1)
    kept: list[int] = []
    for best in np.lexsort((*states.T[::-1], speed, kind)):
        if stands_for[best] < 0:
            near = np.array(tree.query_ball_point(states[best], distance))
            stands_for[near[stands_for[near] < 0]] = len(kept)
            kept.append(int(best))
    return np.array(kept), np.bincount(stands_for)


def nearest(points: Tensor, starts: Tensor) -> Tensor:
    """Distance of every point (point, unit) to the nearest start (start, unit)."""
    parts = points.split(max(1, _BYTES // starts[:, 0].nbytes))
    return torch.cat([torch.cdist(part, starts).amin(1) for part in parts])


def reading_order(
    states: np.ndarray, n_unstable: np.ndarray, kind: np.ndarray, distance: float
) -> np.ndarray:
    """Order of points: by kind, number of unstable directions, and the states themselves.

    States are rounded to the `distance`, so that their own rounding does not decide.
    """
    digits = np.round(states / distance)
    return np.lexsort((*digits.T[::-1], n_unstable, kind))
