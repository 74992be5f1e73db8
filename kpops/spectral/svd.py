"""Leading singular triplets of any operator."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from kpops import work
from kpops.engines.memory import free_bytes
from kpops.operators.base import TrajectoryOperator, as_method
from kpops.operators.dense import Batches, batches
from kpops.operators.foreign import as_operator
from kpops.scalars import generator as seeded
from kpops.spectral import common, eig, scaling, structure
from kpops.spectral.solvers.eigenproblem import EigenProblem
from kpops.spectral.solvers.krylov import AT_LEAST, Bidiagonal, Family, Modes, run
from kpops.spectral.solvers.search import Progress, Search
from kpops.spectral.start_vectors import start_vectors

Triplets = tuple[Tensor, Tensor, Tensor]


@as_method
@common.in_full_precision
@work.shown
def svds(
    op: Any,
    k: int = 6,
    *,
    v0: Any = None,
    method: str = "auto",
    tol: float = 1e-6,
    max_matvecs: int | None = None,
    block_size: int | None = None,
    rng: Any = None,
    callback: Callable[[Progress], Any] | None = None,
    progress: bool = False,
    on_interrupt: str = "raise",
) -> xr.Dataset:
    """Leading singular values and functions of an operator.

    Parameters
    ----------
    op : TrajectoryOperator, LinearOperator or array_like
        m x n.
    k : int
        Number of modes, 1 to min(m, n).
    v0 : Tensor, array_like or DataArray, optional
        A vector of the domain of `op`, or a block of them with the leading dim ``mode``, near the
        right singular functions: for example ``right`` of an earlier result. As for
        :func:`kpops.eigsh`.
    method : {"auto", "exact", "block-krylov", "lobpcg", "randomized", "arpack"}
        ``"exact"`` decomposes the matrix, or that of each trial where none are coupled.
        ``"block-krylov"`` is that of :func:`kpops.eigsh` on the smaller of ``A* A`` and ``A A*``;
        where their rounding would cost digits that `tol` asks for, block Lanczos bidiagonalisation
        instead, with full reorthogonalisation of both sides and thick restart. The others are those
        of :func:`kpops.eigsh` on ``A* A`` or ``A A*``; they lose singular values below about the
        square root of the rounding unit times the largest. ``"auto"`` is exact up to a
        size of 1024 or when most modes are asked for, and else block-krylov, or lobpcg where there
        is no memory for its bases.
    tol : float
        Relative residual ``max(||A v - s u||, ||A* u - s v||) / max s`` to reach; not below 64
        rounding units of the dtype.
    max_matvecs : int, optional
        Products with A and with A* at most, 20,000 by default; when they are spent, the best so
        far is returned.
    block_size, rng, callback, progress, on_interrupt
        As for :func:`kpops.eigsh`.

    Returns
    -------
    Dataset
        ``singular_value(mode)``, falling; ``left(mode, *codomain)`` and ``right(mode, *domain)``
        of unit norm; ``residual(mode)``; ``converged(mode)``; ``cluster(mode)``, a number that
        modes share which cannot be told apart. A dim whose size or labels differ between domain and
        codomain gets the suffix ``_in`` in ``right``. Attributes as of :func:`kpops.eigsh`.

    Raises
    ------
    ValueError
        If an argument is out of range, or the operator is not finite; if most modes are wanted,
        which ``"auto"`` finds by a decomposition that will take more than ten minutes.
    MemoryError
        If the matrix of ``method="exact"`` would not fit.

    Warns
    -----
    ConvergenceWarning
        If some modes did not reach `tol`.

    Notes
    -----
    Golub and Kahan (1965), Calculating the singular values and pseudo-inverse of a matrix; Baglama
    and Reichel (2005), Augmented implicitly restarted Lanczos bidiagonalization methods. P, which
    couples no two trials, is decomposed for all trials side by side.

    Examples
    --------
    >>> import numpy as np, kpops
    >>> kpops.svds(np.array([[0.0, 2.0], [0.0, 0.0]]), k=1).singular_value.values
    array([2.])
    """
    op = as_operator(op)
    common.check_k(k, min(op.shape))
    if method not in ("auto", "exact", *eig.METHODS):
        raise ValueError(f"method={method!r}: choose 'auto', 'exact' or one of {list(eig.METHODS)}")
    work.check_on_interrupt(on_interrupt)
    near = start_vectors(op, v0)
    rng = seeded(rng)
    with work.held(on_interrupt):
        whole, (op, unit) = op, scaling.normalized(op, rng)
    search = eig.start(op, k, tol, max_matvecs, block_size, rng, callback)
    chosen, insist = "asked for", "method='exact'" if method == "auto" else ""
    if method == "auto":
        method, chosen = _choose(op, k)
    before = whole.num_matvecs - 1
    if method == "exact":
        work.refuse_interrupted()
        left, values, right = _exact(op, k, insist)
        residual, sure = _residual(op, left, values, right), k
    else:
        solver = _by_krylov if method == "block-krylov" else _by_gram
        with work.held(on_interrupt):
            (left, values, right), sure = solver(op, method, search, block_size, near)
            residual = _residual(op, left, values, right)
    signs = common.fix_signs(right)[:, None]
    lefts = (signs * left).reshape(-1, *op.codomain.shape)
    rights = (signs * right).reshape(-1, *op.domain.shape)
    converged = common.verdict(residual, tol, f"svds by {method}", sure)
    return xr.Dataset(
        {
            **common.mode_variables(
                {
                    "singular_value": (
                        scaling.undone(values, unit, whole, "spectrum"),
                        "singular value",
                    ),
                    "residual": (residual, "relative residual"),
                    "converged": (converged, "whether the residual meets the tolerance"),
                    "cluster": (common.clusters(values, residual), "modes not told apart"),
                }
            ),
            "left": common.modes_of(lefts, op.codomain, "left singular function"),
            "right": _right_modes(op, rights),
        },
        coords=common.identity(op),
        attrs={
            **common.configuration(whole, k=int(k), method=method, tol=tol),
            "method": method,
            "chosen": chosen,
            "num_matvecs": whole.num_matvecs - before,
            "noise_floor": common.noise_floor(op.torch_dtype),
        },
    )


def _right_modes(op: TrajectoryOperator, rights: Tensor) -> xr.DataArray:
    """Label right singular functions, apart from left ones where sizes or labels differ."""
    modes = common.modes_of(rights, op.domain, "right singular function")
    shared = set(op.domain.dims) & set(op.codomain.dims)
    labelled_apart = op.domain.misaligned(op.codomain) if shared == set(op.domain.dims) else []
    clash = [d for d in shared if op.domain.sizes[d] != op.codomain.sizes[d] or d in labelled_apart]
    of_clash = [str(c) for c in modes.coords if set(modes[c].dims) & set(clash)]
    return modes.rename({name: f"{name}_in" for name in {*clash, *of_clash}})


def _choose(op: TrajectoryOperator, k: int) -> tuple[str, str]:
    small = max(batches(op), key=lambda side: side.size).size <= structure.DENSE_SIZE
    if small and structure.is_small(op):
        return "exact", "small"
    if 2 * k > min(op.shape):
        return "exact", "most modes are asked for"
    if sum(op.shape) * 4 * (k + 2) * op.dtype.itemsize > free_bytes(op.device) // 4:
        return "lobpcg", "no memory for two bases"
    return "block-krylov", "large"


def _exact(op: TrajectoryOperator, k: int, insist: str) -> Triplets:
    inside, outside = batches(op)
    structure.check_cost(op, inside.count, (outside.size, inside.size), 20, insist)
    work.expect(min(outside.size, inside.size) + 2 * k)
    dense, unit = scaling.normalized_blocks(op)
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
    return common.columns(side.join(whole))


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
    triplets, sure = _by_gram(op, method, first, block_size, near)
    search.spent = 2 * first.spent
    values = triplets[1]
    enough = search.budget - search.spent > 2 * AT_LEAST * (search.k + 2)
    if search.stopped or not enough or not lost(float(values[0]), float(values[-1])):
        return triplets, sure
    return _by_bidiagonal(op, search, block_size)


def _by_bidiagonal(
    op: TrajectoryOperator, search: Search, block_size: int | None
) -> tuple[Triplets, int]:
    sides = batches(op)

    def acts(act: Callable[[Tensor], Tensor], of: int) -> Callable[[Tensor], Tensor]:
        return lambda x: sides[1 - of].split(act(sides[of].join(x))).contiguous()

    families = [Family(s.count, s.size, op.torch_dtype, op.device) for s in sides]
    forth, back = acts(op.apply, 0), acts(op.apply_adjoint, 1)
    wide = families[1].size < families[0].size
    block = block_size or search.k + 2
    if wide:
        process = Bidiagonal(back, forth, families[1], families[0], search, block)
    else:
        process = Bidiagonal(forth, back, families[0], families[1], search, block)
    modes = run(process, search, block)
    left, right = modes.vectors[::-1] if wide else modes.vectors
    values = modes.values.to(op.torch_dtype)
    triplets = (
        _placed(sides[1], left, modes.problem),
        values,
        _placed(sides[0], right, modes.problem),
    )
    sure = modes.sure
    if block < search.k:
        sure = sure if sure == search.k and _vouch(op, triplets, search) else 0
    return _padded(triplets, search.k), sure


def _vouch(op: TrajectoryOperator, triplets: Triplets, search: Search) -> bool:
    """Whether no larger singular value is left off these, by a fresh random block."""
    left, values, right = triplets
    wide = op.shape[0] < op.shape[1]
    gram = op @ op.H if wide else op.H @ op
    problem = EigenProblem(gram, search.k, together=True)
    vectors = left if wide else right
    squares = values.double() ** 2
    modes = Modes(squares, torch.zeros(len(squares), dtype=torch.long), (vectors,), len(squares))
    return problem.vouch(modes, search)


def _by_gram(
    op: TrajectoryOperator,
    method: str,
    search: Search,
    block_size: int | None,
    near: Tensor | None,
) -> tuple[Triplets, int]:
    wide = op.shape[0] < op.shape[1]
    gram = op @ op.H if wide else op.H @ op
    problem = EigenProblem(gram, search.k, together=method == "arpack")
    search.squares = True
    near = op.apply(near) if wide and near is not None else near
    _, block, sure = eig.solve(problem, method, search, block_size, near)
    found = block.flatten(1).isfinite().all(1)
    act = op.apply_adjoint if wide else op.apply
    # The decomposition of the images takes away what the Gram matrix has mixed; of long columns it
    # would lose a digit in single precision.
    images = common.columns(act(block[found])).double()
    parts = torch.linalg.svd(images.mT, full_matrices=False)
    other, values, turn = (part.to(op.torch_dtype) for part in parts)
    one = turn @ common.columns(block[found])
    left, right = (one, other.mT) if wide else (other.mT, one)
    # Values that are lost in the rounding of the squares may hide others.
    kept = values * search.tol >= search.rounding * values[:1]
    sure = min(sure, int(kept.long().cumprod(0).sum()))
    return _padded((left, values, right), search.k), sure


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
        forth = common.columns(op.apply(right.reshape(-1, *op.domain.shape))) - scale * left
        back = common.columns(op.apply_adjoint(left.reshape(-1, *op.codomain.shape)))
        back = back - scale * right
        residual[found] = common.relative(values[found], forth, back)
    return residual
