"""Random vectors, inner products in float64, and the error bars of few samples.

Vectors are rows, a block of them a tensor (vector, entry).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kpops.operators.base import TrajectoryOperator
from kpops.scalars import generator as seeded

Act = Callable[[Tensor], Tensor]


BLOCK = 64
"""Vectors that go through an operator together."""
TINY = 1e-300


def sphere(rng: np.random.Generator, k: int, n: int, like: Tensor) -> Tensor:
    """Random vectors (k, n), uniform on the sphere of squared radius n.

    Their quadratic forms scatter less than those of Gaussian vectors, whose length adds to the
    noise: relative variance ``2 (1/PR - 1/n)`` instead of ``2 / PR`` for a positive operator.
    """
    values = torch.from_numpy(rng.standard_normal((k, n)))
    values *= math.sqrt(n) / values.norm(dim=1, keepdim=True)
    return values.to(like)


def signs(rng: np.random.Generator, k: int, n: int, like: Tensor) -> Tensor:
    """Random vectors (k, n) of independent entries 1 and -1."""
    values = torch.from_numpy(2 * rng.integers(0, 2, (k, n), dtype=np.int8) - 1)
    return values.to(like)


def dots(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the rows of two blocks, summed in float64, shape (k,)."""
    # Row by row: blocks are large, and copies of them in float64 would be larger.
    rows = [torch.dot(x.double(), y.double()) for x, y in zip(a, b, strict=True)]
    return torch.stack(rows) if rows else a.new_zeros(0, dtype=torch.float64)


def widened(count: int) -> float:
    """By what the standard error of a mean of so few samples is multiplied.

    The variance of few samples is itself uncertain. With the quantile of Student's t in place of
    the 2, ``mean +- 2 stderr`` holds the truth as often as for many samples, in 95.4 % of all
    cases. Quadratic forms are sums of weighted chi-squares, of a kurtosis k from 3 to 15 (one
    mode), and a variance from m of them has ``2 m / (k - 1)`` degrees of freedom; half of those of
    normal samples are taken.
    """
    freedom = max(1.0, (count - 1) / 2)
    # Imported here, since it adds a filter to the warnings'.
    from scipy.special import ndtr, stdtrit

    return float(stdtrit(freedom, ndtr(2))) / 2


def mean_and_error(samples: Tensor) -> tuple[float, float]:
    """Mean of the samples and its standard error, widened; NaN if there is only one.

    Forms of few modes are skewed, and where the mean of some is too low, so is their scatter. By
    the Edgeworth expansion of Student's t (Hall 1992, The Bootstrap and Edgeworth Expansion,
    section 2.6) its quantile z moves by ``g (2 z^2 + 1) / (6 sqrt(m))``, g being the skewness; at
    z = 2 that is the part ``3 g / (4 sqrt(m))`` of it.
    """
    m = len(samples)
    mean, scatter = samples.mean(), samples.std()
    if m < 2:
        return float(mean), math.nan
    skewness = 0.0
    if m > 2 and scatter > 0:
        unbiased = m / ((m - 1) * (m - 2))
        skewness = unbiased * float(((samples - mean) / scatter).pow(3).sum())
    wider = widened(m) * (1 + 0.75 * abs(skewness) / math.sqrt(m))
    return float(mean), wider * float(scatter) / math.sqrt(m)


# Entries that are summed in the precision of the rows, which in sums of many loses digits.
_SUMMED = 2**14


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of rows (..., vector, entry) as (..., of a, of b), in float64."""
    parts = zip(a.split(_SUMMED, -1), b.split(_SUMMED, -1), strict=True)
    first, *rest = ((some @ others.mT).double() for some, others in parts)
    return sum(rest, first)


def lengths_of(block: Tensor) -> Tensor:
    """Lengths of rows (problem, vector), in float64."""
    parts = block.split(_SUMMED, 2)
    return torch.stack([part.norm(dim=2).double() for part in parts]).norm(dim=0)


def random_block(op: TrajectoryOperator, k: int, rng: Any) -> Tensor:
    """Standard normal block (k, *op.domain.shape) in the dtype and on the device of `op`."""
    values = seeded(rng).standard_normal((k, *op.domain.shape))
    return torch.from_numpy(values).to(dtype=op.torch_dtype, device=op.device)


def jackknife(statistic: Callable[..., Tensor], *samples: Tensor) -> tuple[float, float]:
    """Estimate and standard error of a function of means, without its bias of first order.

    Parameters
    ----------
    statistic : callable
        Of as many means as there are samples; it must broadcast.
    *samples : Tensor
        Shape (probe,), float64; all of the same random vectors.

    Returns
    -------
    estimate, stderr : float

    Notes
    -----
    Efron and Stein (1981): each random vector is left out in turn.
    """
    m = len(samples[0])
    whole = statistic(*(s.mean() for s in samples))
    without = statistic(*((s.sum() - s) / (m - 1) for s in samples))
    return left_out(whole, without)


def left_out(whole: Tensor, without: Tensor) -> tuple[float, float]:
    """The jackknife of a statistic of all random vectors, and of all but each, shape (probe,)."""
    m = len(without)
    estimate = m * whole - (m - 1) * without.mean()
    stderr = ((m - 1) / m * (without - without.mean()).square().sum()).sqrt()
    return float(estimate), widened(m) * float(stderr)


class RunningMoments:
    """Mean of vectors and its standard error, entry by entry, in one pass.

    Notes
    -----
    Welford (1962), Note on a method for calculating corrected sums of squares and products.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.squares = torch.zeros(())

    def add(self, vector: Tensor) -> None:
        """Take in a vector."""
        vector = vector.double()
        self.count += 1
        if self.count == 1:
            self.mean, self.squares = vector, torch.zeros_like(vector)
            return
        gap = vector - self.mean
        self.mean = self.mean + gap / self.count
        self.squares = self.squares + gap * (vector - self.mean)

    @property
    def variance(self) -> Tensor:
        """Variance of the mean, as the scatter has it; NaN of a single vector."""
        if self.count < 2:
            return torch.full_like(self.mean, math.nan)
        return self.squares / (self.count - 1) / self.count

    @property
    def stderr(self) -> Tensor:
        """Standard error of the mean, widened for few vectors; NaN of a single one."""
        return widened(max(2, self.count)) * self.variance.sqrt()
