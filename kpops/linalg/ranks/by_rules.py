"""Ranks from Gauss rules of the spectrum."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kpops import work
from kpops.linalg.budget import Estimate
from kpops.linalg.eigenpairs import Options, eigenpairs
from kpops.linalg.moments import NEEDS_POSITIVE
from kpops.linalg.probes import Act, Samples, jackknife
from kpops.linalg.quadrature import Rule, gauss_rule
from kpops.linalg.ranks.base import RankKind, RankRun, RankSpec, Values
from kpops.linalg.rounding import noise_floor
from kpops.linalg.symmetry import refuse_indefinite
from kpops.linalg.triplets import singular_triplets
from kpops.operators.base import TrajectoryOperator

PROBES = 16
"""Random vectors of Gauss rules; the rest of the budget makes their steps."""
_FEW_MODES = 8
_LEAST_MATVECS, _LEAST_STEPS = 384, 8
"""With fewer matvecs, neither the modes nor the rules would be of use."""


class Seen(NamedTuple):
    """Leading modes, the largest value, and the least that is not rounding and not below `tol`."""

    leading: Values
    largest: float
    least: float
    threshold: float


class ByRules(RankKind):
    """A kind that follows from a few leading modes and Gauss rules of the rest."""

    methods: ClassVar[tuple[str, ...]] = ("lanczos",)

    @abstractmethod
    def of_rule(self, rule: Rule, seen: Seen) -> tuple[float, float]:
        """Rank and its jackknife error."""

    def unresolved(self, rank: float, rule: Rule, seen: Seen) -> float:
        """The error of the rule itself: the change from three quarters of the steps."""
        return rank - self.of_rule(rule.coarse or rule, seen)[0]

    def estimate(self, run: RankRun) -> Estimate:
        """From a few leading modes, and Gauss rules of the rest."""
        op, symmetric, rng = run.op, run.symmetric, run.rng
        num_matvecs = max(run.num_matvecs, _LEAST_MATVECS)
        k = min(_FEW_MODES, min(op.shape) // 4)
        leading, off, doubt, used = few_modes(op, symmetric, k, num_matvecs // 3, rng)
        steps = max(_LEAST_STEPS, (num_matvecs - used) // (PROBES * (1 if symmetric else 2)))
        rule = gauss_rule(op, num_probes=PROBES, steps=steps, rng=rng, symmetric=symmetric, off=off)
        used += rule.num_matvecs
        if rule.num_matvecs < PROBES * _LEAST_STEPS:
            work.check()
        values = torch.cat([leading, rule.nodes.flatten()])
        largest = float(values.abs().max())
        if largest == 0:
            return Estimate(0.0, 0.0, "lanczos", "the operator is zero", used)
        floor = noise_floor(op.torch_dtype)
        if symmetric:
            refuse_indefinite(op, values, NEEDS_POSITIVE)
        else:
            floor = floor**0.5  # the rules are of A* A
        least = max(run.spec.tol, floor) * largest
        seen = Seen(leading, largest, least, run.spec.threshold)
        rank, error = self.of_rule(rule, seen)
        of_rule = self.unresolved(rank, rule, seen)
        how = f"{len(leading)} leading modes, and Gauss rules of {PROBES} vectors, {steps} steps"
        rank = min(max(rank, 0.0), min(op.shape))
        return Estimate(rank, math.hypot(error, of_rule, doubt * rank), "lanczos", how, used)


class Entropy(ByRules):
    """``exp(-sum_k p_k log p_k)`` with ``p_k = a_k / sum a``."""

    name = "entropy"

    def of_values(self, values: Values, spec: RankSpec, symmetric: bool, floor: float) -> float:
        """Of singular values over the largest."""
        return float(torch.special.entr(values / values.sum()).sum().exp())

    def of_rule(self, rule: Rule, seen: Seen) -> tuple[float, float]:
        """Rank and its jackknife error."""
        first = _summed(rule, seen, lambda x: x / seen.largest)
        second = _summed(rule, seen, lambda x: torch.special.entr(x.clamp_min(0) / seen.largest))
        # With s = sum a and e = -sum a log a, the entropy of a / s is e / s + log s.
        return jackknife(lambda s, e: (e / s + s.log()).exp(), first, second)


class Numerical(ByRules):
    """The number of a_k above ``tol a_1``, and above the noise floor."""

    name = "numerical"
    counts = True

    def of_values(self, values: Values, spec: RankSpec, symmetric: bool, floor: float) -> float:
        """Of singular values over the largest."""
        return float((values > max(spec.tol, floor)).sum())

    def of_rule(self, rule: Rule, seen: Seen) -> tuple[float, float]:
        """Rank and its jackknife error."""
        return jackknife(lambda c: c, _summed(rule, seen, lambda x: (x > seen.least).double()))

    def unresolved(self, rank: float, rule: Rule, seen: Seen) -> float:
        """How many of the values near `least` the rule may count on the wrong side.

        A node knows its values to the residual r, and their weight to about r over the distance d
        of the others, so a fraction r / d of its weight may lie beyond `least` at that distance.
        """
        residual = torch.maximum(rule.high - rule.nodes, rule.nodes - rule.low)
        tiny = torch.finfo(residual.dtype).tiny
        share = residual / torch.maximum(residual, (rule.nodes - seen.least).abs()).clamp_min(tiny)
        return float((rule.weights * share).sum(1).mean())


def few_modes(
    op: TrajectoryOperator, symmetric: bool, k: int, most: int, rng: np.random.Generator
) -> tuple[Float[Tensor, " mode"], Float[Tensor, " mode *dims"] | None, float, int]:
    """Values of leading modes, in float64, their vectors, residual, and the matvecs spent.

    They only reduce the scatter of the rules of the rest, so fewer than k will do, too.
    """
    nothing = torch.zeros(0, dtype=torch.float64, device=op.device)
    if k == 0:
        return nothing, None, 0.0, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", work.ConvergenceWarning)
        solve = eigenpairs if symmetric else singular_triplets
        # A dense matrix, "auto" for small operators, would take more matvecs than the budget has.
        # A seed of their own: how often a block must be refilled at random depends on rounding,
        # and must not decide which vectors are drawn after it.
        options = Options(method="block-krylov", max_matvecs=most, rng=rng.spawn(1)[0])
        modes = solve(op, k, options)
    values, vectors = modes.unit * modes.values, modes.vectors[-1]
    floor = 2 * noise_floor(op.torch_dtype) ** 0.5  # of svds by a Gram operator
    good = modes.converged & (values.abs() > floor * values.abs().max())
    residuals = modes.residual[good]
    doubt = float(residuals.max()) if len(residuals) else 0.0
    return values[good].double(), vectors[good], doubt, modes.num_matvecs


def _summed(rule: Rule, seen: Seen, function: Act) -> Samples:
    """Sum of a function over the spectrum as every probe sees it."""
    return rule.sums(function) + function(seen.leading).sum()
