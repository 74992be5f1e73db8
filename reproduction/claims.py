"""The parts of a claim of the page, and what all claims share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from reproduction.results import Results
from reproduction.verdicts import Check, verdict

CELLS = ("gru", "rnn")
TASKS = {
    "memory_pro": "Memory-Pro",
    "flip_flop": "Flip-flop",
    "four_tasks": "Four tasks",
}
VARIANCE, PARTICIPATION = "variance over time", "participation"
K, P, FLOW = "K", "P P*", "P K P*"

Quantity = Callable[[xr.Dataset], float]
"""A number of one network."""


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and its outcome.

    Attributes
    ----------
    title : str
        Heading of its section.
    paper : str
        What the paper says or shows.
    number : str
        A summary of our numbers.
    checks : sequence of Check
        The criteria of the verdict.
    results : Results
        The networks it is about.
    notes : sequence of str
        Paragraphs below the criteria.
    tables : sequence of (title, header, rows)
        Further numbers.
    """

    title: str
    paper: str
    number: str
    checks: Sequence[Check]
    results: Results
    notes: Sequence[str] = ()
    tables: Sequence[tuple[str, list[str], list[list[str]]]] = ()

    @property
    def verdict(self) -> str:
        """The verdict in words, and how many networks are measured if some are not."""
        word, missing = verdict(self.checks), len(self.results.missing())
        if not missing or not len(self.results):
            return word
        return f"{word}; {len(self.results)} of {len(self.results.planned)} networks measured"


def rank_of(result: xr.Dataset, operator: str, kind: str = VARIANCE) -> np.ndarray:
    """Effective ranks (step) of an operator."""
    return result.effective_rank.sel(operator=operator, kind=kind).values.astype(float)


def listed(words: Sequence[str]) -> str:
    """Words separated by commas, with "and" before the last."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def without_success(of: Mapping[str, Results]) -> list[str]:
    """A note on networks that had not learned their task by the end of training, if any."""
    failed = {cell: [r for r in group if float(r.accuracy[-1]) < 0.5] for cell, group in of.items()}
    counts = [f"{len(f)} of {len(of[cell])} {cell.upper()}s" for cell, f in failed.items() if f]
    if not counts:
        return []
    return [
        f"When training ended, {listed(counts)} had not learned the task (fewer than half of their "
        "trials are correct). Their numbers are those of networks still trying."
    ]
