"""Hutchinson's estimate: the mean of quadratic forms."""

from __future__ import annotations

from kpops.linalg.probes import mean_and_error
from kpops.linalg.traces.base import Found, TraceMethod
from kpops.linalg.traces.runs import GramTrace, PlainTrace


class Hutchinson(TraceMethod):
    """The mean of ``z* A z`` over random vectors z (Hutchinson 1990), here on the sphere."""

    name, title, least = "hutchinson", "Hutchinson", 2

    def spend_plain(self, run: PlainTrace, budget: float) -> None:
        """One form for each product."""
        run.take_forms(run.left(budget))

    def of_plain(self, run: PlainTrace) -> Found:
        """Mean of all forms."""
        return mean_and_error(run.forms.all)

    def spend_gram(self, run: GramTrace, budget: float) -> None:
        """One form ``||R z||^2`` for each product."""
        run.take_forms(run.left(budget))

    def of_gram(self, run: GramTrace) -> Found:
        """Mean of all forms."""
        return mean_and_error(run.forms.all)
