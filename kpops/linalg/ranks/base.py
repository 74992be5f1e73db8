"""Kinds of effective rank: how a rank follows from a spectrum, and how it is estimated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kpops.linalg.budget import Estimate
from kpops.operators.base import TrajectoryOperator
from kpops.transfers import on_host

Values = Float[Tensor, " value"]


class RankKind(ABC):
    """A definition of the effective rank, by falling singular values a_k.

    Attributes
    ----------
    name : str
        The user's name for it.
    methods : tuple of str
        The methods that estimate it.
    of_gram : bool
        Whether the rank of an operator that is not self-adjoint is that of ``A A*``.
    counts : bool
        Whether it is a whole number, which changes in steps.
    """

    name: ClassVar[str]
    methods: ClassVar[tuple[str, ...]]
    of_gram: ClassVar[bool] = False
    counts: ClassVar[bool] = False

    @abstractmethod
    def of_values(self, values: Values, spec: RankSpec, symmetric: bool, floor: float) -> float:
        """Of falling singular values over the largest, in float64; below `floor` is rounding."""

    @abstractmethod
    def estimate(self, run: RankRun) -> Estimate:
        """From random vectors."""

    def from_structure(self, op: TrajectoryOperator) -> Estimate | None:
        """Exactly, from the structure of the operator, where its spectrum is not needed."""
        return None


class RankSpec(NamedTuple):
    """A kind of rank with its options."""

    kind: RankKind
    threshold: float
    tol: float
    top: int | None = None  # the largest values that count; all if None


class RankRun(NamedTuple):
    """An estimate to make, of an operator of about one, by one of the kind's methods or "auto".

    It takes about `num_matvecs`; those for modes come on top.
    """

    op: TrajectoryOperator
    symmetric: bool
    spec: RankSpec
    method: str
    num_matvecs: int
    rng: np.random.Generator


def of_spectrum(values: Values, spec: RankSpec, symmetric: bool, floor: float) -> float:
    """The rank of a spectrum that is known; values fall in magnitude."""
    (values,) = on_host(values)
    if not values.isfinite().all():
        raise ValueError("the operator is not finite: check the weights and the scale")
    if not values.any():
        return 0.0
    values = values.double().abs() / values.abs().max().double()  # squares might underflow
    return spec.kind.of_values(values, spec, symmetric, floor)


def count_to(squares: Values, counts: Values, threshold: float, total: float = 0.0) -> float:
    """How many of the falling `squares`, each counted `counts` times, hold a fraction of their sum.

    Interpolated between counts. `total` is the whole sum, if these are only a part of it.
    """
    held = (squares * counts).cumsum(0)
    target = threshold * max(total, float(held[-1]))
    full = int(torch.searchsorted(held, target).clamp_max(len(held) - 1))
    missing = target - float(held[full] - squares[full] * counts[full])
    return float(counts[:full].sum()) + missing / float(squares[full])
