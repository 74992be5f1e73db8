"""How a budget of products is spent on the trace of ``R* R``.

Products with R and with R* count one by one here, ``||R w||^2`` being a quadratic form from half a
product with ``R* R``.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from kpops.linalg.budget import empty, rows_of
from kpops.linalg.leave_one_out import hutchpp, xnystrace, xtrace
from kpops.linalg.probes import TINY, Act, dots, inner, mean_and_error
from kpops.linalg.problem import SpectralProblem
from kpops.linalg.scaling import power_of_two
from kpops.linalg.sketch import Sketch
from kpops.linalg.trace import Outcome, TraceRun, is_exact
from kpops.operators.base import TrajectoryOperator

# Products below which there is nothing to learn from a part of them.
_LEAST = 16


class GramTrace(TraceRun):
    """Trace of ``R* R`` from products with R and R*.

    Parameters
    ----------
    forward, backward : callable
        Actions of R and of R* on rows.
    dim : int
        Size of the domain of R.
    cost : float
        What one of these products counts.
    method : {"auto", "hutchinson", "xtrace", "xnystrace"}
        Which estimate.
    rng : Generator
        Source of the random vectors.
    like : Tensor
        Of the dtype and on the device of the vectors.
    """

    degree = 2

    def __init__(
        self,
        forward: Act,
        backward: Act,
        dim: int,
        cost: float,
        method: str,
        rng: np.random.Generator,
        like: Tensor,
    ) -> None:
        super().__init__(dim, cost, method, rng, like)
        self.forward, self.backward = forward, backward
        self.images: Tensor | None = None
        self.second: Sketch | None = None

    def spend(self, budget: float) -> None:
        """Use products up to the budget, given in products with the operator."""
        left = self.left(budget)
        missing = self.sketch.missing if self.sketch else 0
        if self.method == "hutchinson":
            self._forms(left)
        elif self.method == "xnystrace":
            self._grow((left - missing) // 2)
            self._complete(len(self.sketch.probes) if self.sketch else 0)
        elif self.method == "xtrace":
            self._grow((left - missing + self._seconds()) // 2)
            self._complete(len(self.sketch.probes) // 2 if self.sketch else 0)
            self._complete_second()
        elif left < _LEAST:
            self._forms(left)
            self.why = "too few products to learn from"
        else:
            self._adapt(budget, left, missing)

    def _adapt(self, budget: float, left: int, missing: int) -> None:
        """Spend half on images, decide; a quarter to complete half of them, decide; the rest."""
        self._grow((left - missing) // 2)
        sketch = self.sketch
        assert sketch is not None
        k = len(sketch.probes)
        if is_exact(sketch):
            self.why = f"the rank is below the {k} vectors"
            self._complete(k)
            return
        spread = _spread(sketch.coords @ sketch.coords.mT)
        if spread > 2 * k:
            self.why = f"no few modes dominate (participation ratio of A^2 above {spread:.3g})"
            self._forms(self.left(budget))
            return
        self._complete(k // 2)
        expected = self._expected(self.left(budget))
        best = min(expected, key=lambda name: expected[name])
        if best == "xtrace":
            self.why = "a few modes stand on a broad tail"
            self._complete_second()
        elif best == "hutchinson":
            self.why = "the leading modes hold too little of the square"
            self._forms(self.left(budget))
        else:
            self.why = "the leading modes hold much of the square"
            self._complete(k)

    def _expected(self, left: int) -> dict[str, float]:
        """Variance of each method with the rest of the products.

        The error of XNysTrace is that of its approximation, into whose leading modes the tail
        leaks by its trace over the number of vectors. It follows from what the images under R miss
        of each other, up to what the estimates have in common, which half of the vectors tell. That
        of XTrace is the tail's own, much smaller if the tail is broad, and follows from what the
        images under A miss of each other.
        """
        sketch = self.sketch
        assert sketch is not None
        self._second_images()
        assert self.second is not None
        half = sketch.first(len(sketch.products))
        j, k = len(half.probes), len(sketch.probes)
        pairs = xnystrace(half, inner(half.products, half.products))
        common = pairs.stderr**2 / max(float(half.residuals().var()) / j, TINY)
        forms = self.forms.all
        return {
            "xnystrace": common * float(sketch.residuals().var()) / k,
            "xtrace": float(self.second.residual_forms().var()) / k,
            "hutchinson": float(forms.var()) / (len(forms) + left),
        }

    def _forms(self, k: int) -> None:
        """Quadratic forms of `k` vectors that nothing else is made of."""
        for probes in self._chunks(k):
            images = self._counted(self.forward, probes)
            self.forms.add(dots(images, images), _off_diagonal(inner(images, images)).square())

    def _grow(self, k: int) -> None:
        """Images of `k` more vectors."""
        k = self._room(k)
        if k == 0:
            return
        probes = self._draw(k)
        images = self._counted(self.forward, probes)
        self._take(probes, images)
        gram = inner(images, images)
        self.forms.add(dots(images, images), _off_diagonal(gram).square())

    def _complete(self, k: int) -> None:
        """Products of R* with the first `k` rows of the basis."""
        if self.sketch is not None:
            self.sketch.complete(lambda rows: self._counted(self.backward, rows), k)

    def _second_images(self) -> None:
        """Images under ``R* R``: combinations of the products of R* with the basis."""
        sketch = self.sketch
        assert sketch is not None
        known = len(self.second.probes) if self.second else 0
        new = slice(known, len(sketch.products))
        images = sketch.coords[new, : new.stop].to(self.like) @ sketch.products
        if self.second is None:
            self.second = Sketch(sketch.probes[new], images)
        elif len(images):
            self.second.grow(sketch.probes[new], images)

    def _seconds(self) -> int:
        return len(self.second.products) if self.second else 0

    def _complete_second(self) -> None:
        self._second_images()
        assert self.second is not None
        # The products of R, not of R* R, with the basis: two of them make a form.
        self.second.complete(lambda rows: self._counted(self.forward, rows), len(self.second.basis))

    def outcome(self) -> Outcome:
        """The estimate from all products so far."""
        found = {"hutchinson": mean_and_error(self.forms.all)}
        sketch, second = self.sketch, self.second
        if sketch is not None and len(sketch.products) > 1:
            half = sketch.first(len(sketch.products))
            pairs = xnystrace(half, inner(half.products, half.products))
            found["xnystrace"] = pairs.mean, pairs.stderr
        if second is not None and not second.missing:
            found["xtrace"] = self._xtrace(second)
        return self._settle(found)

    def _xtrace(self, second: Sketch) -> tuple[float, float]:
        """XTrace from the vectors of the second sketch, and Hutch++ from the others.

        Given the sketch, the others have no part in its errors, so that variances add up.
        """
        sketch = self.sketch
        assert sketch is not None
        j, k = len(second.probes), len(sketch.probes)
        images = sketch.coords.to(self.like) @ sketch.basis
        core, ahead = inner(second.products, second.products), inner(images, second.products)
        pairs = xtrace(second, core, ahead[:j])
        if k == j:
            return pairs.mean, pairs.stderr
        forms = sketch.coords[j:].square().sum(1)
        samples = hutchpp(second, core, sketch.probes[j:], forms, ahead[j:], ahead[j:])
        mean, error = mean_and_error(samples)
        error = pairs.stderr if math.isnan(error) else error
        weight = j / k
        return (
            weight * pairs.mean + (1 - weight) * mean,
            math.hypot(weight * pairs.stderr, (1 - weight) * error, pairs.floor),
        )


def _off_diagonal(matrix: Tensor) -> Tensor:
    k = len(matrix)
    return matrix[~torch.eye(k, dtype=torch.bool, device=matrix.device)]


def _spread(gram: Tensor) -> float:
    """Participation ratio of A^2, ``(tr A^2)^2 / tr A^4``, from the forms ``w_i* A w_j``.

    If it exceeds 2 k, the k largest eigenvalues hold at most 0.71 of the sum of the squares of all
    (by Cauchy and Schwarz), so that to treat them exactly would gain less than to have twice as
    many vectors. Both traces are means over products of forms around cycles of distinct vectors.
    What is returned is on the safe side by twice the standard error of the mean over the N
    cycles of four when there are no modes at all, only noise.
    """
    k = len(gram)
    if k < 8:
        return 0.0
    c = gram / gram.diagonal().abs().max().clamp_min(TINY)
    c = c - torch.diag(c.diagonal())
    squares = c @ c
    second = float(squares.trace()) / (k * (k - 1))
    cycles = squares.square().sum() - 2 * squares.diagonal().square().sum() + (c**4).sum()
    n_ordered = k * (k - 1) * (k - 2) * (k - 3)
    noise = 2 / math.sqrt(n_ordered / 8)
    inverse = float(cycles) / n_ordered / second**2 if second > 0 else 1.0
    return 1 / max(inverse + noise, noise)


def gram_trace(
    op: TrajectoryOperator, cost: float, method: str, rng: np.random.Generator
) -> GramTrace:
    """Trace of ``A A*``, in the smaller of the two spaces."""
    factor = SpectralProblem(op, symmetric=False).factor
    assert factor is not None
    forth, back = (
        rows_of(factor.apply, factor.domain),
        rows_of(factor.apply_adjoint, factor.codomain),
    )
    return GramTrace(forth, back, factor.shape[1], cost, method, rng, empty(op))


class Gram:
    """``F* F`` on rows, divided by a power of two so that it is of the size of F."""

    def __init__(self, factor: TrajectoryOperator) -> None:
        self.forth = rows_of(factor.apply, factor.domain)
        self.back = rows_of(factor.apply_adjoint, factor.codomain)
        self.scale = 0.0

    def __call__(self, rows: Tensor) -> Tensor:
        """Apply it."""
        images = self.forth(rows)
        self.scale = self.scale or power_of_two(images)
        return self.back(images / self.scale)


def squared_gram_trace(
    factor: TrajectoryOperator, cost: float, method: str, rng: np.random.Generator
) -> tuple[GramTrace, Gram]:
    """Trace of ``(F* F)^2``, and the action, whose scale it is to be multiplied by."""
    act = Gram(factor)
    return GramTrace(act, act, factor.shape[1], cost, method, rng, empty(factor)), act
