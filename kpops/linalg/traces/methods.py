"""What a method that estimates a trace is, and those of Hutchinson and of Epperly et al."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

from kpops.linalg.leave_one_out import Pairs, hutchpp, shifted_xnystrace, xnystrace, xtrace
from kpops.linalg.probes import mean_and_error
from kpops.linalg.sketch import Sketch
from kpops.linalg.traces.runs import GramTrace, PlainTrace
from kpops.transfers import beside, on_host

Found = tuple[float, float] | None
"""An estimate and its standard error, or None where a run has not made what it takes."""


class TraceMethod(ABC):
    """How a budget of matvecs is spent on a trace, and the estimate made from them.

    Attributes
    ----------
    name, title : str
        How users call it, and its author.
    least : int
        Matvecs that a standard error takes.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    least: ClassVar[int]

    @abstractmethod
    def spend_plain(self, run: PlainTrace, budget: float) -> None:
        """Spend matvecs up to the budget, with an operator of unknown factors."""

    @abstractmethod
    def of_plain(self, run: PlainTrace) -> Found:
        """The estimate from all matvecs so far."""

    @abstractmethod
    def spend_gram(self, run: GramTrace, budget: float) -> None:
        """Spend matvecs up to the budget, with R and R* of ``R* R``."""

    @abstractmethod
    def of_gram(self, run: GramTrace) -> Found:
        """The estimate from all matvecs so far."""


class Hutchinson(TraceMethod):
    """The mean of ``z* A z`` over random vectors z (Hutchinson 1990), here on the sphere."""

    name, title, least = "hutchinson", "Hutchinson", 2

    def spend_plain(self, run: PlainTrace | GramTrace, budget: float) -> None:
        """One form ``z* A z``, or ``||R z||^2``, for each matvec."""
        run.take_forms(run.left(budget))

    def of_plain(self, run: PlainTrace | GramTrace) -> Found:
        """Mean of all forms."""
        return mean_and_error(run.forms.all)

    spend_gram, of_gram = spend_plain, of_plain


class XNysTrace(TraceMethod):
    """XNysTrace of Epperly, Tropp and Webber (2024), of positive semi-definite operators.

    The Nystrom approximation is taken exactly; each vector in turn estimates the rest.
    """

    name, title, least = "xnystrace", "XNysTrace", 4

    def spend_plain(self, run: PlainTrace, budget: float) -> None:
        """All on images."""
        run.grow(run.left(budget))

    def of_plain(self, run: PlainTrace) -> Found:
        """From all images; of an operator that must be positive."""
        if run.sketch is None or not run.positive:
            return None
        pairs = nystrom_of_plain(run, run.sketch)
        return pairs.mean, pairs.stderr

    def spend_gram(self, run: GramTrace, budget: float) -> None:
        """Half on images under R, half on R* of their basis."""
        run.grow((run.left(budget) - run.missing) // 2)
        run.complete()

    def of_gram(self, run: GramTrace) -> Found:
        """From the vectors of the part of the basis that R* was applied to."""
        if run.sketch is None or len(run.sketch.products) < 2:
            return None
        pairs = nystrom_of_gram(run.sketch.first(len(run.sketch.products)))
        return pairs.mean, pairs.stderr


def nystrom_of_plain(run: PlainTrace, sketch: Sketch) -> Pairs:
    """XNysTrace of a positive operator, from a sketch of it."""
    images = beside(sketch.coords, run.like) @ sketch.basis
    return shifted_xnystrace(sketch.inside, sketch.probes, images)


def nystrom_of_gram(sketch: Sketch) -> Pairs:
    """XNysTrace of ``R* R``, from a sketch of R with its products."""
    return xnystrace(sketch, sketch.inside.inner(sketch.products, sketch.products))


class XTrace(TraceMethod):
    """XTrace of Epperly, Tropp and Webber (2024), arXiv 2301.07825.

    The trace on the span of the images is exact; each vector in turn estimates the rest.
    """

    name, title, least = "xtrace", "XTrace", 6

    def spend_plain(self, run: PlainTrace, budget: float) -> None:
        """Half on images, half on the images of their basis."""
        run.grow((run.left(budget) - run.missing) // 2)
        run.complete()

    def of_plain(self, run: PlainTrace) -> Found:
        """Once the operator was applied to the whole basis."""
        sketch = run.sketch
        if sketch is None or sketch.missing:
            return None
        core = run.inside.inner(sketch.basis, sketch.products)
        pairs = xtrace(sketch, core, run.inside.inner(sketch.probes, sketch.products))
        return pairs.mean, pairs.stderr

    def spend_gram(self, run: GramTrace, budget: float) -> None:
        """Half on images under R, the rest on R* of half of their basis, and on R of that."""
        seconds = len(run.second.products) if run.second else 0
        run.grow((run.left(budget) - run.missing + seconds) // 2)
        run.complete(len(run.sketch.probes) // 2 if run.sketch else 0)
        run.complete_second()

    def of_gram(self, run: GramTrace) -> Found:
        """XTrace from the vectors of the second sketch, and forms off its span from the others.

        Given the sketch, the others have no part in its errors, so variances add up.
        """
        sketch, second = run.sketch, run.second
        if sketch is None or second is None or second.missing:
            return None
        j, k = len(second.probes), len(sketch.probes)
        images = beside(sketch.coords, run.like) @ sketch.basis
        core, ahead = on_host(
            run.outside.inner(second.products, second.products),
            run.outside.inner(images, second.products),
        )
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
