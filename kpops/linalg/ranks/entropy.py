"""The entropy rank ``exp(-sum_k p_k log p_k)``."""

from __future__ import annotations

import torch
from torch import Tensor

from kpops.linalg.probes import jackknife
from kpops.linalg.quadrature import Rule
from kpops.linalg.ranks.base import RankSpec
from kpops.linalg.ranks.by_rules import ByRules, summed


class Entropy(ByRules):
    """``exp(-sum_k p_k log p_k)`` with ``p_k = a_k / sum a``."""

    name = "entropy"

    def of_values(self, values: Tensor, spec: RankSpec, symmetric: bool, floor: float) -> float:
        """Of singular values over the largest."""
        return float(torch.special.entr(values / values.sum()).sum().exp())

    def of_rule(
        self, rule: Rule, leading: Tensor, spec: RankSpec, largest: float, least: float
    ) -> tuple[float, float]:
        """Rank and its jackknife error."""
        first = summed(rule, leading, lambda x: x / largest)
        second = summed(rule, leading, lambda x: torch.special.entr(x.clamp_min(0) / largest))
        # With s = sum a and e = -sum a log a, the entropy of a / s is e / s + log s.
        return jackknife(lambda s, e: (e / s + s.log()).exp(), first, second)
