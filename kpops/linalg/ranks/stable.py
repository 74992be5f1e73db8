"""The stable rank ``||A||_F^2 / a_1^2``."""

from __future__ import annotations

import math

from torch import Tensor

from kpops.linalg.budget import Estimate
from kpops.linalg.gramians import propagator_norm
from kpops.linalg.ranks.base import RankKind, RankRun, RankSpec
from kpops.linalg.ranks.leading import leading_modes, squares_off


class Stable(RankKind):
    """``sum_k a_k^2 / a_1^2``."""

    name = "stable"
    methods = ("hutchinson",)

    def of_values(self, values: Tensor, spec: RankSpec, symmetric: bool, floor: float) -> float:
        """Of singular values over the largest."""
        return float(values.square().sum())

    def estimate(self, run: RankRun) -> Estimate:
        """From the leading mode, and random vectors off it."""
        left, values, residual, used = leading_modes(run.op, run.symmetric, 1, run.rng)
        largest = float(values[0])
        if largest == 0:
            return Estimate(0.0, 0.0, "hutchinson", "the operator is zero", used)
        exact = propagator_norm(run.op)
        if exact is not None:
            rank, error, by = (exact / largest) ** 2, 0.0, "the Gramian of P"
        else:
            # The leading mode, which may hold nearly all of the norm, would be all of the scatter.
            rest = squares_off(run.op, left, largest, run.num_matvecs, run.rng)
            used += len(rest)
            rank, error = 1 + float(rest.mean()), float(rest.std()) / len(rest) ** 0.5
            by = f"the leading mode and {len(rest)} random vectors off it"
        rank = min(max(rank, 1.0), min(run.op.shape))
        how = f"squared Frobenius norm by {by}, over the square of the leading mode"
        return Estimate(rank, math.hypot(error, 2 * residual * rank), "hutchinson", how, used)
