"""XNysTrace: the Nystrom approximation exactly, and what each vector says of the rest."""

from __future__ import annotations

from kpops.linalg.leave_one_out import Pairs, shifted_xnystrace, xnystrace
from kpops.linalg.probes import inner
from kpops.linalg.sketch import Sketch
from kpops.linalg.traces.base import Found, TraceMethod
from kpops.linalg.traces.runs import GramTrace, PlainTrace


class XNysTrace(TraceMethod):
    """XNysTrace of Epperly, Tropp and Webber (2024), of positive semi-definite operators."""

    name, title, least = "xnystrace", "XNysTrace", 4

    def spend_plain(self, run: PlainTrace, budget: float) -> None:
        """All on images."""
        run.grow(run.left(budget))

    def of_plain(self, run: PlainTrace) -> Found:
        """From all images; of an operator that must be positive."""
        if run.sketch is None or not run.positive:
            return None
        pairs = nystrom_of_first(run, len(run.sketch.probes))
        return pairs.mean, pairs.stderr

    def spend_gram(self, run: GramTrace, budget: float) -> None:
        """Half on images under R, half on R* of their basis."""
        missing = run.sketch.missing if run.sketch else 0
        run.grow((run.left(budget) - missing) // 2)
        run.complete(len(run.sketch.probes) if run.sketch else 0)

    def of_gram(self, run: GramTrace) -> Found:
        """From the vectors whose products with R* are made."""
        if run.sketch is None or len(run.sketch.products) < 2:
            return None
        pairs = nystrom_of_gram(run.sketch.first(len(run.sketch.products)))
        return pairs.mean, pairs.stderr


def nystrom_of_first(run: PlainTrace, k: int) -> Pairs:
    """XNysTrace from the first `k` vectors."""
    assert run.sketch is not None
    images = run.sketch.coords[:k].to(run.like) @ run.sketch.basis
    return shifted_xnystrace(run.sketch.probes[:k], images)


def nystrom_of_gram(sketch: Sketch) -> Pairs:
    """XNysTrace of ``R* R``, from a sketch of R with its products."""
    return xnystrace(sketch, inner(sketch.products, sketch.products))
