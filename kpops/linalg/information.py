"""Mutual information between the past and the future of a linear Gaussian system.

States ``h[t] = A[t] h[t-1] + q[t]`` with ``h[0] = 0`` and independent noise q[t] of covariance Q
are observed as ``y[t] = h[t] + v[t]`` with independent v[t] of covariance R, or exactly. Given
h[t], past and future are independent, so all that the past y[1..t] says about the future y[t+1..T]
is in three matrices of the size of the state:

- D, the covariance of the estimate E(h[t] | past), and Sigma, that of its error; D + Sigma is the
  covariance of h[t], for Q = I its controllability Gramian;
- M, the Fisher information about h[t] in the future; for Q = 0 and R = I the observability Gramian
  of the steps after t.

With D = L L^T and ``F = M (I + Sigma M)^-1``, the canonical correlations rho_i of past and future
obey ``rho^2 / (1 - rho^2) = mu``, the eigenvalues of ``L^T F L``. For, given the past, the future
says ``I(h; future | past) = logdet(I + Sigma M) / 2`` about h[t]; without it
``logdet(I + (D + Sigma) M) / 2``; and ``I + (D + Sigma) M = (I + D F) (I + Sigma M)``.

All matrices are kept as square roots, a a^T, so that none loses its definiteness, nor half the
digits of small correlations.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kpops import work
from kpops.engines.base import Engine

Roots = Float[Tensor, "trial unit column"]


def joined(a: Roots, b: Roots) -> Roots:
    """A square root of ``a a^T + b b^T``, square."""
    return torch.linalg.qr(torch.cat([a, b], -1).mT, mode="r").R.mT


def split(root: Roots, weight: Roots) -> tuple[Roots, Roots]:
    """Square roots of what a weight G leaves of ``S = r r^T``, and of what it takes.

    They are ``(S^-1 + G G^T)^-1 = r (I + r^T G G^T r)^-1 r^T``, and S minus this.
    """
    u, s, _ = torch.linalg.svd(root.mT @ weight)
    scale = torch.hypot(s, torch.ones_like(s))[:, None]
    turned = root @ u
    return turned / scale, turned * (s[:, None] / scale)


def ratios(
    engine: Engine,
    valid: Float[Tensor, "trial time unit"],
    noise: Float[Tensor, "unit unit"],
    weight: Float[Tensor, "unit unit"] | None,
    inverse_noise: Float[Tensor, "unit unit"] | None,
    cuts: list[int],
) -> Float[Tensor, "trial cut unit"]:
    """Falling mu of each cut, in float64; zero after the last valid step of a trial.

    `noise` is a square root of Q, and `weight` of R^-1. Without a weight the states are observed
    exactly, and `inverse_noise` is a square root of Q^-1. These may be on the host.
    """
    noise = noise.to(valid.device)
    weight, inverse_noise = (
        root if root is None else root.to(valid.device) for root in (weight, inverse_noise)
    )
    n_trials, n_steps, n_units = valid.shape
    within = valid[:, :, :1, None].double()
    forced = noise * within.new_ones(n_trials, 1, 1)

    def jacobian(t: int) -> Tensor:
        return engine.step_jacobians(t).double() * within[:, t]

    work.expect(2 * n_steps, "steps")
    known: dict[int, tuple[Tensor, Tensor]] = {}
    seen = error = torch.zeros_like(forced)
    for t in range(max(cuts) + 1):
        work.advance(1)
        if t > 0:
            A = jacobian(t)
            seen, error = A @ seen, A @ error
        error = joined(error, forced * within[:, t])
        if weight is None:
            seen, error = joined(seen, error), torch.zeros_like(error)
        else:
            error, gained = split(error, weight * within[:, t])
            seen = joined(seen, gained)
        if t in cuts:
            known[t] = seen, error
    result = within.new_zeros(n_trials, len(cuts), n_units)
    future = torch.zeros_like(forced)
    for t in reversed(range(min(cuts), n_steps - 1)):
        work.advance(1)
        A = jacobian(t + 1)
        if weight is None:
            assert inverse_noise is not None
            future = A.mT @ inverse_noise
        else:
            future = joined(future, weight * within[:, t + 1])
            future = A.mT @ split(future, forced * within[:, t + 1])[0]
        if t in cuts:
            seen, error = known[t]
            useful = split(future, error)[0]
            result[:, cuts.index(t)] = torch.linalg.svdvals(useful.mT @ seen).square()
    return result
