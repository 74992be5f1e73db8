"""Leading singular triplets: which method, how it is run, and how many modes are certain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kpops import work
from kpops.engines.memory import free_bytes
from kpops.linalg.certify import certify_leading
from kpops.linalg.eigenpairs import check_method, solve, start
from kpops.linalg.exact import check_cost, is_cheap, is_small
from kpops.linalg.lanczos import AT_LEAST, Bidiagonal, run
from kpops.linalg.problem import BatchedSpace, Modes, SpectralProblem
from kpops.linalg.rounding import clusters, fix_signs, flatten_vectors, relative
from kpops.linalg.scaling import normalized, normalized_blocks
from kpops.linalg.search import LeadingModes, Progress, Search, verdict
from kpops.operators.base import TrajectoryOperator
from kpops.operators.dense import Batches, batches
from kpops.scalars import generator as seeded

Triplets = tuple[Tensor, Tensor, Tensor]


def singular_triplets(
    op: TrajectoryOperator,
    k: int,
    *,
    near: Tensor | None = None,
    method: str = "auto",
    tol: float = 1e-6,
    max_matvecs: int | None = None,
    block_size: int | None = None,
    rng: Any = None,
    callback: Callable[[Progress], Any] | None = None,
    on_interrupt: str = "raise",
) -> LeadingModes:
    """Leading singular triplets of an operator; :func:`kpops.svds` says what each option is.

    `near` holds start vectors (vector, *dims) of the domain.
    """
    check_method(method)
    rng, before = seeded(rng), op.num_matvecs
    whole = op
    with work.held(on_interrupt):
        op, unit = normalized(op, rng)
    search = start(op, k, tol, max_matvecs, block_size, rng, callback)
    chosen, insist = "asked for", "method='exact'" if method == "auto" else ""
    if method == "auto":
        method, chosen = _choose(op, k)
    if method == "exact":
        work.refuse_interrupted()
        left, values, right = _exact(op, k, insist)
        residual, n_certified = _residual(op, left, values, right), k
    else:
        solver = _by_krylov if method == "block-krylov" else _by_gram
        with work.held(on_interrupt):
            (left, values, right), n_certified = solver(op, method, search, block_size, near)
            residual = _residual(op, left, values, right)
    signs = fix_signs(right)[:, None]
    lefts = (signs * left).reshape(-1, *op.codomain.shape)
    rights = (signs * right).reshape(-1, *op.domain.shape)
    converged = verdict(residual, tol, f"svds by {method}", n_certified)
    cluster, used = clusters(values, residual), whole.num_matvecs - before
    return LeadingModes(
        values, (lefts, rights), unit, residual, converged, cluster, method, chosen, used
    )


def _choose(op: TrajectoryOperator, k: int) -> tuple[str, str]:
    small = is_cheap(max(side.size for side in batches(op)))
    if small and is_small(op):
        return "exact", "small"
    if 2 * k > min(op.shape):
        return "exact", "most modes are asked for"
    if sum(op.shape) * 4 * (k + 2) * op.dtype.itemsize > free_bytes(op.device) // 4:
        return "lobpcg", "no memory for two bases"
    return "block-krylov", "large"


def _exact(op: TrajectoryOperator, k: int, insist: str) -> Triplets:
    inside, outside = batches(op)
    check_cost(op, inside.count, (outside.size, inside.size), 20, insist)
    work.expect(min(outside.size, inside.size) + 2 * k)
    dense, unit = normalized_blocks(op)
    u, values, vh = torch.linalg.svd(dense, full_matrices=False)
    chosen = values.flatten().argsort(descending=True)[:k]
    problem, mode = chosen // values.shape[1], chosen % values.shape[1]
    right = _placed(inside, vh[problem, mode], problem)
    leading = values.flatten()[chosen] * unit
    return _placed(outside, u[problem, :, mode], problem), leading, right


def _placed(side: Batches, vectors: Tensor, problem: Tensor) -> Tensor:
    """Vectors of single problems as flat vectors of the whole space."""
    whole = vectors.new_zeros(side.count, len(vectors), side.size)
    whole[problem, torch.arange(len(vectors), device=problem.device)] = vectors
    return flatten_vectors(side.join(whole))


def _by_krylov(
    op: TrajectoryOperator,
    method: str,
    search: Search,
    block_size: int | None,
    near: Tensor | None,
) -> tuple[Triplets, int]:
    """By A*A, with one basis instead of two, as long as it keeps the digits that are asked for.

    Rounding of A*A, relative to s_1^2, is s_1 / s_k times as much for the triplet.
    """

    def lost(leading: float, least: float) -> bool:
        return least * search.tol < search.rounding * leading

    def watch(told: Progress) -> bool:
        stop = search.callback is not None and bool(search.callback(told))
        search.over |= stop
        leading, least = told.values[0], told.values[-1]
        # Values grow as they are found: by so much at most, as their squares have residuals.
        may_be = math.hypot(least, leading * math.sqrt(told.residuals[-1]))
        return stop or lost(leading, may_be)

    first = replace(search, budget=search.budget // 2, callback=watch)
    triplets, n_certified = _by_gram(op, method, first, block_size, near)
    search.spent = 2 * first.spent
    values = triplets[1]
    enough = search.budget - search.spent > 2 * AT_LEAST * (search.k + 2)
    if search.stopped or not enough or not lost(float(values[0]), float(values[-1])):
        return triplets, n_certified
    return _by_bidiagonal(op, search, block_size)


def _by_bidiagonal(
    op: TrajectoryOperator, search: Search, block_size: int | None
) -> tuple[Triplets, int]:
    sides = batches(op)

    def acts(act: Callable[[Tensor], Tensor], of: int) -> Callable[[Tensor], Tensor]:
        return lambda x: sides[1 - of].split(act(sides[of].join(x))).contiguous()

    spaces = [BatchedSpace(s.count, s.size, op.torch_dtype, op.device) for s in sides]
    forth, back = acts(op.apply, 0), acts(op.apply_adjoint, 1)
    wide = spaces[1].size < spaces[0].size
    block = block_size or search.k + 2
    if wide:
        process = Bidiagonal(back, forth, spaces[1], spaces[0], search, block)
    else:
        process = Bidiagonal(forth, back, spaces[0], spaces[1], search, block)
    modes = run(process, search, block)
    left, right = modes.vectors[::-1] if wide else modes.vectors
    values = modes.values.to(op.torch_dtype)
    triplets = (
        _placed(sides[1], left, modes.problem),
        values,
        _placed(sides[0], right, modes.problem),
    )
    n_certified = modes.n_certified
    if block < search.k:
        n_certified = (
            n_certified if n_certified == search.k and _certifies(op, triplets, search) else 0
        )
    return _padded(triplets, search.k), n_certified


def _certifies(op: TrajectoryOperator, triplets: Triplets, search: Search) -> bool:
    """Whether no larger singular value is left off these, by a fresh random block."""
    left, values, right = triplets
    problem = SpectralProblem(op, symmetric=False, together=True)
    vectors = left if problem.moves else right
    squares = values.double() ** 2
    modes = Modes(squares, torch.zeros(len(squares), dtype=torch.long), (vectors,), len(squares))
    return certify_leading(problem, modes, search)


def _by_gram(
    op: TrajectoryOperator,
    method: str,
    search: Search,
    block_size: int | None,
    near: Tensor | None,
) -> tuple[Triplets, int]:
    problem = SpectralProblem(op, symmetric=False, together=method == "arpack")
    wide = problem.moves
    search.squares = True
    _, block, n_certified = solve(problem, method, search, block_size, near)
    found = block.flatten(1).isfinite().all(1)
    act = op.apply_adjoint if wide else op.apply
    # The decomposition of the images takes away what the Gram matrix has mixed; of long columns it
    # would lose a digit in single precision.
    images = flatten_vectors(act(block[found])).double()
    parts = torch.linalg.svd(images.mT, full_matrices=False)
    other, values, turn = (part.to(op.torch_dtype) for part in parts)
    one = turn @ flatten_vectors(block[found])
    left, right = (one, other.mT) if wide else (other.mT, one)
    # Values that are lost in the rounding of the squares may hide others.
    kept = values * search.tol >= search.rounding * values[:1]
    n_certified = min(n_certified, int(kept.long().cumprod(0).sum()))
    return _padded((left, values, right), search.k), n_certified


def _padded(triplets: Triplets, k: int) -> Triplets:
    """NaN for modes that were not found."""
    missing = k - len(triplets[1])
    if not missing:
        return triplets
    left, values, right = (
        torch.cat([part, part.new_full((missing, *part.shape[1:]), torch.nan)]) for part in triplets
    )
    return left, values, right


def _residual(op: TrajectoryOperator, left: Tensor, values: Tensor, right: Tensor) -> Tensor:
    found = values.isfinite()
    residual = torch.full_like(values, torch.nan)
    if found.any():
        left, right, scale = left[found], right[found], values[found, None]
        forth = flatten_vectors(op.apply(right.reshape(-1, *op.domain.shape))) - scale * left
        back = flatten_vectors(op.apply_adjoint(left.reshape(-1, *op.codomain.shape)))
        back = back - scale * right
        residual[found] = relative(values[found], forth, back)
    return residual
