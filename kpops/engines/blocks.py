"""A positive operator as ``scale * M_i M_i^T`` on parts i that it does not couple.

Each part is the entries of one unit, and has as many as M_i has rows. Spectrum, trace and Frobenius
norm of the operator are unions or sums over small Gram matrices, and nothing of its own size is
needed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

Whole = Float[Tensor, "*block unit"]


class PartSpectrum(NamedTuple):
    """Eigenvalues, the unit of each, and its rank among those of the unit, from the smallest."""

    values: Float[Tensor, " value"]
    unit: Int[Tensor, " value"]
    rank: Int[Tensor, " value"]


class Blocks(ABC):
    """The parts of a positive operator; `scale` is not negative."""

    scale: float
    n_units: int
    n_distinct: int
    """Decompositions that a spectrum takes."""
    n_values: int
    """Eigenvalues in the spectrum; all others are zero."""
    n_rows: int
    """Rows of the largest M."""
    n_columns: int
    """Columns of the largest M."""

    @abstractmethod
    def scaled(self, factor: float) -> Blocks:
        """The parts of a multiple."""

    @abstractmethod
    def spectrum(self) -> PartSpectrum:
        """All eigenvalues, but zeros that are known."""

    @abstractmethod
    def positions(self, units: Int[Tensor, " value"]) -> Int[Tensor, " value"] | None:
        """Where these are along the dimension of units, if each has one place there."""

    @abstractmethod
    def factor(self, unit: int) -> Float[Tensor, "row column"]:
        """M of a unit, with the root of the scale."""

    def same_factor(self, unit: int) -> int:
        """A number that units of one M have in common."""
        return unit

    @abstractmethod
    def place(self, rows: Float[Tensor, "block row"], unit: int, whole: Whole) -> None:
        """Write the rows of a unit into one or more vectors."""

    @abstractmethod
    def write_diagonal(self, whole: Whole) -> None:
        """Write the diagonal of the operator into one vector."""

    @abstractmethod
    def trace(self) -> float:
        """Sum of all eigenvalues."""

    @abstractmethod
    def inner(self, other: Any) -> float:
        """tr(K K'), for K' with parts that are alike."""

    @abstractmethod
    def alike(self, other: Blocks) -> bool:
        """Whether another operator has the same parts."""
