"""Estimates of a diagonal from random vectors of signs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from kpops.linalg.leave_one_out import xdiag
from kpops.linalg.probes import Act, Rows, RunningMoments
from kpops.linalg.scaling import raised
from kpops.linalg.traces.runs import SketchRun
from kpops.linalg.vectors import VectorSpace

_LEAST = 8


class Actions(NamedTuple):
    """Actions on rows of a square operator and its adjoint, and of R if ``A = R R*`` is known.

    `space` and `root_space` are the domains of A and of R.
    """

    forward: Act
    backward: Act
    space: VectorSpace
    root: Act | None
    root_space: VectorSpace | None


class DiagonalOutcome(NamedTuple):
    """An estimate and its standard error, entry by entry, the method and why that one."""

    estimate: Float[Tensor, " entry"]
    stderr: Float[Tensor, " entry"]
    method: str
    why: str


class Diagonal(SketchRun):
    """Diagonal of a square operator, by the method "auto", "hutchinson" or "xdiag".

    With signs w, ``w o A w`` has the variance ``sum_{j != i} A_ij^2`` in entry i, and ``(R w) o
    (R w)`` at most ``2 A_ii^2``, from half a matvec. The first is better if the operator is nearly
    diagonal, the second if an entry is coupled to many others, as in trajectories.
    """

    def __init__(self, actions: Actions, method: str, rng: np.random.Generator) -> None:
        super().__init__(rng, actions.space, actions.space)
        self.actions, self.method = actions, method
        self.num_matvecs = 0.0
        self.plain, self.squared = RunningMoments(), RunningMoments()

    def participation(self) -> float:
        """Not known."""
        return math.nan

    def unit(self, power: float) -> float:
        """Scale of that power of the estimate: images are of about one."""
        return raised(self.scale or 1.0, power)

    def spend(self, budget: float) -> None:
        """Spend matvecs up to the budget."""
        left = budget - self.num_matvecs
        if self.method == "hutchinson":
            self._hutchinson(budget)
        elif self.method == "xdiag":
            self._grow(int(left - self.missing) // 2)
            self._complete(int(budget - self.num_matvecs))
        elif left < _LEAST:
            self._hutchinson(budget)
            self.why = "too few matvecs to learn from"
        else:
            self._adapt(budget, int(left))

    def _adapt(self, budget: float, left: int) -> None:
        """Spend half on images, decide, spend the rest."""
        self._grow((left - self.missing) // 2)
        sketch = self.sketch
        assert sketch is not None
        k = len(sketch.probes)
        # The variance of XDiag, summed over entries, is that of ``w o (I - Q Q*) A w``.
        tail = float(sketch.residuals().mean()) / k
        if sketch.spans_all:
            self.why = f"the rank is below the {k} vectors"
        elif self._forms_may_do(tail, budget):
            self.why = "no few modes dominate"
            self._hutchinson(budget)
            return
        else:
            self.why = "the leading modes hold much of the square"
        self._complete(int(budget - self.num_matvecs))

    def _forms_may_do(self, tail: float, budget: float) -> bool:
        """Whether the matvecs left are better spent on forms than on XDiag."""
        if self.actions.root is not None and self.squared.count == 0:
            # At most 2 A_ii^2 per entry; a few of them show how much less, if it may matter.
            at_most = float(self.plain.mean.square().sum()) / (budget - self.num_matvecs)
            self._square(4 if tail > 0.01 * at_most else 0)
        return tail > min(self._prospects(budget - self.num_matvecs).values())

    def _prospects(self, left: float) -> dict[str, float]:
        """Variance of the two forms, summed over entries, if the rest is spent on them."""
        plain, squared = self.plain, self.squared
        return {
            "plain": _total(plain.variance) * plain.count / (plain.count + left),
            "squared": _total(squared.variance) * squared.count / (squared.count + 2 * left),
        }

    def _hutchinson(self, budget: float) -> None:
        """Spend the rest on the better of the two forms."""
        left = budget - self.num_matvecs
        if self.actions.root is not None and self.plain.count == 0:  # learn which
            self._square(max(2, int(left) // 8))
            self._multiply(max(2, int(left) // 16) if left >= _LEAST else 0)
            left = budget - self.num_matvecs
        prospects = self._prospects(left)
        if prospects["squared"] < prospects["plain"]:
            self._square(int(2 * left))
        else:
            self._multiply(int(left))

    def _multiply(self, k: int) -> None:
        """Add forms ``w o A w`` of `k` more vectors."""
        for probes, images in self._images(self.actions.forward, self.inside, k, 1):
            self._add_products(probes, images)

    def _square(self, k: int) -> None:
        """Add forms ``(R w) o (R w)`` of `k` more vectors, if there is R."""
        root, space = self.actions.root, self.actions.root_space
        if root is not None and space is not None:
            for _, images in self._images(root, space, k, 2):
                for image in images:
                    self.squared.add(image.double().square())

    def _images(
        self, act: Act, space: VectorSpace, k: int, degree: int
    ) -> Iterator[tuple[Rows, Float[Tensor, "vector image"]]]:
        """`k` random vectors and their images under a factor of that degree, in chunks."""
        block = min(space.block, self.outside.block)
        for start in range(0, k, block):
            probes = self.source.signs(min(block, k - start), space.entries, self.like)
            images = self._scaled(act, probes, self.outside, degree)
            self.num_matvecs += len(probes) / degree
            yield probes, images

    def _add_products(self, probes: Rows, images: Rows) -> None:
        for probe, image in zip(probes, images, strict=True):
            self.plain.add(probe.double() * image.double())

    def _grow(self, k: int) -> None:
        k = self._room(k)
        if k == 0:
            return
        probes = self.source.signs(k, self.inside.entries, self.like)
        images = self._scaled(self.actions.forward, probes, self.outside)
        self.num_matvecs += k
        self._add_products(probes, images)
        self._take(probes, images)

    def _complete(self, most: int) -> None:
        """Apply the adjoint to the basis, with `most` matvecs at most."""
        if self.sketch is not None:
            known = len(self.sketch.products)
            act = self.actions.backward
            self.sketch.complete(lambda rows: self._scaled(act, rows, self.inside), known + most)
            self.num_matvecs += len(self.sketch.products) - known

    def outcome(self) -> DiagonalOutcome:
        """The estimate from all matvecs so far."""
        found = {}
        if self.plain.count or self.squared.count:
            found["hutchinson"] = _pooled(self.plain, self.squared)
        if self.sketch is not None and len(self.sketch.products) > 1:
            scatter = xdiag(self.sketch.first(len(self.sketch.products)))
            found["xdiag"] = scatter.mean, scatter.stderr
        chosen = self.method
        if chosen == "auto":
            chosen = min(found, key=lambda name: _total(found[name][1].square()))
        return DiagonalOutcome(*found[chosen], chosen, self.why)


def _total(variance: Float[Tensor, "*entry"]) -> float:
    total = float(variance.sum())
    return total if math.isfinite(total) else math.inf


def _pooled(
    a: RunningMoments, b: RunningMoments
) -> tuple[Float[Tensor, " entry"], Float[Tensor, " entry"]]:
    """Mean and standard error of two independent estimates, weighted by their total variances."""
    if min(a.count, b.count) < 2:
        more = a if a.count > b.count else b
        return more.mean, more.stderr
    of_a, of_b = _total(a.variance), _total(b.variance)
    weight = of_b / (of_a + of_b) if of_a + of_b > 0 else 0.5
    stderr = (weight**2 * a.stderr.square() + (1 - weight) ** 2 * b.stderr.square()).sqrt()
    return weight * a.mean + (1 - weight) * b.mean, stderr
