"""What a kind of effective rank is: how it follows from a spectrum, and how it is estimated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kpops.linalg.budget import Estimate
from kpops.operators.base import TrajectoryOperator


class RankKind(ABC):
    """A definition of the effective rank, by singular values a_k that fall.

    Attributes
    ----------
    name : str
        How users call it.
    methods : tuple of str
        The methods that estimate it.
    of_gram : bool
        Whether that of an operator which is not self-adjoint is that of ``A A*``.
    counts : bool
        Whether it is a whole number, which makes steps.
    """

    name: ClassVar[str]
    methods: ClassVar[tuple[str, ...]]
    of_gram: ClassVar[bool] = False
    counts: ClassVar[bool] = False

    @abstractmethod
    def of_values(self, values: Tensor, spec: RankSpec, symmetric: bool, floor: float) -> float:
        """Of singular values over the largest, falling, float64; `floor` is what is rounding."""

    @abstractmethod
    def estimate(self, run: RankRun) -> Estimate:
        """From random vectors."""

    def from_structure(self, op: TrajectoryOperator) -> Estimate | None:
        """Exactly, from the structure of the operator, where its spectrum is not needed."""
        return None


class RankSpec(NamedTuple):
    """What is asked for: a kind, and its options."""

    kind: RankKind
    threshold: float
    tol: float


class RankRun(NamedTuple):
    """An estimate that is to be made.

    Attributes
    ----------
    op : TrajectoryOperator
        Of about one (:func:`kpops.linalg.scaling.normalized`).
    symmetric : bool
        Whether it is self-adjoint.
    spec : RankSpec
        Which rank.
    method : str
        One of the kind's methods, or "auto".
    num_matvecs : int
        Products, about; those for modes come on top.
    rng : numpy.random.Generator
        Source of the random vectors.
    """

    op: TrajectoryOperator
    symmetric: bool
    spec: RankSpec
    method: str
    num_matvecs: int
    rng: np.random.Generator


def of_spectrum(values: Tensor, spec: RankSpec, symmetric: bool, floor: float) -> float:
    """The rank of a spectrum that is known; values fall in magnitude."""
    if not values.isfinite().all():
        raise ValueError("the operator is not finite: check the weights and the scale")
    if not values.any():
        return 0.0
    values = values.double().abs() / values.abs().max().double()  # squares might underflow
    return spec.kind.of_values(values, spec, symmetric, floor)


def count_to(squares: Tensor, counts: Tensor, threshold: float, total: float = 0.0) -> float:
    """How many of the falling `squares`, each there `counts` times, hold a part of their sum.

    Interpolated between counts. `total` is the sum if it is larger than that of what is given.
    """
    held = (squares * counts).cumsum(0)
    target = threshold * max(total, float(held[-1]))
    full = int(torch.searchsorted(held, target).clamp_max(len(held) - 1))
    missing = target - float(held[full] - squares[full] * counts[full])
    return float(counts[:full].sum()) + missing / float(squares[full])
