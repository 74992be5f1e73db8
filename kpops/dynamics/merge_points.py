"""Keep each point once that several starts have reached."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_BYTES = 2**26  # of distances in memory at a time


def merge(
    states: np.ndarray, speed: np.ndarray, kind: np.ndarray, distance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Keep the best point, drop all points near it, keep the best of the rest, and so on.

    Kept points are apart from each other, and every other one is near one of them: isolated points
    are found once, and a continuum is covered, however many starts reached it. The best points have
    the least kind, and among these the least speed; near means up to `distance`.

    Returns the positions of the kept points, the best first, and how many starts each stands for.
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
