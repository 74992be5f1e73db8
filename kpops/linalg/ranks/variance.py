"""The variance rank: how many modes hold a fraction of the sum of squares."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kpops import work
from kpops.linalg.budget import Estimate
from kpops.linalg.gramians import propagator_norm
from kpops.linalg.probes import left_out
from kpops.linalg.quadrature import Rule
from kpops.linalg.ranks.base import RankRun, RankSpec, count_to
from kpops.linalg.ranks.by_rules import ByRules
from kpops.linalg.ranks.leading import leading_modes, squares_off

_MOST_MODES = 256


class Variance(ByRules):
    """The number of leading a_k whose squares hold the fraction `threshold` of all squares.

    Interpolated linearly between counts.
    """

    name = "variance"
    methods = ("lanczos", "hutchinson")

    def of_values(self, values: Tensor, spec: RankSpec, symmetric: bool, floor: float) -> float:
        """Of singular values over the largest."""
        return count_to(values.square(), torch.ones_like(values), spec.threshold)

    def of_rule(
        self, rule: Rule, leading: Tensor, spec: RankSpec, largest: float, least: float
    ) -> tuple[float, float]:
        """Rank and its jackknife error."""
        probes = len(rule.nodes)
        squares = torch.cat([leading.expand(probes, -1), rule.nodes], 1).div(largest).square()
        weights = torch.cat([torch.ones_like(leading).expand(probes, -1), rule.weights], 1)
        whole = _pooled_count(squares, weights, spec.threshold)
        others = [[p for p in range(probes) if p != left] for left in range(probes)]
        without = [_pooled_count(squares[o], weights[o], spec.threshold) for o in others]
        whole_and_others = torch.tensor([whole, *without], dtype=torch.float64)
        return left_out(whole_and_others[0], whole_and_others[1:])

    def estimate(self, run: RankRun) -> Estimate:
        """From leading modes if they are few enough, else from Gauss rules."""
        if run.method == "hutchinson":
            answer = _by_modes(run, 8)
            if math.isnan(answer.stderr):
                work.warn_unconverged(
                    f"effective_rank: {answer.chosen}; the estimate is a lower bound"
                )
            return answer
        rough = super().estimate(run)
        if run.method == "lanczos" or rough.estimate > _MOST_MODES / 2:
            return rough
        start = int(1.2 * rough.estimate) + 4
        try:
            answer = _by_modes(run, start)
        except work.NothingYetError:
            return rough
        if math.isnan(answer.stderr):
            return rough._replace(num_matvecs=rough.num_matvecs + answer.num_matvecs)
        return answer._replace(num_matvecs=rough.num_matvecs + answer.num_matvecs)


def _by_modes(run: RankRun, k: int) -> Estimate:
    """The variance rank from k leading modes, or more; a lower bound if 256 are too few."""
    op, rng, m, threshold = run.op, run.rng, run.num_matvecs, run.spec.threshold
    exact = propagator_norm(op)
    used, most = 0, min(_MOST_MODES, min(op.shape))
    while True:
        k = min(k, most)
        left, values, _, more = leading_modes(op, run.symmetric, k, rng)
        used += more
        squares = values.double().square()
        if exact is None:
            # Drawn anew for each k: to keep all images might take more memory than there is.
            largest = float(values[0]) or 1.0
            rest = largest**2 * squares_off(op, left, largest, m, rng)
            used += len(rest)
            total, error = float(squares.sum() + rest.mean()), float(rest.std()) / len(rest) ** 0.5
        else:
            total, error = exact**2, 0.0
        if total == 0:
            return Estimate(0.0, 0.0, "hutchinson", "the operator is zero", used)
        if squares.sum() >= threshold * total:
            count = count_to(squares, torch.ones_like(squares), threshold, total)
            last = float(squares[min(int(count), k - 1)])
            of_total = "the Gramian of P" if exact is not None else f"{m} random vectors"
            how = f"{k} leading modes, and the whole sum by {of_total}"
            return Estimate(count, threshold * error / last, "hutchinson", how, used)
        if k == most:
            share = float(squares.sum()) / total
            how = f"{k} modes hold {share:.3f} of the sum of squares, less than {threshold}"
            return Estimate(float(k), math.nan, "hutchinson", how, used)
        k *= 2


def _pooled_count(squares: Tensor, weights: Tensor, threshold: float) -> float:
    """The count that holds a part of the sum of squares, of all probes together."""
    falling, order = squares.flatten().sort(descending=True)
    return count_to(falling, weights.flatten()[order] / len(weights), threshold)
