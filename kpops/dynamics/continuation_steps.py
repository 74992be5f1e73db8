"""Branches of fixed points by pseudo-arclength steps, and where eigenvalues cross the circle.

With ``F(h, mu) = f(h, mu) - h`` a branch is a curve of points v = (h, mu), in the coordinates of
:class:`Path`, with the unit tangent t: ``[F_h F_mu] t = 0``. A step of length s predicts v + s t,
and Newton's method corrects that in the plane across t (Keller 1977): ``F = 0`` and ``t . v = t .
v_0 + s``, whose matrix ``[F_h F_mu; t]`` is regular also at folds, where F_h is singular.

Between two points the same planes make the branch a function of s. Its j-th largest magnitude of an
eigenvalue is continuous, and where it changes from below 1 to above, or back, its root is the
bifurcation. Where a branch passes a pitchfork on its curved side, an eigenvalue touches 1 and turns
back; mu turns there, too, and the root of the tangent's last component is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from kpops import work
from kpops.dynamics.bifurcations import Bifurcation, classify
from kpops.dynamics.continuation_path import Local, Path
from kpops.dynamics.stability import by_magnitude, stability
from kpops.linalg.rounding import noise_floor

_CORRECTIONS = 8
_BENT = 0.25  # most that a correction may be, relative to its step
_CORNER = 1e-3  # step relative to the longest, below which a branch that bends has a corner
_SHORTEST = 1e-6  # step relative to the longest, at which a branch is lost
_BESIDE = 0.02  # distance to both sides of a bifurcation, relative to its step
_TOGETHER = 1e-6  # distance of roots that are one, relative to the step
_SAME = 1e-3  # distance of bifurcations that are one, relative to the longest step

_OTHER = 0.99  # cosine of the tangents of two branches through a point, at most


class Place(NamedTuple):
    """A point of a branch, with its derivatives and the eigenvalues of A by falling magnitude."""

    v: Tensor
    local: Local
    values: Tensor

    @property
    def excess(self) -> Tensor:
        """Magnitudes of the eigenvalues, less 1."""
        return self.values.abs() - 1


class Event(NamedTuple):
    """A bifurcation, where it is, the direction of its branch, and the length up to it."""

    v: Tensor
    bifurcation: Bifurcation
    tangent: Tensor
    piece: int
    length: float


@dataclass
class Branch:
    """Numbers of the points of a branch, its bifurcations, how it ends and where it came from."""

    parent: int
    mu: list[float] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    length: list[float] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    n_unstable: list[Tensor] = field(default_factory=list)
    is_stable: list[Tensor] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    end: str = ""

    def add(self, path: Path, place: Place, length: float) -> None:
        """Append a point."""
        judged = stability(place.local.A[None], place.values[None])
        self.mu.append(path.mu(place.v))
        self.states.append(path.state(place.v))
        self.length.append(length)
        self.values.append(place.values)
        self.n_unstable.append(judged.n_unstable[0])
        self.is_stable.append(judged.is_stable[0])
        work.advance(1)


def correct(path: Path, v: Tensor, normal: Tensor, level: Tensor) -> tuple[Tensor, Local] | None:
    """Newton's method for F(v) = 0 and normal . v = level; None if it does not converge."""
    for _ in range(_CORRECTIONS):
        local = path.at(v)
        off = normal @ v - level
        size = 1 + _norm(v)
        eps = torch.finfo(v.dtype).eps
        if not bool(local.F.isfinite().all()):
            return None
        if _norm(local.F) <= local.floor and abs(float(off)) <= 16 * eps * size:
            return v, local
        matrix = torch.cat([local.slope, normal[None]])
        v = v - _solved(matrix, torch.cat([local.F, off[None]]))
    return None


def tangent_at(local: Local, along: Tensor) -> Tensor:
    """Unit tangent of the branch, on the side of `along`."""
    matrix = torch.cat([local.slope, along[None]])
    last = torch.zeros_like(along)
    last[-1] = 1
    t = _solved(matrix, last)
    return t / t.norm()


def place_of(v: Tensor, local: Local) -> Place:
    """A point with its eigenvalues."""
    values = torch.linalg.eigvals(local.A)
    return Place(v, local, values[by_magnitude(values[None])[0]])


class Arc:
    """The branch between two points, as a function of s, the length along the first's tangent."""

    def __init__(self, path: Path, a: Place, b: Place, tangent: Tensor) -> None:
        self.path, self.tangent = path, tangent
        self.level = tangent @ a.v
        self.length = float(tangent @ (b.v - a.v))
        self.known = {0.0: a, self.length: b}

    def __call__(self, s: float) -> Place:
        """Place at s."""
        if s not in self.known:
            inside = [r for r in self.known if r < s], [r for r in self.known if r > s]
            left = max(inside[0], default=0.0)
            right = min(inside[1], default=self.length)
            if left >= right:  # beyond an end
                left, right = 0.0, self.length
            share = (s - left) / (right - left)
            guess = self.known[left].v + share * (self.known[right].v - self.known[left].v)
            level = self.level + s
            found = correct(self.path, guess, self.tangent, level)
            # At the bifurcation itself the matrix is singular, and the guess as good.
            v, local = found or (guess, self.path.at(guess))
            self.known[s] = place_of(v, local)
        return self.known[s]

    def tangent_of(self, s: float) -> Tensor:
        """Tangent of the branch at s."""
        return tangent_at(self(s).local, self.tangent)

    def crossing(self, mode: int) -> float:
        """Where the magnitude of an eigenvalue, by its position, is 1."""
        return self.root(lambda s: float(self(s).excess[mode]))

    def root(self, function: Callable[[float], float]) -> float:
        """Root of a function of s that changes its sign."""
        from scipy.optimize import brentq

        tol = torch.finfo(self.tangent.dtype).eps ** 0.5 * 1e-2 * self.length
        return float(brentq(function, 0.0, self.length, xtol=tol, rtol=1e-12))


def find_events(arc: Arc, piece: int, length: float) -> list[Event]:
    """Bifurcations between the ends of an arc, in their order; `length` is that of its begin."""
    a, b = arc(0.0), arc(arc.length)
    noise = noise_floor(a.v.dtype) * max(1.0, _norm(a.local.A))
    # An eigenvalue that stays at 1, as along a line of fixed points, crosses nothing.
    crossing = (a.excess > 0) != (b.excess > 0)
    crossing &= torch.maximum(a.excess.abs(), b.excess.abs()) > noise
    roots = [arc.crossing(int(mode)) for mode in crossing.nonzero()[:, 0]]
    apart, roots = _TOGETHER * arc.length, sorted(roots)
    roots = [s for i, s in enumerate(roots) if i == 0 or s - roots[i - 1] > apart]
    events = [_event(arc, s, piece, length) for s in roots]
    turns = arc.tangent_of(0.0)[-1] * arc.tangent_of(arc.length)[-1] < 0
    if turns and not any(event.bifurcation.kind == "fold" for event in events):
        s = arc.root(lambda s: float(arc.tangent_of(s)[-1]))
        events.append(_event(arc, s, piece, length))
    return events


def _event(arc: Arc, s: float, piece: int, length: float) -> Event:
    at, beside = arc(s), _BESIDE * abs(arc.length)
    before, after = arc(s - beside), arc(s + beside)
    turns = arc.tangent_of(s - beside)[-1] * arc.tangent_of(s + beside)[-1] < 0
    crosses = int((before.excess > 0).sum()) != int((after.excess > 0).sum())
    bifurcation = classify(arc.path, at.v, at.local.A, at.values, is_fold=bool(turns) and crosses)
    direction = after.v - before.v
    length += _norm(at.v - arc(0.0).v)
    return Event(at.v, bifurcation, direction / direction.norm(), piece, length)


class Follower:
    """Follows branches over the pieces of a path.

    Parameters
    ----------
    paths : list of Path
        By rising mu.
    step : float
        Longest step.
    max_points : int
        Most points of a branch.
    """

    def __init__(self, paths: list[Path], step: float, max_points: int) -> None:
        self.paths, self.step, self.max_points = paths, step, max_points

    def follow(
        self, v: Tensor, direction: Tensor, piece: int, parent: int, *, start_event: bool = False
    ) -> Branch:
        """Follow the branch from v, which may be a bifurcation, to the side of `direction`."""
        path = self.paths[piece]
        start = a = place_of(v, path.at(v))
        branch = Branch(parent)
        branch.add(path, a, 0.0)
        t = direction if start_event else tangent_at(a.local, direction)
        size = self.step / 4
        while not branch.end:
            path, first = self.paths[piece], start_event and a is start
            found = self._step(path, a, t, size, first)
            if found is None:
                size /= 2
                if size < _SHORTEST * self.step:
                    branch.end = "lost"
                continue
            b, edge = place_of(*found[:2]), found[2]
            arc = Arc(path, a, b, t)
            if not first:
                branch.events += find_events(arc, piece, branch.length[-1])
            closed = len(branch.mu) > 2 and self._meets(arc, start.v)
            branch.add(path, b, branch.length[-1] + _norm(b.v - a.v))
            t = tangent_at(b.local, b.v - a.v)
            a, size = b, min(self.step, 1.5 * size)
            if closed:
                branch.end = "closed"
            elif edge:
                piece += edge
                if not 0 <= piece < len(self.paths):
                    branch.end = "span"
                else:  # the path has a corner here, the parameter goes on
                    onward = torch.zeros_like(t)
                    onward[-1] = edge
                    a = place_of(a.v, self.paths[piece].at(a.v))
                    t = tangent_at(a.local, onward)
            elif len(branch.mu) >= self.max_points:
                branch.end = "max_points"
        return branch

    def _step(
        self, path: Path, a: Place, t: Tensor, size: float, first: bool
    ) -> tuple[Tensor, Local, int] | None:
        """The next point, and whether it is on the lower (-1) or upper (1) edge of the piece."""
        level = t @ a.v + size
        found = correct(path, a.v + size * t, t, level)
        if found is None:
            return None
        v, local = found
        bent = _norm(v - a.v - size * t) > _BENT * size
        turned = float(tangent_at(local, t) @ t) < 1 - _BENT
        smooth = not first and size > _CORNER * self.step
        if smooth and (bent or turned):
            return None
        low, high = path.piece.low, path.piece.high
        mu = path.mu(v)
        if low < mu < high:
            return v, local, 0
        edge, bound = (-1, low) if mu <= low else (1, high)
        normal = torch.zeros_like(t)
        normal[-1] = 1
        target = path.point(path.state(v), bound)[-1]
        share = (target - a.v[-1]) / (v[-1] - a.v[-1])
        landed = correct(path, a.v + share * (v - a.v), normal, target)
        if landed is None or _norm(landed[0] - a.v) > 2 * size:
            return None
        return *landed, edge

    def _meets(self, arc: Arc, start: Tensor) -> bool:
        s = float(arc.tangent @ start) - float(arc.level)
        return 0 < s <= arc.length and _norm(arc(s).v - start) < _SAME * arc.length

    def is_same(self, one: Tensor, other: Tensor) -> bool:
        """Whether two bifurcations are the same point."""
        return _norm(one - other) < _SAME * self.step

    def is_traced(self, event: Event, events: list[Event]) -> bool:
        """Whether a branch passes through the same point in another direction."""
        return any(
            self.is_same(event.v, other.v) and abs(float(event.tangent @ other.tangent)) < _OTHER
            for other in events
        )

    def across(self, event: Event) -> Tensor:
        """Direction of the other branch through a branch point, across this one.

        ``[F_h F_mu]`` has two null vectors there, which span the tangents of both branches.
        """
        _, _, rows = torch.linalg.svd(self.paths[event.piece].at(event.v).slope, full_matrices=True)
        null = rows[-2:]
        along = null @ event.tangent
        other = null.mT @ torch.stack([-along[1], along[0]])
        return other / other.norm()


def _solved(matrix: Tensor, right: Tensor) -> Tensor:
    solution, info = torch.linalg.solve_ex(matrix, right)
    if int(info) or not bool(solution.isfinite().all()):
        solution = torch.linalg.pinv(matrix) @ right
    return solution


def _norm(vector: Tensor) -> float:
    return float(vector.norm())
