"""Ranks from leading modes, and random vectors that estimate the rest of the norm."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kpops import work
from kpops.engines.random_vectors import RandomVectors
from kpops.linalg.budget import Estimate
from kpops.linalg.eigenpairs import Options, eigenpairs
from kpops.linalg.gramians import propagator_norm
from kpops.linalg.moments import NEEDS_POSITIVE
from kpops.linalg.probes import Rows, Samples, left_out
from kpops.linalg.quadrature import Rule
from kpops.linalg.ranks.base import RankKind, RankRun, RankSpec, Values, count_to
from kpops.linalg.ranks.by_rules import ByRules, Seen
from kpops.linalg.rounding import flatten_vectors
from kpops.linalg.symmetry import refuse_indefinite
from kpops.linalg.triplets import singular_triplets
from kpops.linalg.vectors import VectorSpace
from kpops.operators.base import TrajectoryOperator

_MOST_MODES = 256


class Stable(RankKind):
    """``sum_k a_k^2 / a_1^2``."""

    name = "stable"
    methods = ("hutchinson",)

    def of_values(self, values: Values, spec: RankSpec, symmetric: bool, floor: float) -> float:
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
            # The leading mode may hold nearly all of the norm, and would be all of the scatter.
            rest = squares_off(run.op, left, largest, run.num_matvecs, run.rng)
            used += len(rest)
            rank, error = 1 + float(rest.mean()), float(rest.std()) / len(rest) ** 0.5
            by = f"the leading mode and {len(rest)} random vectors off it"
        rank = min(max(rank, 1.0), min(run.op.shape))
        how = f"squared Frobenius norm by {by}, over the square of the leading mode"
        return Estimate(rank, math.hypot(error, 2 * residual * rank), "hutchinson", how, used)


class Variance(ByRules):
    """The number of leading a_k whose squares hold the fraction `threshold` of all squares.

    Interpolated linearly between counts. Only the `top` largest a_k count, if that is given.
    """

    name = "variance"
    methods = ("lanczos", "hutchinson")

    def of_values(self, values: Values, spec: RankSpec, symmetric: bool, floor: float) -> float:
        """Of singular values over the largest."""
        values = values[: spec.top]
        return count_to(values.square(), torch.ones_like(values), spec.threshold)

    def of_rule(self, rule: Rule, seen: Seen) -> tuple[float, float]:
        """Rank and its jackknife error."""
        probes, leading = len(rule.nodes), seen.leading
        squares = torch.cat([leading.expand(probes, -1), rule.nodes], 1).div(seen.largest).square()
        weights = torch.cat([torch.ones_like(leading).expand(probes, -1), rule.weights], 1)
        whole = _pooled_count(squares, weights, seen.threshold)
        others = [[p for p in range(probes) if p != left] for left in range(probes)]
        without = [_pooled_count(squares[o], weights[o], seen.threshold) for o in others]
        whole_and_others = torch.tensor([whole, *without], dtype=torch.float64)
        return left_out(whole_and_others[0], whole_and_others[1:])

    def estimate(self, run: RankRun) -> Estimate:
        """From leading modes if they are few enough, else from Gauss rules."""
        if run.spec.top is not None:
            return _of_top(run, run.spec.top)
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


def _of_top(run: RankRun, top: int) -> Estimate:
    """The variance rank of the `top` largest values, which are computed."""
    count = min(top, *run.op.shape)
    _, values, residual, used = leading_modes(run.op, run.symmetric, count, run.rng)
    squares = values.double().square()
    if not squares.any():
        return Estimate(0.0, 0.0, "hutchinson", "the operator is zero", used)
    rank = count_to(squares, torch.ones_like(squares), run.spec.threshold)
    how = f"{count} leading modes, no others"
    return Estimate(rank, 2 * residual * rank, "hutchinson", how, used)


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
            # New vectors for each k: all images might not fit in memory.
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


def _pooled_count(
    squares: Float[Tensor, "probe value"], weights: Float[Tensor, "probe value"], threshold: float
) -> float:
    """The count that holds a fraction of the sum of squares, of all probes together."""
    falling, order = squares.flatten().sort(descending=True)
    return count_to(falling, weights.flatten()[order] / len(weights), threshold)


def leading_modes(
    op: TrajectoryOperator, symmetric: bool, k: int, rng: np.random.Generator
) -> tuple[Float[Tensor, "{k} entry"], Float[Tensor, " {k}"], float, int]:
    """The k leading left vectors, values, their relative residual, and the matvecs spent."""
    work.check()
    modes = (eigenpairs if symmetric else singular_triplets)(op, k, Options(rng=rng))
    values = modes.unit * modes.values
    if symmetric:
        refuse_indefinite(op, values, NEEDS_POSITIVE)
    work.check()
    return flatten_vectors(modes.vectors[0]), values, float(modes.residual.max()), modes.num_matvecs


def squares_off(
    op: TrajectoryOperator, left: Rows, scale: float, m: int, rng: np.random.Generator
) -> Samples:
    """Estimates of ``||A* (I - U U*)||_F^2 / scale^2`` from m random vectors, in float64.

    The orthonormal rows of `left` are U; random vectors are uniform on the sphere orthogonal to
    them.
    """
    space = VectorSpace.of(op, op.codomain)
    of_images = VectorSpace.of(op, op.domain)
    dim, left = space.total - len(left), left.to(space.like)
    squares = torch.zeros(m, dtype=torch.float64, device=op.device)
    if dim == 0:
        return squares
    source = RandomVectors(rng)
    block = min(space.block, of_images.block)
    for first in range(0, m, block):
        z = space.sphere(source, min(block, m - first))
        for _ in range(2):  # one pass leaves an error of the order of what it removes
            z = z - space.parts.sum(z @ left.T) @ left
        z = z * (dim**0.5 / space.lengths(z)[:, None]).to(z.dtype)
        images = op.apply_adjoint(z.reshape(-1, *op.codomain.shape)).flatten(1) / scale
        squares[first : first + len(z)] = of_images.dots(images, images)
        if work.interrupted():
            return squares[: first + len(z)]
    return squares
