"""The kinds of effective rank: of a spectrum that is known, and estimated."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kpops import work
from kpops.linalg.eigenpairs import eigenpairs
from kpops.linalg.gramians import propagator_norm
from kpops.linalg.moments import NEEDS_POSITIVE, moments
from kpops.linalg.probes import dots, jackknife, left_out, sphere
from kpops.linalg.quadrature import Rule, gauss_rule, seek_negative
from kpops.linalg.rounding import columns, noise_floor
from kpops.linalg.symmetry import refuse_indefinite
from kpops.linalg.triplets import singular_triplets
from kpops.operators.base import TrajectoryOperator

KINDS = {
    "participation": ("hutchinson",),
    "variance": ("lanczos", "hutchinson"),
    "entropy": ("lanczos",),
    "stable": ("hutchinson",),
    "numerical": ("lanczos",),
}
"""Every kind and the methods that estimate it."""


PROBES = 16
"""Random vectors of Gauss rules; what is left of the products makes their steps."""


_FEW_MODES = 8


_LEAST_MATVECS, _LEAST_STEPS = 384, 8
"""With fewer products, neither the modes nor the rules would be of use."""


_MOST_MODES = 256


_BLOCK = 64
"""Vectors that are taken through the operator together."""


class Question(NamedTuple):
    """What is asked for."""

    kind: str
    threshold: float
    tol: float


class Answer(NamedTuple):
    """A rank, how it was found, and the products with the operator."""

    estimate: float
    stderr: float
    method: str
    chosen: str
    used: int


def of_spectrum(values: Tensor, question: Question, symmetric: bool, floor: float) -> float:
    """The rank of a spectrum that is known; values fall in magnitude."""
    if not values.isfinite().all():
        raise ValueError("the operator is not finite: check the weights and the scale")
    if not values.any():
        return 0.0
    values = values.double().abs() / values.abs().max().double()  # squares might underflow
    squares = values.square()
    match question.kind:
        case "participation":
            gram = values if symmetric else squares
            return float(gram.sum() ** 2 / gram.square().sum())
        case "variance":
            return _count_to(squares, torch.ones_like(squares), question.threshold)
        case "entropy":
            return float(torch.special.entr(values / values.sum()).sum().exp())
        case "stable":
            return float(squares.sum())
        case _:
            return float((values > max(question.tol, floor)).sum())


def _count_to(squares: Tensor, counts: Tensor, threshold: float, total: float = 0.0) -> float:
    """How many of the falling `squares`, each there `counts` times, hold a part of their sum.

    Interpolated between counts. `total` is the sum if it is larger than that of what is given.
    """
    held = (squares * counts).cumsum(0)
    target = threshold * max(total, float(held[-1]))
    full = int(torch.searchsorted(held, target).clamp_max(len(held) - 1))
    missing = target - float(held[full] - squares[full] * counts[full])
    return float(counts[:full].sum()) + missing / float(squares[full])


def estimated(
    op: TrajectoryOperator,
    question: Question,
    symmetric: bool,
    method: str,
    num_matvecs: int,
    rng: np.random.Generator,
) -> Answer:
    """The rank from random vectors, in about `num_matvecs` products and those for modes.

    The operator is of about one (:func:`kpops.linalg.scaling.normalized`).
    """
    sought = seek_negative(op, rng, NEEDS_POSITIVE) if symmetric else 0
    match question.kind:
        case "participation":
            answer = _participation(op, symmetric, num_matvecs, rng)
        case "stable":
            answer = _stable(op, symmetric, num_matvecs, rng)
        case "variance":
            answer = _variance(op, question, symmetric, method, num_matvecs, rng)
        case _:
            answer = _by_rules(op, question, symmetric, num_matvecs, rng)
    rounding = 10 * noise_floor(op.torch_dtype) * answer.estimate
    return answer._replace(stderr=math.hypot(answer.stderr, rounding), used=answer.used + sought)


def _participation(
    op: TrajectoryOperator, symmetric: bool, num_matvecs: int, rng: np.random.Generator
) -> Answer:
    candidates, used = moments(op, symmetric, num_matvecs, rng)
    if not candidates[0].second.any():
        return Answer(0.0, 0.0, "hutchinson", "the operator is zero", used)
    results = [(*jackknife(lambda f, s: f**2 / s, c.first, c.second), c.how) for c in candidates]
    estimate, stderr, how = min(results, key=lambda result: result[1])
    # Nothing that is not zero has less than 1, and none more than its size.
    return Answer(min(max(estimate, 1.0), min(op.shape)), stderr, "hutchinson", how, used)


def _stable(
    op: TrajectoryOperator, symmetric: bool, num_matvecs: int, rng: np.random.Generator
) -> Answer:
    left, values, residual, used = _leading(op, symmetric, 1, rng)
    largest = float(values[0])
    if largest == 0:
        return Answer(0.0, 0.0, "hutchinson", "the operator is zero", used)
    exact = propagator_norm(op)
    if exact is not None:
        rank, error, by = (exact / largest) ** 2, 0.0, "the Gramian of P"
    else:
        # The leading mode, which may hold nearly all of the norm, would be all of the scatter.
        rest = _squares_off(op, left, largest, num_matvecs, rng)
        used += len(rest)
        rank, error = 1 + float(rest.mean()), float(rest.std()) / len(rest) ** 0.5
        by = f"the leading mode and {len(rest)} random vectors off it"
    rank = min(max(rank, 1.0), min(op.shape))
    how = f"squared Frobenius norm by {by}, over the square of the leading mode"
    return Answer(rank, math.hypot(error, 2 * residual * rank), "hutchinson", how, used)


def _squares_off(
    op: TrajectoryOperator, left: Tensor, scale: float, m: int, rng: np.random.Generator
) -> Tensor:
    """Estimates of ``||A* (I - U U*)||_F^2 / scale^2``, shape (m,), float64.

    `left` holds orthonormal rows u; random vectors are uniform on the sphere off them.
    """
    like = torch.empty(0, dtype=op.torch_dtype, device=op.device)
    dim, left = op.codomain.size - len(left), left.to(like)
    squares = torch.zeros(m, dtype=torch.float64, device=op.device)
    if dim == 0:
        return squares
    for first in range(0, m, _BLOCK):
        z = sphere(rng, min(_BLOCK, m - first), op.codomain.size, like)
        for _ in range(2):  # once leaves rounding of the order of what it takes away
            z = z - (z @ left.T) @ left
        z = z * (dim**0.5 / z.norm(dim=1, keepdim=True))
        images = op.apply_adjoint(z.reshape(-1, *op.codomain.shape)).flatten(1) / scale
        squares[first : first + len(z)] = dots(images, images)
        if work.interrupted():
            return squares[: first + len(z)]
    return squares


def _variance(
    op: TrajectoryOperator,
    question: Question,
    symmetric: bool,
    method: str,
    num_matvecs: int,
    rng: np.random.Generator,
) -> Answer:
    """By leading modes if they are few enough, else by Gauss rules."""
    if method == "hutchinson":
        answer = _by_modes(op, question, symmetric, num_matvecs, rng, 8)
        if math.isnan(answer.stderr):
            work.warn_unconverged(f"effective_rank: {answer.chosen}; the estimate is a lower bound")
        return answer
    rough = _by_rules(op, question, symmetric, num_matvecs, rng)
    if method == "lanczos" or rough.estimate > _MOST_MODES / 2:
        return rough
    start = int(1.2 * rough.estimate) + 4
    try:
        answer = _by_modes(op, question, symmetric, num_matvecs, rng, start)
    except work.NothingYetError:
        return rough
    if math.isnan(answer.stderr):
        return rough._replace(used=rough.used + answer.used)
    return answer._replace(used=rough.used + answer.used)


def _by_modes(
    op: TrajectoryOperator,
    question: Question,
    symmetric: bool,
    m: int,
    rng: np.random.Generator,
    k: int,
) -> Answer:
    """The variance rank from k leading modes, or more; a lower bound if 256 are too few."""
    exact = propagator_norm(op)
    used, most = 0, min(_MOST_MODES, min(op.shape))
    while True:
        k = min(k, most)
        left, values, _, more = _leading(op, symmetric, k, rng)
        used += more
        squares = values.double().square()
        if exact is None:
            # Drawn anew for each k: to keep all images might take more memory than there is.
            largest = float(values[0]) or 1.0
            rest = largest**2 * _squares_off(op, left, largest, m, rng)
            used += len(rest)
            total, error = float(squares.sum() + rest.mean()), float(rest.std()) / len(rest) ** 0.5
        else:
            total, error = exact**2, 0.0
        if total == 0:
            return Answer(0.0, 0.0, "hutchinson", "the operator is zero", used)
        if squares.sum() >= question.threshold * total:
            count = _count_to(squares, torch.ones_like(squares), question.threshold, total)
            last = float(squares[min(int(count), k - 1)])
            of_total = "the Gramian of P" if exact is not None else f"{m} random vectors"
            how = f"{k} leading modes, and the whole sum by {of_total}"
            return Answer(count, question.threshold * error / last, "hutchinson", how, used)
        if k == most:
            share = float(squares.sum()) / total
            how = (
                f"{k} modes hold {share:.3f} of the sum of squares, less than {question.threshold}"
            )
            return Answer(float(k), math.nan, "hutchinson", how, used)
        k *= 2


def _leading(
    op: TrajectoryOperator, symmetric: bool, k: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor, float, int]:
    """The k leading left vectors as rows, values, relative residual, products that they took."""
    work.check()
    modes = (eigenpairs if symmetric else singular_triplets)(op, k, rng=rng)
    values = modes.unit * modes.values
    if symmetric:
        refuse_indefinite(op, values, NEEDS_POSITIVE)
    work.check()
    return columns(modes.vectors[0]), values, float(modes.residual.max()), modes.num_matvecs


def _by_rules(
    op: TrajectoryOperator,
    question: Question,
    symmetric: bool,
    num_matvecs: int,
    rng: np.random.Generator,
) -> Answer:
    """Entropy, numerical or variance rank: a few leading modes, and Gauss rules of the rest."""
    num_matvecs = max(num_matvecs, _LEAST_MATVECS)
    k = min(_FEW_MODES, min(op.shape) // 4)
    leading, off, doubt, used = _few_modes(op, symmetric, k, num_matvecs // 3, rng)
    steps = max(_LEAST_STEPS, (num_matvecs - used) // (PROBES * (1 if symmetric else 2)))
    rule = gauss_rule(op, num_probes=PROBES, steps=steps, rng=rng, symmetric=symmetric, off=off)
    used += rule.num_matvecs
    if rule.num_matvecs < PROBES * _LEAST_STEPS:
        work.check()
    values = torch.cat([leading, rule.nodes.flatten()])
    largest = float(values.abs().max())
    if largest == 0:
        return Answer(0.0, 0.0, "lanczos", "the operator is zero", used)
    floor = noise_floor(op.torch_dtype)
    if symmetric:
        refuse_indefinite(op, values, NEEDS_POSITIVE)
    if not symmetric:
        floor = floor**0.5  # the rules are of A* A
    least = max(question.tol, floor) * largest
    rank, error = _of_rule(rule, leading, question, largest, least)
    if question.kind == "numerical":
        of_rule = _unresolved(rule, least)
    else:
        coarse, _ = _of_rule(rule.coarse or rule, leading, question, largest, least)
        of_rule = rank - coarse
    how = f"{len(leading)} leading modes, and Gauss rules of {PROBES} vectors, {steps} steps"
    rank = min(max(rank, 0.0), min(op.shape))
    return Answer(rank, math.hypot(error, of_rule, doubt * rank), "lanczos", how, used)


def _unresolved(rule: Rule, least: float) -> float:
    """How many of the values near `least` the rule may have counted on the wrong side.

    A node knows its values to the residual r, and their weight to about r over the distance d of
    the others, so that a share r / d of its weight may lie beyond `least` at the distance d.
    """
    residual = torch.maximum(rule.high - rule.nodes, rule.nodes - rule.low)
    tiny = torch.finfo(residual.dtype).tiny
    share = residual / torch.maximum(residual, (rule.nodes - least).abs()).clamp_min(tiny)
    return float((rule.weights * share).sum(1).mean())


def _few_modes(
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


def _of_rule(
    rule: Rule, leading: Tensor, question: Question, largest: float, least: float
) -> tuple[float, float]:
    """Rank and jackknife error of leading values and of the rest that Gauss rules describe."""

    def sums(function: Callable[[Tensor], Tensor]) -> Tensor:
        return rule.sums(function) + function(leading).sum()

    if question.kind == "entropy":
        first = sums(lambda x: x / largest)
        second = sums(lambda x: torch.special.entr(x.clamp_min(0) / largest))
        # With s = sum a and e = -sum a log a, the entropy of a / s is e / s + log s.
        return jackknife(lambda s, e: (e / s + s.log()).exp(), first, second)
    if question.kind == "numerical":
        return jackknife(lambda c: c, sums(lambda x: (x > least).double()))
    probes = len(rule.nodes)
    squares = torch.cat([leading.expand(probes, -1), rule.nodes], 1).div(largest).square()
    weights = torch.cat([torch.ones_like(leading).expand(probes, -1), rule.weights], 1)
    whole = _pooled_count(squares, weights, question.threshold)
    others = [[p for p in range(probes) if p != left] for left in range(probes)]
    without = [_pooled_count(squares[o], weights[o], question.threshold) for o in others]
    whole_and_others = torch.tensor([whole, *without], dtype=torch.float64)
    return left_out(whole_and_others[0], whole_and_others[1:])


def _pooled_count(squares: Tensor, weights: Tensor, threshold: float) -> float:
    """The count that holds a part of the sum of squares, of all probes together."""
    falling, order = squares.flatten().sort(descending=True)
    return _count_to(falling, weights.flatten()[order] / len(weights), threshold)
