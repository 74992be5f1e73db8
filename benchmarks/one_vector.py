"""Baseline for spectra: ARPACK and Hutchinson, one NumPy vector at a time.

This is what one has without kpops: an operator of stored Jacobians, passed to
``scipy.sparse.linalg.eigsh`` or to a loop over random vectors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse.linalg

Act = Callable[[np.ndarray], np.ndarray]


class Counted:
    """An operator on flat vectors that counts its matvecs.

    Parameters
    ----------
    act : callable
        Its action.
    n : int
        Its size.
    dtype : str
        Dtype of its vectors.
    cost : int
        Number of matvecs that one action counts as.
    """

    def __init__(self, act: Act, n: int, dtype: str, cost: int = 1) -> None:
        self.act, self.cost, self.products = act, cost, 0
        self.shape, self.dtype = (n, n), np.dtype(dtype)
        self.linear = scipy.sparse.linalg.LinearOperator(self.shape, self.matvec, dtype=dtype)

    def matvec(self, q: np.ndarray) -> np.ndarray:
        self.products += self.cost
        return self.act(np.ravel(q))


def arpack(operator: Counted, k: int, tol: float, v0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The k leading eigenvalues, in falling order, and eigenvectors as rows."""
    values, vectors = scipy.sparse.linalg.eigsh(operator.linear, k=k, tol=tol, v0=v0)
    order = np.argsort(values)[::-1]
    return values[order], vectors.T[order]


def participation(operator: Counted, m: int, rng: np.random.Generator) -> tuple[float, float]:
    """Participation ratio ``(tr A)^2 / tr A^2`` from m matvecs, with its jackknife error.

    For a standard normal z, ``z . A z`` and ``|A z|^2`` have the means tr A and tr A^2.
    """
    samples = np.empty((m, 2))
    for i in range(m):
        z = rng.standard_normal(operator.shape[0]).astype(operator.dtype)
        image = operator.matvec(z).astype(float)
        samples[i] = z @ image, image @ image
    first, second = ((samples.sum(0) - samples) / (m - 1)).T
    without = first**2 / second
    whole = samples[:, 0].mean() ** 2 / samples[:, 1].mean()
    estimate = m * whole - (m - 1) * without.mean()
    return float(estimate), float(np.sqrt((m - 1) * without.var()))
