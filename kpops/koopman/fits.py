r"""The least squares of a dynamic mode decomposition, by PyDMD, and the residuals of ResDMD.

Windows :math:`h_t = (x_t, \dots, x_{t+d-1})` of the series form pairs :math:`(h_t, h_{t+1})`, none
across trials, which are the columns of X and Y. With the singular value decomposition :math:`X = U
S V^*`, cut to its rank r,

.. math:: \tilde A = U^* Y V S^{-1}, \qquad
          \tilde A w = \lambda w, \qquad v^* \tilde A = \lambda v^*.

w gives the mode and v the Koopman eigenfunction :math:`g(h) = v^* U^* h`, for which
:math:`g(h_{t+1}) = \lambda g(h_t)` is claimed. The residual says how far the pairs are from that.
With the Gram matrices G, A, L of the observables :math:`U^* h` (Colbrook and Townsend 2023) it is

.. math:: \mathrm{res}^2 = \frac{v^* (L - \lambda A^* - \bar\lambda A + |\lambda|^2 G) v}{v^* G v}
          = \frac{\sum_t |g(h_{t+1}) - \lambda g(h_t)|^2}{\sum_t |g(h_t)|^2}.

The right side is what is computed, since Gram matrices have squared condition numbers. If r is the
number of pairs, some operator maps X to Y whatever the series is, and all residuals on these pairs
are zero; so r has to be smaller.
"""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import eig

from kpops.koopman.series import Series
from kpops.scalars import check_count


@dataclass(frozen=True)
class Fit:
    """A fitted decomposition of rank r, in the coordinates of the leading singular vectors."""

    span: np.ndarray | None  # (observable, k), which the series is in; None for all
    basis: np.ndarray  # U, (delay * k, r)
    sizes: np.ndarray  # the diagonal of S, (r,)
    operator: np.ndarray  # (r, r)
    lift: np.ndarray  # Y V / S, (delay * k, r)
    before: np.ndarray  # U* X, (r, pair)
    after: np.ndarray  # U* Y, (r, pair)
    delays: int

    def windows(self, series: Series) -> list[np.ndarray]:
        """Return the windows (window, delay * k) of each trial."""
        return series.along(self.span).windows(self.delays)

    def pairs(self, series: Series) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs of another series of the system, in the coordinates of this one."""
        before, after = _pairs(self.windows(series))
        return self.basis.T @ before, self.basis.T @ after

    def eigenpairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Eigenvalues, from the largest modulus on, and left and right eigenvectors as columns."""
        values, left, right = eig(self.operator, left=True)
        values = values.astype(np.result_type(self.operator.dtype, np.complex64))
        order = np.lexsort((-values.imag, -values.real, -np.abs(values).round(12)))
        return values[order], left[:, order], right[:, order]

    def whitened(self, rank: int) -> np.ndarray:
        """Return the operator of a rank, in coordinates whose covariance is the identity."""
        operator, sizes = self.operator[:rank, :rank], self.sizes[:rank]
        return operator * sizes / sizes[:, None]


def residuals(
    values: np.ndarray, left: np.ndarray, before: np.ndarray, after: np.ndarray
) -> np.ndarray:
    """Relative residual of each eigenpair on pairs (coordinate, pair)."""
    functions = left.conj().T
    now = functions @ before
    missed = functions @ after - values[:, None] * now
    return np.linalg.norm(missed, axis=1) / np.linalg.norm(now, axis=1)


def fit(
    series: Series, delays: int = 1, rank: int | None = None, *, at_most: int | None = None
) -> Fit:
    """Fit a decomposition of a rank, by default the numerical rank of the windows, if below."""
    check_count("delays", delays, 1)
    span = None
    if series.n_observables > sum(series.lengths):
        # An isometry, since weights may be many more than steps.
        span, _ = np.linalg.qr(np.concatenate(series.trials).T)
    before, after = _pairs(series.along(span).windows(delays))
    sizes = np.linalg.svd(before, compute_uv=False)
    most = int((sizes > max(before.shape) * np.finfo(sizes.dtype).eps * sizes[0]).sum())
    if not most:
        raise ValueError(f"{series.name} is zero up to its last step: pass one that moves before")
    if rank is not None:
        check_count("rank", rank, 1)
        if rank > most:
            raise ValueError(
                f"rank={rank}: choose an int from 1 to {most}, the rank of the windows of "
                f"{series.name}"
            )
    r = (min(most, at_most) if at_most else most) if rank is None else int(rank)
    n_pairs = before.shape[1]
    if r >= n_pairs:
        raise ValueError(
            f"{series.name} has {n_pairs} pairs of successive windows, which an operator of rank "
            f"{r} fits whatever the dynamics: choose rank below {n_pairs}, or pass more steps"
        )
    operator = _pydmd().DMD(svd_rank=r, exact=True).operator
    basis, sizes, right = operator.compute_operator(before, after)
    lift = after @ right / sizes
    inside = (basis.T @ before, basis.T @ after)
    return Fit(span, basis, sizes, operator.as_numpy_array, lift, *inside, delays)


def _pairs(windows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Successive windows of the same trial, as columns."""
    before, after = (
        np.concatenate([h[part] for h in windows]).T for part in (slice(-1), slice(1, None))
    )
    return before, after


def _pydmd() -> Any:
    """Import PyDMD, which sets up the root logger; that stays the user's."""
    handlers = logging.root.handlers[:]
    try:
        return importlib.import_module("pydmd")
    except ImportError as error:
        raise ImportError(
            f"kpops.koopman needs PyDMD ({error}): install the extra koopman of kpops-flow"
        ) from error
    finally:
        logging.root.handlers[:] = handlers
