r"""Minima of the speed of a map, from many starts at once.

With F(h) = f(h) - h and its Jacobian J = A - I, the search descends q = |F|^2 / 2 (Sussillo and
Barak 2013). A minimum with q = 0 is a fixed point, any other is a slow point. Levenberg-Marquardt
steps, ``(J^T J + m I) step = -J^T F``, solve the least squares problem ``[J; sqrt(m) I] step =
-[F; 0]``, which avoids squaring J. With the damping m = lambda |F| they converge quadratically to
fixed points, isolated or on a line of them (Yamashita and Fukushima 2001). A step is taken if q
falls by a fraction of what the linear model of F predicts; lambda falls where the model was right,
and rises where it was wrong.

If a start has reached no fixed point, the Hessian ``H = J^T J + sum_i F_i d^2 f_i / dh^2`` of q
shows whether it is at a minimum: J is singular at a slow point, and only the second term sees it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vjp

from kpops import work
from kpops.engines.rowwise import Rowwise
from kpops.models.recurrence import Recurrence

KINDS = ("fixed", "slow", "not converged")
FIXED, SLOW, NEITHER = range(3)

_BYTES = 2**28  # of matrices in memory at a time
_DISTANCE_BYTES = 2**26
_MATRICES = 8  # of the size of a Jacobian, in memory for each start
_FIRST_DAMPING, _LEAST_DAMPING = 1e-2, 1e-10
_SHORT = 1e-2  # length of a step that ends a search, over the wanted distance to a minimum


class Map:
    """The autonomous map ``h -> f(x, h)`` of rows of states, at a constant input x (feature,)."""

    def __init__(self, recurrence: Recurrence, x: Tensor) -> None:
        self.recurrence = recurrence
        self.x = x

    def change(self, h: Tensor) -> Tensor:
        """F = f(x, h) - h of every row."""
        return self.recurrence.step({}, self._inputs(h), h) - h

    def jacobians(self, h: Tensor) -> Tensor:
        """A = df/dh at every row, (row, unit, unit)."""
        return Rowwise(self.recurrence.step, {}, self._inputs(h), h).state_jacobians()

    def curvatures(self, h: Tensor, weights: Tensor) -> Tensor:
        """Sum over i of ``weights_i d^2 f_i / dh^2`` at every row, (row, unit, unit)."""
        n_features = len(self.x)

        def gradient(parameters: dict[str, Tensor], both: Tensor, h: Tensor) -> Tensor:
            x, w = both[..., :n_features], both[..., n_features:]
            return vjp(lambda state: self.recurrence.step(parameters, x, state), h)[1](w)[0]

        # The derivative of A^T w: a function of rows again, with the weights as part of its input.
        both = torch.cat([self._inputs(h), weights], -1)
        return Rowwise(gradient, {}, both, h).state_jacobians()

    def _inputs(self, h: Tensor) -> Tensor:
        return self.x.expand(len(h), -1)


class Rows(NamedTuple):
    """States h of a search, their change F and its Jacobian J."""

    h: Tensor
    F: Tensor
    J: Tensor

    def at(self, index: Tensor) -> Rows:
        """Some of the rows."""
        return Rows(*(part[index] for part in self))


class Found(NamedTuple):
    """Where the search has ended, one row for each start."""

    states: Tensor
    speed: Tensor
    kind: Tensor


def rounding(rows: Rows) -> Tensor:
    """Speed of every row that rounding explains.

    That is 16 rounding units of the state and of its size, plus ``4 eps |J| |h|``, the speed that 4
    units of the state make: no representable state may be nearer to the fixed point.
    """
    size, slope = rows.h.norm(dim=1), rows.J.flatten(1).norm(dim=1)
    eps = torch.finfo(rows.h.dtype).eps
    return eps * (16 * (rows.h.shape[1] ** 0.5 + size) + 4 * slope * size)


def search(f: Map, starts: Tensor, tol: float, near: float, max_iterations: int) -> Found:
    """Descend the speed from every start (start, unit), by at most `max_iterations` steps.

    A fixed point has at most the speed `tol`, or that of :func:`rounding`; a slow point is located
    to the distance `near`.
    """
    per_start = _MATRICES * starts.shape[1] ** 2 * starts.element_size()
    parts = starts.split(max(1, _BYTES // per_start))
    work.expect(len(starts), "starts")
    found = [_search_together(f, part, tol, near, max_iterations) for part in parts]
    return Found(*(torch.cat(columns) for columns in zip(*found, strict=True)))


def _search_together(f: Map, starts: Tensor, tol: float, near: float, max_iterations: int) -> Found:
    rows = _descend(f, _rows_at(f, starts), tol, near, max_iterations)
    speed = rows.F.norm(dim=1)
    kind = torch.where(speed <= rounding(rows).clamp_min(tol), FIXED, NEITHER)
    rest = (kind == NEITHER).nonzero()[:, 0]
    if len(rest):
        kind[rest] = torch.where(_is_minimum(f, rows.at(rest), near), SLOW, NEITHER)
    return Found(rows.h, speed, kind)


def _descend(f: Map, rows: Rows, tol: float, near: float, max_iterations: int) -> Rows:
    """Take damped steps from every start until each has ended."""
    damping = torch.full_like(rows.F[:, 0], _FIRST_DAMPING)
    going = (rows.F.norm(dim=1) > tol).nonzero()[:, 0]
    work.advance(len(damping) - len(going))
    for _ in range(max_iterations):
        if not len(going):
            break
        here = rows.at(going)
        speed = here.F.norm(dim=1)
        move, expected = _step(here, damping[going] * speed)
        h = here.h + move
        F = f.change(h)
        gain = (speed**2 - F.norm(dim=1) ** 2) / (2 * expected)
        taken = gain > 1e-4  # False where anything is not finite
        if taken.any():
            for part, values in zip(rows, _rows_at(f, h[taken], F[taken]), strict=True):
                part[going[taken]] = values
        factor = torch.where(gain > 0.75, 0.1, torch.where(gain > 0.25, 1.0, 5.0))
        damping[going] = (factor * damping[going]).clamp_min(_LEAST_DAMPING)
        new_speed = rows.F[going].norm(dim=1)
        # Rounding alone ends no search: with an eigenvalue near 1, the last digits of the speed
        # fix the first ones of the state.
        ended = (move.norm(dim=1) <= _SHORT * near) & (new_speed > speed / 2)
        left = going[~(ended | (new_speed <= tol))]
        work.advance(len(going) - len(left))
        going = left
        work.tell(f"{len(going)} going, slowest at {float(new_speed.max()):.1e} of {tol:.1e}")
    return rows


def _rows_at(f: Map, h: Tensor, F: Tensor | None = None) -> Rows:
    J = f.jacobians(h)
    J.diagonal(dim1=-2, dim2=-1).sub_(1)
    return Rows(h.clone(), f.change(h) if F is None else F, J)


def _step(rows: Rows, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Levenberg-Marquardt step of every row, and by how much q should fall.

    Where ``[J F; sqrt(m) I 0] = Q R``, the last column of R is Q^T [F; 0], and Q is not needed.
    """
    _, F, J = rows
    n = F.shape[1]
    # Rounding must not make the triangle singular, even if J is.
    floor = torch.finfo(F.dtype).eps * (1 + J.flatten(1).norm(dim=1))
    ridge = damping.sqrt().maximum(floor)[:, None, None]
    below = ridge * torch.eye(n, n + 1, dtype=F.dtype, device=F.device)
    stacked = torch.cat([torch.cat([J, F[..., None]], -1), below], dim=1)
    triangle = torch.linalg.qr(stacked, mode="r")[1][:, :n]
    step = -torch.linalg.solve_triangular(triangle[..., :n], triangle[..., n:], upper=True)[..., 0]
    change = _times(J, step)
    return step, -(F * change).sum(1) - (change**2).sum(1) / 2


def _is_minimum(f: Map, rows: Rows, near: float) -> Tensor:
    """Whether q has a minimum near each row that is no zero of it."""
    g = _times(rows.J.mT, rows.F)
    H = rows.J.mT @ rows.J + f.curvatures(rows.h, rows.F)
    triangle, info = torch.linalg.cholesky_ex(H)
    definite = info == 0
    triangle = torch.where(definite[:, None, None], triangle, torch.eye(len(g[0])).to(H))
    step = -torch.cholesky_solve(g[..., None], triangle)[..., 0]  # Newton's
    stays = -(g * step).sum(1) < rows.F.square().sum(1) / 2  # q falls by less than a half
    return definite & stays & (step.norm(dim=1) <= near)


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    return (matrices @ vectors[..., None])[..., 0]


def merge(
    states: np.ndarray, speed: np.ndarray, kind: np.ndarray, distance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Keep the best point, drop all points near it, keep the best of the rest, and so on.

    Kept points are apart from each other, and every other one is near one of them: isolated points
    are found once, and a continuum is covered, however many starts reached it. The best points have
    the least kind, and among these the least speed; near means up to `distance`.

    Returns the positions of the kept points, the best first, and how many starts each stands for.
    """
    # Imported here, since it loads scipy.special, which adds a filter of warnings.
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
    parts = points.split(max(1, _DISTANCE_BYTES // starts[:, 0].nbytes))
    return torch.cat([torch.cdist(part, starts).amin(1) for part in parts])
