"""How well a score tells pairs of one kind from the others: area under the curve, precision."""

from __future__ import annotations

import numpy as np


def by_threshold(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positives and others at each distinct score, from the highest down."""
    _, place = np.unique(-scores, return_inverse=True)
    found = np.bincount(place, positive)
    return found, np.bincount(place) - found


def roc_auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive scores above another, ties counted by half."""
    found, others = by_threshold(scores, positive)
    below = others.sum() - others.cumsum() + others / 2
    return float((found * below).sum() / (found.sum() * others.sum()))


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Mean over positives of the share of positives among all that score as high or higher."""
    found, others = by_threshold(scores, positive)
    precision = found.cumsum() / (found + others).cumsum()
    return float((found * precision).sum() / found.sum())
