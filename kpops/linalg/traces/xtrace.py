"""XTrace: the span of the images exactly, and what each vector says of the rest."""

from __future__ import annotations

import math

from kpops.linalg.leave_one_out import hutchpp, xtrace
from kpops.linalg.probes import inner, mean_and_error
from kpops.linalg.traces.base import Found, TraceMethod
from kpops.linalg.traces.runs import GramTrace, PlainTrace


class XTrace(TraceMethod):
    """XTrace of Epperly, Tropp and Webber (2024), arXiv 2301.07825."""

    name, title, least = "xtrace", "XTrace", 6

    def spend_plain(self, run: PlainTrace, budget: float) -> None:
        """Half on images, half on products with their basis."""
        missing = run.sketch.missing if run.sketch else 0
        run.grow((run.left(budget) - missing) // 2)
        run.complete()

    def of_plain(self, run: PlainTrace) -> Found:
        """Once all products with the basis are made."""
        sketch = run.sketch
        if sketch is None or sketch.missing:
            return None
        core = inner(sketch.basis, sketch.products)
        pairs = xtrace(sketch, core, inner(sketch.probes, sketch.products))
        return pairs.mean, pairs.stderr

    def spend_gram(self, run: GramTrace, budget: float) -> None:
        """Half on images under R, the rest on R* of half of their basis, and on R of that."""
        missing = run.sketch.missing if run.sketch else 0
        run.grow((run.left(budget) - missing + run.seconds()) // 2)
        run.complete(len(run.sketch.probes) // 2 if run.sketch else 0)
        run.complete_second()

    def of_gram(self, run: GramTrace) -> Found:
        """XTrace from the vectors of the second sketch, and from the others forms off its span.

        Given the sketch, the others have no part in its errors, so that variances add up.
        """
        sketch, second = run.sketch, run.second
        if sketch is None or second is None or second.missing:
            return None
        j, k = len(second.probes), len(sketch.probes)
        images = sketch.coords.to(run.like) @ sketch.basis
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
