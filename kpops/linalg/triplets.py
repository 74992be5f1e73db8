"""Leading singular triplets: the choice of a method, its run, and how many modes are certain."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kpops import work
from kpops.engines.memory import free_bytes
from kpops.linalg.certify import certify_leading
from kpops.linalg.eigenpairs import DEFAULTS, Options, solve
from kpops.linalg.exact import check_cost, is_cheap, is_small
from kpops.linalg.lanczos import AT_LEAST, Bidiagonal, run
from kpops.linalg.probes import Act
from kpops.linalg.problem import Modes, SpectralProblem, by_problem
from kpops.linalg.rounding import clusters, flatten_vectors, relative
from kpops.linalg.scaling import normalized_blocks
from kpops.linalg.search import LeadingModes, Progress, Search, padded, verdict
from kpops.linalg.vectors import VectorSpace
from kpops.operators.base import TrajectoryOperator
from kpops.operators.dense import Batches, batches
from kpops.transfers import beside, on_device

Triplets = tuple[Float[Tensor, "mode rows"], Float[Tensor, " mode"], Float[Tensor, "mode columns"]]
"""Left singular vectors, singular values and right singular vectors that were found."""

Images = tuple[Float[Tensor, "mode rows"] | None, Float[Tensor, "mode columns"] | None]
"""A of the right singular vectors and A* of the left ones, where a solver has computed them."""
_UNKNOWN: Images = (None, None)


def singular_triplets(op: TrajectoryOperator, k: int, options: Options = DEFAULTS) -> LeadingModes:
    """Leading singular triplets of an operator."""
    whole, before = op, op.num_matvecs
    op, unit, search = options.begin(op, k)
    method, chosen, insist = options.method, "asked for", ""
    if method == "auto":
        (method, chosen), insist = _choose(op, k), "method='exact'"
    if method == "exact":
        work.refuse_interrupted()
        triplets, n_certified = _exact(op, k, insist), k
        residual = _residual(op, triplets, _UNKNOWN)
    else:
        solver = _by_krylov if method == "block-krylov" else _by_gram
        with work.held(options.on_interrupt):
            triplets, images, n_certified = solver(op, method, search, options)
            residual = _residual(op, triplets, images)
    left, values, right, residual = padded(search.k, *triplets, residual)
    signs = VectorSpace.of(op, op.domain).signs(right)[:, None]
    lefts = (signs * left).reshape(-1, *op.codomain.shape)
    rights = (signs * right).reshape(-1, *op.domain.shape)
    converged = verdict(residual, options.tol, f"svds by {method}", n_certified)
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
    bytes_of_bases = sum(op.shape) * 4 * (k + 2) * op.dtype.itemsize
    if bytes_of_bases > op.parts.least(free_bytes(op.device)) // 4:
        return "lobpcg", "no memory for two bases"
    return "block-krylov", "large"


def _exact(op: TrajectoryOperator, k: int, insist: str) -> Triplets:
    inside, outside = batches(op)
    check_cost(op, inside.total_count, (outside.size, inside.size), 20, insist)
    work.expect(min(outside.size, inside.size) + 2 * k)
    dense, unit = normalized_blocks(op)
    u, values, vh = torch.linalg.svd(dense, full_matrices=False)
    n_modes, values = values.shape[1], inside.everywhere(values).flatten()
    chosen = values.argsort(descending=True)[:k]
    problem, mode = chosen // n_modes, chosen % n_modes
    left, right = outside.place(u, problem, mode), inside.place(vh.mT, problem, mode)
    return flatten_vectors(left), values[chosen] * unit, flatten_vectors(right)


def _placed(
    side: Batches, vectors: Float[Tensor, "mode size"], problem: Int[Tensor, " mode"]
) -> Float[Tensor, "mode entry"]:
    """Vectors of single problems as flat vectors of the whole space."""
    return flatten_vectors(side.join(by_problem(side, problem, vectors)))


def _by_krylov(
    op: TrajectoryOperator, method: str, search: Search, options: Options
) -> tuple[Triplets, Images, int]:
    """By A*A, with one basis instead of two, as long as it keeps the digits that are wanted.

    Rounding of A*A, relative to s_1^2, is s_1 / s_k times as much for the triplet.
    """

    def lost(leading: float, least: float) -> bool:
        return least * search.tol < search.rounding * leading

    def watch(progress: Progress) -> bool:
        stop = search.callback is not None and bool(search.callback(progress))
        search.over |= stop
        leading, least = map(float, progress.values[[0, -1]])
        # Values grow as they are found, at most by as much as the residuals of their squares allow.
        may_be = math.hypot(least, leading * math.sqrt(progress.residuals[-1]))
        return stop or lost(leading, may_be)

    first = replace(search, budget=search.budget // 2, callback=watch)
    triplets, images, n_certified = _by_gram(op, method, first, options)
    search.spent = 2 * first.spent
    values = triplets[1].tolist()
    enough = search.budget - search.spent > 2 * AT_LEAST * (search.k + 2)
    if search.stopped or not enough or len(values) < search.k:
        return triplets, images, n_certified
    if not lost(values[0], values[-1]):
        return triplets, images, n_certified
    triplets, n_certified = _by_bidiagonal(op, search, options.block_size)
    return triplets, _UNKNOWN, n_certified


def _by_bidiagonal(
    op: TrajectoryOperator, search: Search, block_size: int | None
) -> tuple[Triplets, int]:
    sides = batches(op)

    def acts(act: Act, of: int) -> Act:
        return lambda x: sides[1 - of].split(act(sides[of].join(x))).contiguous()

    spaces = [VectorSpace.of(op, side) for side in sides]
    forth, back = acts(op.apply, 0), acts(op.apply_adjoint, 1)
    wide = spaces[1].total < spaces[0].total
    block = block_size or search.k + 2
    if wide:
        process = Bidiagonal(back, forth, spaces[1], spaces[0], search, block)
    else:
        process = Bidiagonal(forth, back, spaces[0], spaces[1], search, block)
    modes = run(process, search, block)
    right, left = modes.vectors[::-1] if wide else modes.vectors
    triplets = (
        _placed(sides[1], left, modes.problem),
        on_device(modes.values, op.device, op.torch_dtype),
        _placed(sides[0], right, modes.problem),
    )
    n_certified = modes.n_certified
    if block < search.k and not (n_certified == search.k and _certifies(op, triplets, search)):
        n_certified = 0
    return triplets, n_certified


def _certifies(op: TrajectoryOperator, triplets: Triplets, search: Search) -> bool:
    """Whether no larger singular value is left once these are deflated, by a fresh random block."""
    left, values, right = triplets
    problem = SpectralProblem(op, symmetric=False, together=True)
    vectors = left if problem.moves else right
    squares = values.cpu().double() ** 2
    modes = Modes(squares, torch.zeros(len(squares), dtype=torch.long), (vectors,), len(squares))
    return certify_leading(problem, modes, search)


def _by_gram(
    op: TrajectoryOperator, method: str, search: Search, options: Options
) -> tuple[Triplets, Images, int]:
    problem = SpectralProblem(op, symmetric=False, together=method == "arpack")
    search.squares = True
    _, block, n_certified = solve(problem, method, search, options)
    act = op.apply_adjoint if problem.moves else op.apply
    # The decomposition of the images separates what the Gram matrix has mixed; of long columns it
    # would lose a digit in single precision.
    image = flatten_vectors(act(block)).double()
    space = VectorSpace.of(op, op.domain if problem.moves else op.codomain)
    basis, coords = space.orthonormal(image)
    turn, values, axes = torch.linalg.svd(coords)
    # Values that are lost in the rounding of the squares may hide others.
    kept = values * search.tol >= search.rounding * values[:1]
    n_certified = min(n_certified, int(kept.long().cumprod(0).sum()))
    other = (beside(axes, basis) @ basis).to(op.torch_dtype)
    one = beside(turn.mT, block) @ flatten_vectors(block)
    of_one = beside(turn.mT, image) @ image
    left, right = (one, other) if problem.moves else (other, one)
    images = (None, of_one) if problem.moves else (of_one, None)
    return (left, beside(values, block), right), images, n_certified


def _residual(op: TrajectoryOperator, triplets: Triplets, images: Images) -> Float[Tensor, " mode"]:
    """max(||A v - s u||, ||A* u - s v||) / max s."""
    left, values, right = triplets
    forth, back = images
    if forth is None:
        forth = flatten_vectors(op.apply(right.reshape(-1, *op.domain.shape)))
    if back is None:
        back = flatten_vectors(op.apply_adjoint(left.reshape(-1, *op.codomain.shape)))
    gaps = forth - values[:, None] * left, back - values[:, None] * right
    spaces = (VectorSpace.of(op, space) for space in (op.codomain, op.domain))
    return relative(values, *(s.lengths(gap) for s, gap in zip(spaces, gaps, strict=True)))
