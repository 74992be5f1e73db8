"""Inner products in float64, and the error bars of few samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from kpops.engines.threads import enough_for
from kpops.transfers import on_host

Act = Callable[[Tensor], Tensor]
Rows = Float[Tensor, "vector entry"]
Block = Float[Tensor, "problem vector entry"]
Square = Float[Tensor, "k k"]
Samples = Float[Tensor, " probe"]

BLOCK = 64
"""Vectors that go through an operator together."""
TINY = 1e-300
# Entries that are summed in the precision of the rows, which loses digits in sums of many.
_SUMMED = 2**14


def dots(a: Rows, b: Rows) -> Float[Tensor, " vector"]:
    """Inner products of the rows of two blocks, summed in float64."""
    # Row by row: blocks are large, and copies of them in float64 would be larger.
    with enough_for(2 * a.shape[-1]):
        rows = [torch.dot(x.double(), y.double()) for x, y in zip(a, b, strict=True)]
    return torch.stack(rows) if rows else a.new_zeros(0, dtype=torch.float64)


def three_dots(a: Rows, b: Rows) -> Float[Tensor, "3 vector"]:
    """``<a, b>``, ``<a, a>`` and ``<b, b>`` of the rows, as :func:`dots`."""
    triples = []
    with enough_for(2 * a.shape[-1]):
        for row, other in zip(a, b, strict=True):
            x, y = row.double(), other.double()
            triples += [torch.dot(x, y), torch.dot(x, x), torch.dot(y, y)]
    if not triples:
        return a.new_zeros(3, 0, dtype=torch.float64)
    return torch.stack(triples).unflatten(0, (-1, 3)).T


def widened(count: int) -> float:
    """Factor that widens the standard error of a mean of few samples.

    The variance of few samples is itself uncertain. With the quantile of Student's t in place of
    the 2, ``mean +- 2 stderr`` holds the truth as often as for many samples, in 95.4 % of all
    cases. Quadratic forms are sums of weighted chi-squares, of a kurtosis k from 3 to 15 (one
    mode), and a variance from m of them has ``2 m / (k - 1)`` degrees of freedom. We take half the
    degrees of freedom of normal samples.
    """
    freedom = max(1.0, (count - 1) / 2)
    # Imported here, since it adds a filter to those of warnings.
    from scipy.special import ndtr, stdtrit

    return float(stdtrit(freedom, ndtr(2))) / 2


def mean_and_error(samples: Samples) -> tuple[float, float]:
    """Mean of the samples and its standard error, widened; NaN if there is only one.

    Forms of few modes are skewed: where their mean is too low, so is their scatter. By the
    Edgeworth expansion of Student's t (Hall 1992, The Bootstrap and Edgeworth Expansion, section
    2.6) its quantile z moves by ``g (2 z^2 + 1) / (6 sqrt(m))``, g being the skewness; at z = 2
    that is the fraction ``3 g / (4 sqrt(m))`` of it.
    """
    (samples,), m = on_host(samples), len(samples)
    mean, scatter = samples.mean(), samples.std()
    if m < 2:
        return float(mean), math.nan
    skewness = 0.0
    if m > 2 and scatter > 0:
        unbiased = m / ((m - 1) * (m - 2))
        skewness = unbiased * float(((samples - mean) / scatter).pow(3).sum())
    wider = widened(m) * (1 + 0.75 * abs(skewness) / math.sqrt(m))
    return float(mean), wider * float(scatter) / math.sqrt(m)


def inner(
    a: Float[Tensor, "*problem i entry"], b: Float[Tensor, "*problem j entry"]
) -> Float[Tensor, "*problem i j"]:
    """Inner products of rows, in float64."""
    parts = zip(a.split(_SUMMED, -1), b.split(_SUMMED, -1), strict=True)
    first, *rest = ((some @ others.mT).double() for some, others in parts)
    return sum(rest, first)


def lengths_of(
    block: Float[Tensor, "*problem vector entry"],
) -> Float[Tensor, "*problem vector"]:
    """Lengths of rows, in float64."""
    parts = block.split(_SUMMED, -1)
    return torch.stack([part.norm(dim=-1).double() for part in parts]).norm(dim=0)


def jackknife(statistic: Callable[..., Tensor], *samples: Samples) -> tuple[float, float]:
    """Estimate and standard error of a function of means, without its bias of first order.

    `statistic` takes as many means as there are samples, and must broadcast; all samples come from
    the same random vectors. Efron and Stein (1981): each random vector is left out in turn.
    """
    samples, m = on_host(*samples), len(samples[0])
    whole = statistic(*(s.mean() for s in samples))
    without = statistic(*((s.sum() - s) / (m - 1) for s in samples))
    return left_out(whole, without)


def left_out(whole: Float[Tensor, ""], without: Samples) -> tuple[float, float]:
    """The jackknife of a statistic of all random vectors, and of all but each."""
    m = len(without)
    estimate = m * whole - (m - 1) * without.mean()
    stderr = ((m - 1) / m * (without - without.mean()).square().sum()).sqrt()
    return float(estimate), widened(m) * float(stderr)


class RunningMoments:
    """Mean of vectors and its standard error, entry by entry, in one pass.

    Welford (1962), Note on a method for calculating corrected sums of squares and products.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.squares = torch.zeros(())

    def add(self, vector: Float[Tensor, " entry"]) -> None:
        """Add a vector."""
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
        """Variance of the mean, from the scatter; NaN for a single vector."""
        if self.count < 2:
            return torch.full_like(self.mean, math.nan)
        return self.squares / (self.count - 1) / self.count

    @property
    def stderr(self) -> Tensor:
        """Standard error of the mean, widened for few vectors; NaN for a single one."""
        return widened(max(2, self.count)) * self.variance.sqrt()
