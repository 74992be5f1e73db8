"""Conjugate gradients for several right-hand sides, each by its own numbers."""

from __future__ import annotations

import torch

from kpops.linalg.probes import Act, Rows
from kpops.linalg.vectors import VectorSpace


def solve(
    act: Act, b: Rows, space: VectorSpace, tol: float, max_iterations: int
) -> tuple[Rows, float]:
    """Solve A x = b for rows b, with A positive definite; also the largest relative residual.

    Hestenes and Stiefel (1952). The residual is computed anew at the end, since that of the
    recursion goes on falling where rounding has stopped the true one.
    """
    length = space.lengths(b)
    scale = torch.where(length > 0, length, 1.0)
    x, r = torch.zeros_like(b), b
    p, square = r, space.dots(r, r)
    for _ in range(max_iterations):
        if bool((square.sqrt() <= tol * scale).all()):
            break
        image = act(p)
        curvature = space.dots(p, image)
        step = torch.where(curvature > 0, square / curvature.clamp_min(1e-300), 0.0)
        x = x + step.to(x.dtype)[:, None] * p
        r = r - step.to(x.dtype)[:, None] * image
        before, square = square, space.dots(r, r)
        ratio = torch.where(before > 0, square / before.clamp_min(1e-300), 0.0)
        p = r + ratio.to(x.dtype)[:, None] * p
    return x, float((space.lengths(b - act(x)) / scale).max())
