r"""Distances between two systems, from their series or their fitted operators.

All angles are computed from the difference of unit vectors, :math:`2 \arcsin(|x - y| / 2)`, which
keeps the digits that the arc cosine loses near zero.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from kpops.arrays import to_numpy


def angle(x: np.ndarray, y: np.ndarray) -> float:
    """Angle between two arrays, as vectors."""
    chord = float(np.linalg.norm(x / np.linalg.norm(x) - y / np.linalg.norm(y)))
    return 2 * math.asin(min(chord / 2, 1.0))


def centred_kernel_alignment(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA of samples (sample, unit)."""
    x, y = x - x.mean(0), y - y.mean(0)
    return float(np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def procrustes_angle(x: np.ndarray, y: np.ndarray) -> float:
    """Angle between centred samples (sample, unit) after the best rotation of one."""
    x, y = x - x.mean(0), y - y.mean(0)
    width = max(x.shape[1], y.shape[1])
    x, y = (np.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in (x, y))
    return angle(x, y @ _polar(y.T @ x))


def _polar(a: np.ndarray) -> np.ndarray:
    """The orthogonal matrix that is nearest to a square one."""
    left, _, right = np.linalg.svd(a)
    return left @ right


def dynamical_angle(a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> float:
    r"""Angle between A and C B C^T, smallest over orthogonal C.

    For orthogonal C, ``|A - C B C^T| = |A C - C B| = |A^T C - C B^T|``. Over all C of the same
    norm, the sum of the squares of the last two is a quadratic form, whose least eigenvectors are
    near the solution; if A and B are orthogonally similar they span the matrices that intertwine
    them, of which almost every one has an orthogonal polar factor that does too. So the descents
    start from the polar factors of random combinations of these eigenvectors.
    """
    if not (a.any() and b.any()):
        raise ValueError("an operator is zero, which has no angle: pass series that move on")
    a, b = (x.astype(np.float64) / np.linalg.norm(x) for x in (a, b))
    return min(angle(a, c @ b @ c.T) for c in _descents(a, b, rng))


# How many random combinations of how many of the least eigenvectors. Of more of them the starts are
# more diverse, of fewer the descents are shorter.
_STARTS = ((1, 1), (3, 3), (4, 8))


def _descents(a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    from scipy.optimize import minimize

    n = len(a)
    eye = np.eye(n)
    # C, row by row, to A C - C B and A^T C - C B^T
    rows = np.concatenate(
        [np.kron(left, eye) - np.kron(eye, right.T) for left, right in ((a, b), (a.T, b.T))]
    )
    values, vectors = np.linalg.eigh(rows.T @ rows)
    n_zero = int((values < 1e-10).sum())  # of a matrix with norm one; all of these are mixed
    found = []
    for number, least in _STARTS:
        mixed = vectors[:, : max(least, n_zero)]
        for weights in rng.standard_normal((number, mixed.shape[1])):
            c = _polar((mixed @ weights).reshape(n, n))
            if n > 1:
                solved = minimize(
                    _misfit,
                    np.zeros(n * (n - 1) // 2),
                    (c, a, b),
                    method="L-BFGS-B",
                    jac=True,
                    options={"maxiter": 500, "ftol": 1e-12, "gtol": 1e-8},
                )
                c = to_numpy(_rotated(torch.from_numpy(solved.x), c))
            found.append(c)
    return found


def _rotated(x: Tensor, c: np.ndarray) -> Tensor:
    """The orthogonal matrix of Cayley coordinates about c."""
    n = len(c)
    rows, columns = torch.triu_indices(n, n, 1)
    skew = torch.zeros(n, n, dtype=torch.float64).index_put((rows, columns), x)
    skew = skew - skew.T
    eye = torch.eye(n, dtype=torch.float64)
    return torch.linalg.solve(eye + skew, eye - skew) @ torch.from_numpy(c)


def _misfit(x: np.ndarray, c: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[float, np.ndarray]:
    """Squared distance, and its gradient in Cayley coordinates."""
    at = torch.from_numpy(x).requires_grad_()
    rotation = _rotated(at, c)
    misfit = (torch.from_numpy(a) - rotation @ torch.from_numpy(b) @ rotation.T).square().sum()
    (gradient,) = torch.autograd.grad(misfit, at)
    return misfit.item(), to_numpy(gradient)
