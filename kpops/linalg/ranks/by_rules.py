"""Ranks that are read off Gauss rules of the spectrum."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from kpops import work
from kpops.linalg.budget import Estimate
from kpops.linalg.eigenpairs import eigenpairs
from kpops.linalg.moments import NEEDS_POSITIVE
from kpops.linalg.probes import Act
from kpops.linalg.quadrature import Rule, gauss_rule
from kpops.linalg.ranks.base import RankKind, RankRun, RankSpec
from kpops.linalg.rounding import noise_floor
from kpops.linalg.symmetry import refuse_indefinite
from kpops.linalg.triplets import singular_triplets
from kpops.operators.base import TrajectoryOperator

PROBES = 16
"""Random vectors of Gauss rules; what is left of the products makes their steps."""
_FEW_MODES = 8
_LEAST_MATVECS, _LEAST_STEPS = 384, 8
"""With fewer products, neither the modes nor the rules would be of use."""


class ByRules(RankKind):
    """A kind that a few leading modes, and Gauss rules of the rest, tell."""

    methods: ClassVar[tuple[str, ...]] = ("lanczos",)

    @abstractmethod
    def of_rule(
        self, rule: Rule, leading: Tensor, spec: RankSpec, largest: float, least: float
    ) -> tuple[float, float]:
        """Rank and its jackknife error; values above `least` are more than rounding or `tol`."""

    def unresolved(
        self, rank: float, rule: Rule, leading: Tensor, spec: RankSpec, largest: float, least: float
    ) -> float:
        """The error of the rule itself: the distance to the rule of three quarters of the steps."""
        coarse, _ = self.of_rule(rule.coarse or rule, leading, spec, largest, least)
        return rank - coarse

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
        if not symmetric:
            floor = floor**0.5  # the rules are of A* A
        least = max(run.spec.tol, floor) * largest
        rank, error = self.of_rule(rule, leading, run.spec, largest, least)
        of_rule = self.unresolved(rank, rule, leading, run.spec, largest, least)
        how = f"{len(leading)} leading modes, and Gauss rules of {PROBES} vectors, {steps} steps"
        rank = min(max(rank, 0.0), min(op.shape))
        return Estimate(rank, math.hypot(error, of_rule, doubt * rank), "lanczos", how, used)


def few_modes(
    op: TrajectoryOperator, symmetric: bool, k: int, most: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor | None, float, int]:
    """Values of leading modes (mode,), float64, their vectors, residual, and the products.

    They only take scatter away from the rules of the rest: fewer will do, too.
    """
    nothing = torch.zeros(0, dtype=torch.float64, device=op.device)
    if k == 0:
        return nothing, None, 0.0, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", work.ConvergenceWarning)
        solve = eigenpairs if symmetric else singular_triplets
        # A matrix, which small operators are given, would take more products than there are.
        # Of a seed of their own: how often a block must be refilled at random is up to rounding,
        # and must not decide which vectors are drawn after it.
        modes = solve(op, k, method="block-krylov", max_matvecs=most, rng=rng.spawn(1)[0])
    values, vectors = modes.unit * modes.values, modes.vectors[-1]
    floor = 2 * noise_floor(op.torch_dtype) ** 0.5  # of svds by a Gram operator
    good = modes.converged & (values.abs() > floor * values.abs().max())
    residuals = modes.residual[good]
    doubt = float(residuals.max()) if len(residuals) else 0.0
    return values[good].double(), vectors[good], doubt, modes.num_matvecs


def summed(rule: Rule, leading: Tensor, function: Act) -> Tensor:
    """Sum of a function over the spectrum as every probe sees it, shape (probe,)."""
    return rule.sums(function) + function(leading).sum()
