"""Which estimate of a trace pays, learned from a part of the budget.

All methods need the images of some vectors, and these show what each method would achieve with the
rest of the budget.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from kpops.linalg.probes import TINY, Square
from kpops.linalg.sketch import Sketch
from kpops.linalg.traces.methods import nystrom_of_gram, nystrom_of_plain
from kpops.linalg.traces.registry import METHODS
from kpops.linalg.traces.runs import GramTrace, PlainTrace

# Matvecs below which there is nothing to learn from a part of them.
_LEAST_PLAIN, _LEAST_GRAM = 8, 16


class Outcome(NamedTuple):
    """An estimate in units of the run, its standard error, the method and why that one."""

    estimate: float
    stderr: float
    method: str
    why: str


class TraceEstimate:
    """An estimate of a trace by a method of the registry, or for "auto" by the one that pays."""

    def __init__(self, run: PlainTrace | GramTrace, method: str) -> None:
        self.run, self.method = run, method

    @property
    def num_matvecs(self) -> float:
        """Matvecs so far."""
        return self.run.num_matvecs

    def unit(self, power: float) -> float:
        """Scale of that power of the estimate."""
        return self.run.unit(power)

    def participation(self) -> float:
        """Participation ratio of a positive operator; NaN if nothing is known."""
        return self.run.forms.participation()

    def spend(self, budget: float) -> None:
        """Spend matvecs up to the budget."""
        run = self.run
        if isinstance(run, PlainTrace):
            plain = _adapt_plain if self.method == "auto" else METHODS[self.method].spend_plain
            plain(run, budget)
        else:
            gram = _adapt_gram if self.method == "auto" else METHODS[self.method].spend_gram
            gram(run, budget)

    def outcome(self) -> Outcome:
        """The estimate by the method given; for "auto", by the one that it chose.

        The smallest of several error bars would be too small: each is uncertain, and goes with an
        estimate that errs.
        """
        run = self.run
        method = METHODS[run.chosen if self.method == "auto" else self.method]
        found = method.of_plain(run) if isinstance(run, PlainTrace) else method.of_gram(run)
        assert found is not None
        return Outcome(*found, method.name, run.why)


def _sketched(run: PlainTrace | GramTrace, budget: float, least: int) -> Sketch | None:
    """Spend half of the budget on images; None if the rest needs no decision, and is spent."""
    left = run.left(budget)
    if left < least:
        run.take_forms(left)
        run.why = "too few matvecs to learn from"
        return None
    k = (left - run.missing) // 2
    if run.sketch is None and not run.fits(k):
        run.take_forms(left)
        run.why = f"no memory for the images of {k} vectors"
        return None
    run.grow(k)
    assert run.sketch is not None
    if run.sketch.spans_all:
        run.why = f"the rank is below the {len(run.sketch.probes)} vectors"
        run.chosen = "xtrace" if isinstance(run, PlainTrace) else "xnystrace"
        run.complete()
        return None
    return run.sketch


def _adapt_plain(run: PlainTrace, budget: float) -> None:
    """Spend half on images, decide, spend the rest."""
    sketch = _sketched(run, budget, _LEAST_PLAIN)
    if sketch is None:
        return
    left = run.left(budget)
    if _xtrace_pays(run, sketch, left):
        run.chosen, run.why = "xtrace", "the matvecs with the basis pay"
        run.complete()
    elif run.positive:
        run.chosen, run.why = "xnystrace", "leading modes do not pay a second product"
        run.grow(left)
    else:
        run.chosen, run.why = "hutchinson", "no few modes dominate"
        run.take_forms(left)


def _xtrace_pays(run: PlainTrace, sketch: Sketch, left: int) -> bool:
    """Whether XTrace would do best with the matvecs left.

    XNysTrace could use them for more vectors, which captures more of the tail, unless the
    participation ratio of the tail shows that it is too broad for that. Then the error of
    XNysTrace is the part of the tail that leaks into k modes, whose variance falls like ``k^-3``.
    """
    k = len(sketch.probes)
    rest = sketch.residual_forms()
    tail = float(rest.var()) / k
    if not run.positive:
        return tail < _hutchinson(run, left)
    breadth = 2 * float(rest.mean()) ** 2 / max(float(rest.var()), TINY)
    nystrom = nystrom_of_plain(run, sketch).stderr ** 2
    return breadth > 2 * left and tail < nystrom * (k / (k + left)) ** 3


def _adapt_gram(run: GramTrace, budget: float) -> None:
    """Spend half on images, decide; a quarter to complete half of them, decide; the rest.

    The first decision takes XNysTrace to err as the parts of the images do that the others do not
    span. How these vary together, which adds to its error, is learned from the products.
    """
    sketch = _sketched(run, budget, _LEAST_GRAM)
    if sketch is None:
        return
    k, left = len(sketch.probes), run.left(budget)
    spread = _spread(sketch.coords @ sketch.coords.mT)
    run.chosen = "hutchinson"
    if spread > 2 * k:
        run.why = f"no few modes dominate (participation ratio of A^2 above {spread:.3g})"
        run.take_forms(left)
        return
    plain, leaked = _hutchinson(run, left), float(sketch.residuals().var()) / k
    if leaked > plain:
        run.why = "the leading modes are not worth their products"
        run.take_forms(left)
        return
    run.complete(k // 2)
    expected = _expected(run, sketch, run.left(budget))
    run.chosen = min(expected, key=lambda name: expected[name])
    if run.chosen == "xtrace":
        run.why = "a few modes stand on a broad tail"
        run.complete_second()
    elif run.chosen == "hutchinson":
        run.why = "the leading modes hold too little of the square"
        run.take_forms(run.left(budget))
    else:
        run.why = "the leading modes hold much of the square"
        run.complete(k)


def _hutchinson(run: PlainTrace | GramTrace, left: int) -> float:
    """Variance of Hutchinson's estimate with all forms so far, and one of each matvec left."""
    forms = run.forms.all
    return float(forms.var()) / (len(forms) + left)


def _expected(run: GramTrace, sketch: Sketch, left: int) -> dict[str, float]:
    """Variance of each method with the matvecs left.

    The error of XNysTrace is that of its approximation: the tail leaks into its leading modes by
    its trace over the number of vectors. It follows from the part of the images under R that the
    others do not span, up to the covariance of the estimates, which half of the vectors show. That
    of XTrace is the error of the tail alone, much smaller if the tail is broad, and follows from
    the part of the images under A that the others do not span.
    """
    second = run.second_images()
    half = sketch.first(len(sketch.products))
    j, k = len(half.probes), len(sketch.probes)
    pairs = nystrom_of_gram(half)
    common = pairs.stderr**2 / max(float(half.residuals().var()) / j, TINY)
    return {
        "xnystrace": common * float(sketch.residuals().var()) / k,
        "xtrace": float(second.residual_forms().var()) / k,
        "hutchinson": _hutchinson(run, left),
    }


def _spread(gram: Square) -> float:
    """Participation ratio of A^2, ``(tr A^2)^2 / tr A^4``, from the forms ``w_i* A w_j``.

    If it exceeds 2 k, the k largest eigenvalues hold at most 0.71 of the sum of the squares of all
    (by Cauchy and Schwarz), so twice as many vectors gain more than an exact treatment of these
    modes. Both traces are means over products of forms around cycles of distinct vectors. The
    result is on the safe side by twice the standard error of the mean over the N cycles of four
    when there are no modes at all, only noise.
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
