"""How a budget of products is spent on random vectors: diagonals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from kpops.linalg.leave_one_out import xdiag
from kpops.linalg.probes import BLOCK, Act, RunningMoments, signs
from kpops.linalg.scaling import power_of_two, raised
from kpops.linalg.sketch import Sketch

_LEAST = 8


class Actions(NamedTuple):
    """A square operator, and R with ``A = R R*`` where it is known, as actions on rows.

    Attributes
    ----------
    forward, backward : callable
        The operator and its adjoint.
    dim : int
        Its size.
    root : callable or None
        R.
    root_dim : int
        Size of the domain of R.
    """

    forward: Act
    backward: Act
    dim: int
    root: Act | None
    root_dim: int


class DiagonalOutcome(NamedTuple):
    """An estimate and its standard error, entry by entry, the method and why that one."""

    estimate: Tensor
    stderr: Tensor
    method: str
    why: str


class Diagonal:
    """Diagonal of a square operator.

    Parameters
    ----------
    actions : Actions
        The operator.
    method : {"auto", "hutchinson", "xdiag"}
        Which estimate.
    rng : Generator
        Source of the random vectors.
    like : Tensor
        Of the dtype and on the device of the vectors.

    Notes
    -----
    With signs w, ``w o A w`` has the variance ``sum_{j != i} A_ij^2`` in entry i, and ``(R w) o
    (R w)`` at most ``2 A_ii^2``, from half a product. The first is better if the operator is nearly
    diagonal, the second if an entry is coupled to many others, as in trajectories.
    """

    def __init__(
        self, actions: Actions, method: str, rng: np.random.Generator, like: Tensor
    ) -> None:
        self.actions, self.method, self.rng, self.like = actions, method, rng, like
        self.num_matvecs = 0.0
        self.scale: float | None = None
        self.plain, self.squared = RunningMoments(), RunningMoments()
        self.sketch: Sketch | None = None
        self.why = "asked for"

    def participation(self) -> float:
        """Not known."""
        return math.nan

    def unit(self, power: float) -> float:
        """What a power of the estimate is to be multiplied by: images are of about one."""
        return raised(self.scale or 1.0, power)

    def _scaled(self, act: Act, rows: Tensor, degree: int = 1) -> Tensor:
        """What a factor of the operator makes of rows, over that root of the operator's scale."""
        image = act(rows)
        size = power_of_two(image)
        if self.scale is None and image.any():
            self.scale = size**degree
        return image if self.scale is None else image / self.scale ** (1 / degree)

    def spend(self, budget: float) -> None:
        """Use products up to the budget."""
        missing = self.sketch.missing if self.sketch else 0
        left = budget - self.num_matvecs
        if self.method == "hutchinson":
            self._hutchinson(budget)
        elif self.method == "xdiag":
            self._grow(int(left - missing) // 2)
            self._complete(int(budget - self.num_matvecs))
        elif left < _LEAST:
            self._hutchinson(budget)
            self.why = "too few products to learn from"
        else:
            self._adapt(budget, int(left), missing)

    def _adapt(self, budget: float, left: int, missing: int) -> None:
        """Spend half on images, decide, spend the rest."""
        self._grow((left - missing) // 2)
        sketch = self.sketch
        assert sketch is not None
        k = len(sketch.probes)
        # The variance of XDiag, all entries together, is that of ``w o (I - Q Q*) A w``.
        tail = float(sketch.residuals().mean()) / k
        if not sketch.left_out().axes.any():
            self.why = f"the rank is below the {k} vectors"
        elif self._forms_may_do(tail, budget):
            self.why = "no few modes dominate"
            self._hutchinson(budget)
            return
        else:
            self.why = "the leading modes hold much of the square"
        self._complete(int(budget - self.num_matvecs))

    def _forms_may_do(self, tail: float, budget: float) -> bool:
        """Whether the rest of the products is better spent on forms than on XDiag."""
        if self.actions.root is not None and self.squared.count == 0:
            # At most 2 A_ii^2 per entry; how much less, a few of them tell, if it may matter.
            at_most = float(self.plain.mean.square().sum()) / (budget - self.num_matvecs)
            self._square(4 if tail > 0.01 * at_most else 0)
        return tail > min(self._prospects(budget - self.num_matvecs).values())

    def _prospects(self, left: float) -> dict[str, float]:
        """Variance of the two forms, all entries together, if the rest is spent on them."""
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
        """Forms ``w o A w`` of `k` more vectors."""
        self._sample(self.plain, self.actions.forward, self.actions.dim, k, 1, _products)

    def _square(self, k: int) -> None:
        """Forms ``(R w) o (R w)`` of `k` more vectors, if there is R."""
        if self.actions.root is not None:
            self._sample(self.squared, self.actions.root, self.actions.root_dim, k, 2, _squares)

    def _sample(
        self,
        into: RunningMoments,
        act: Act,
        dim: int,
        k: int,
        degree: int,
        form: Callable[..., Any],
    ) -> None:
        for probes in self._chunks(k, dim):
            images = self._scaled(act, probes, degree)
            self.num_matvecs += len(probes) / degree
            for probe, image in zip(probes, images, strict=True):
                into.add(form(probe, image))

    def _chunks(self, k: int, dim: int) -> Iterator[Tensor]:
        for start in range(0, k, BLOCK):
            yield signs(self.rng, min(BLOCK, k - start), dim, self.like)

    def _grow(self, k: int) -> None:
        known = len(self.sketch.probes) if self.sketch else 0
        k = max(0, min(k, self.actions.dim - known))
        if k == 0:
            return
        probes = signs(self.rng, k, self.actions.dim, self.like)
        images = self._scaled(self.actions.forward, probes)
        self.num_matvecs += k
        for probe, image in zip(probes, images, strict=True):
            self.plain.add(_products(probe, image))
        if self.sketch is None:
            self.sketch = Sketch(probes, images)
        else:
            self.sketch.grow(probes, images)

    def _complete(self, most: int) -> None:
        """Products of the adjoint with the basis, as many as there may be."""
        if self.sketch is not None:
            known = len(self.sketch.products)
            act = self.actions.backward
            self.sketch.complete(lambda rows: self._scaled(act, rows), known + most)
            self.num_matvecs += len(self.sketch.products) - known

    def outcome(self) -> DiagonalOutcome:
        """The estimate from all products so far."""
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


def _products(probe: Tensor, image: Tensor) -> Tensor:
    return probe.double() * image.double()


def _squares(probe: Tensor, image: Tensor) -> Tensor:
    return image.double().square()


def _total(variance: Tensor) -> float:
    total = float(variance.sum())
    return total if math.isfinite(total) else math.inf


def _pooled(a: RunningMoments, b: RunningMoments) -> tuple[Tensor, Tensor]:
    """Mean and standard error of two independent estimates, weighted by their total variances."""
    if min(a.count, b.count) < 2:
        more = a if a.count > b.count else b
        return more.mean, more.stderr
    of_a, of_b = _total(a.variance), _total(b.variance)
    weight = of_b / (of_a + of_b) if of_a + of_b > 0 else 0.5
    stderr = (weight**2 * a.stderr.square() + (1 - weight) ** 2 * b.stderr.square()).sqrt()
    return weight * a.mean + (1 - weight) * b.mean, stderr
