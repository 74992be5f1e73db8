"""The numerical rank: the number of values above a tolerance."""

from __future__ import annotations

import torch
from torch import Tensor

from kpops.linalg.probes import jackknife
from kpops.linalg.quadrature import Rule
from kpops.linalg.ranks.base import RankSpec
from kpops.linalg.ranks.by_rules import ByRules, summed


class Numerical(ByRules):
    """The number of a_k above ``tol a_1``, and above the noise floor."""

    name = "numerical"
    counts = True

    def of_values(self, values: Tensor, spec: RankSpec, symmetric: bool, floor: float) -> float:
        """Of singular values over the largest."""
        return float((values > max(spec.tol, floor)).sum())

    def of_rule(
        self, rule: Rule, leading: Tensor, spec: RankSpec, largest: float, least: float
    ) -> tuple[float, float]:
        """Rank and its jackknife error."""
        return jackknife(lambda c: c, summed(rule, leading, lambda x: (x > least).double()))

    def unresolved(
        self, rank: float, rule: Rule, leading: Tensor, spec: RankSpec, largest: float, least: float
    ) -> float:
        """How many of the values near `least` the rule may have counted on the wrong side.

        A node knows its values to the residual r, and their weight to about r over the distance d
        of the others, so that a share r / d of its weight may lie beyond `least` at that distance.
        """
        residual = torch.maximum(rule.high - rule.nodes, rule.nodes - rule.low)
        tiny = torch.finfo(residual.dtype).tiny
        share = residual / torch.maximum(residual, (rule.nodes - least).abs()).clamp_min(tiny)
        return float((rule.weights * share).sum(1).mean())
