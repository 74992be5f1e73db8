"""What a method that estimates a trace is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from kpops.linalg.traces.runs import GramTrace, PlainTrace

Found = tuple[float, float] | None
"""An estimate and its standard error, or None where a run has not made what it takes."""


class TraceMethod(ABC):
    """How a budget of products is spent on a trace, and what estimate is made of them.

    Attributes
    ----------
    name, title : str
        How users call it, and its author.
    least : int
        Products that it takes for a standard error.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    least: ClassVar[int]

    @abstractmethod
    def spend_plain(self, run: PlainTrace, budget: float) -> None:
        """Use products up to the budget, with an operator of unknown factors."""

    @abstractmethod
    def of_plain(self, run: PlainTrace) -> Found:
        """The estimate from all products so far."""

    @abstractmethod
    def spend_gram(self, run: GramTrace, budget: float) -> None:
        """Use products up to the budget, with R and R* of ``R* R``."""

    @abstractmethod
    def of_gram(self, run: GramTrace) -> Found:
        """The estimate from all products so far."""
