"""The participation ratio ``(tr G)^2 / tr(G^2)``."""

from __future__ import annotations

from kpops.linalg.budget import Estimate
from kpops.linalg.moments import moments
from kpops.linalg.probes import jackknife
from kpops.linalg.ranks.base import RankKind, RankRun, RankSpec, Values
from kpops.operators.base import TrajectoryOperator


class Participation(RankKind):
    """``(tr G)^2 / tr(G^2)``, G being the operator if it is self-adjoint, and ``A A*`` if not."""

    name = "participation"
    methods = ("hutchinson",)
    of_gram = True

    def of_values(self, values: Values, spec: RankSpec, symmetric: bool, floor: float) -> float:
        """Of singular values over the largest."""
        gram = values if symmetric else values.square()
        return float(gram.sum() ** 2 / gram.square().sum())

    def from_structure(self, op: TrajectoryOperator) -> Estimate | None:
        """Of a K that couples no two units, from its traces."""
        blocks = op.unit_blocks()
        if blocks is None:
            return None
        scaled = blocks.scaled(1 / (blocks.trace() or 1.0))  # squares might leave the dtype
        squares = scaled.inner(scaled)
        how = f"traces of K, block diagonal over {blocks.n_units} units"
        return Estimate(1 / squares if squares else 0.0, 0.0, "exact", how, 0)

    def estimate(self, run: RankRun) -> Estimate:
        """From traces of G and of G^2 from the same random vectors."""
        candidates, used = moments(run.op, run.symmetric, run.num_matvecs, run.rng)
        if not candidates[0].second.any():
            return Estimate(0.0, 0.0, "hutchinson", "the operator is zero", used)
        results = [
            (*jackknife(lambda f, s: f**2 / s, c.first, c.second), c.how) for c in candidates
        ]
        estimate, stderr, how = min(results, key=lambda result: result[1])
        # No operator but zero has less than 1, and none more than its size.
        return Estimate(min(max(estimate, 1.0), min(run.op.shape)), stderr, "hutchinson", how, used)
