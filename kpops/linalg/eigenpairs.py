"""Leading eigenpairs: which method, how it is run, and how many modes are certain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kpops import work
from kpops.engines.memory import free_bytes
from kpops.kinds import described
from kpops.linalg.arpack import arpack
from kpops.linalg.certify import SMALL_BLOCK, certify_leading
from kpops.linalg.exact import is_cheap, is_small, leading
from kpops.linalg.lanczos import AT_LEAST, Lanczos, block_lanczos, run
from kpops.linalg.lobpcg import lobpcg
from kpops.linalg.problem import Modes, SpectralProblem
from kpops.linalg.rounding import clusters, fix_signs, flatten_vectors, noise_floor, relative
from kpops.linalg.scaling import normalized
from kpops.linalg.search import LeadingModes, Progress, Search, verdict
from kpops.operators.base import TrajectoryOperator
from kpops.scalars import check_count, check_real
from kpops.scalars import generator as seeded

METHODS: dict[str, Callable[..., Modes]] = {
    "block-krylov": block_lanczos,
    "lobpcg": lobpcg,
    "arpack": arpack,
}


MAX_MATVECS = 20_000


def eigenpairs(
    op: TrajectoryOperator,
    k: int,
    *,
    which: str = "LM",
    near: Tensor | None = None,
    method: str = "auto",
    tol: float = 1e-6,
    max_matvecs: int | None = None,
    block_size: int | None = None,
    rng: Any = None,
    callback: Callable[[Progress], Any] | None = None,
    on_interrupt: str = "raise",
) -> LeadingModes:
    """Leading eigenpairs of a self-adjoint operator; :func:`kpops.eigsh` says what each option is.

    `near` holds start vectors (vector, *dims).
    """
    check_method(method)
    rng = seeded(rng)
    with work.held(on_interrupt):
        op, unit = normalized(op, rng)
    search = start(op, k, tol, max_matvecs, block_size, rng, callback)
    chosen, insist = "asked for", "method='exact'" if method == "auto" else ""
    if method == "auto":
        method, chosen = _choose(op, k, which)
    before = op.num_matvecs
    if method == "exact":
        work.refuse_interrupted()
        values, block, how, largest = leading(op, k, which, insist)
        chosen, n_certified, used = f"{chosen}: {how}", k, op.num_matvecs - before + 1
        residual = _residual(op, values, block, largest)
    else:
        with work.held(on_interrupt):
            sign, shift, largest = _shift(op, which, search)
            together = method == "arpack"
            problem = SpectralProblem(op, n_modes=k, together=together, sign=sign, shift=shift)
            values, block, n_certified = solve(problem, method, search, block_size, near)
            residual = _residual(op, values, block, largest)
        chosen, used = f"{chosen}: in {problem.where}", search.spent + 1
    block = block * fix_signs(block).reshape(-1, *[1] * len(op.domain.shape))
    converged = verdict(residual, tol, f"eigsh by {method}", n_certified)
    cluster = _clusters(values, residual, largest)
    used += len(block)
    return LeadingModes(values, (block,), unit, residual, converged, cluster, method, chosen, used)


def check_method(method: str) -> None:
    """Refuse a method that is not known."""
    if method not in ("auto", "exact", *METHODS):
        raise ValueError(f"method={method!r}: choose 'auto', 'exact' or one of {list(METHODS)}")


def start(
    op: TrajectoryOperator,
    k: int,
    tol: float,
    max_matvecs: int | None,
    block_size: int | None,
    rng: Any,
    callback: Callable[[Progress], Any] | None,
) -> Search:
    """Check what a search is told."""
    check_real("tol", tol)
    if not tol > 0:
        raise ValueError(f"tol={tol}: choose a positive relative residual, for example 1e-6")
    for name, number in {"max_matvecs": max_matvecs, "block_size": block_size}.items():
        if number is not None:
            check_count(name, number, 1)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback is {described(callback)}: pass a function of the progress")
    noise = noise_floor(op.torch_dtype)
    budget = MAX_MATVECS if max_matvecs is None else max_matvecs
    return Search(
        int(k),
        max(tol, noise),
        budget,
        seeded(rng),
        callback,
        rounding=noise / 4,
    )


def _shift(op: TrajectoryOperator, which: str, search: Search) -> tuple[float, float, float]:
    """Sign and shift that make the wanted end that of largest magnitude, and this magnitude.

    They are not needed for the modes of largest magnitude: 1, 0 and 0.
    """
    if which == "LM" or (which == "LA" and op.positive):
        return 1.0, 0.0, 0.0
    first = replace(search, k=1, tol=max(search.tol, 1e-2), callback=None)
    problem = SpectralProblem(op, n_modes=1)
    modes = block_lanczos(problem.act, problem.space, first, SMALL_BLOCK)
    search.spend(first.spent + 1)
    search.over |= modes.n_certified < 1
    largest = float(modes.values[0].abs())
    return 1.0 if which == "LA" else -1.0, 1.1 * largest, largest


def solve(
    problem: SpectralProblem,
    method: str,
    search: Search,
    block_size: int | None,
    near: Tensor | None = None,
) -> tuple[Tensor, Tensor, int]:
    """Eigenvalues, eigenfunctions, and how many are known to be the leading ones.

    `near` holds start vectors (vector, *dims) of the operator's domain.
    """
    if near is not None:
        search.near = problem.bring(near)
        search.spend(math.ceil(len(near) / 2) if problem.moves else 0)
    if method == "block-krylov" and block_size is None:
        modes, n_certified = _in_blocks(problem, search)
    else:
        size = block_size or search.k + 2
        modes = METHODS[method](problem.act, problem.space, search, size)
        random = near is None and method == "block-krylov"
        sees_all = method == "arpack" or (random and size >= search.k)
        n_certified = modes.n_certified if sees_all else _certified(problem, modes, search)
    values, block = problem.lift(modes)
    missing = search.k - len(values)
    if missing:
        values = torch.cat([values, values.new_full((missing,), torch.nan)])
        block = torch.cat([block, block.new_full((missing, *block.shape[1:]), torch.nan)])
    return values, block, n_certified


def _in_blocks(problem: SpectralProblem, search: Search) -> tuple[Modes, int]:
    """Block Krylov from few vectors, which takes fewer products; from more if copies are missing.

    A block of k vectors sees every copy of a repeated eigenvalue that is wanted.
    """
    process = Lanczos(problem.act, problem.space, search, SMALL_BLOCK)
    modes = run(process, search, SMALL_BLOCK)
    if search.k <= SMALL_BLOCK and search.near is None:
        return modes, modes.n_certified
    # Of what the basis knows beside the modes, one from `near` knows too little to set it aside.
    n_certified = _certified(problem, modes, search, process if search.near is None else None)
    enough = search.budget - search.spent > AT_LEAST * (search.k + 2)
    if n_certified == search.k or search.stopped or not enough:
        return modes, n_certified
    search.near = None
    modes = block_lanczos(problem.act, problem.space, search, search.k + 2)
    return modes, modes.n_certified


def _certified(
    problem: SpectralProblem, modes: Modes, search: Search, process: Lanczos | None = None
) -> int:
    """The number of modes if a second search misses none, else 0."""
    return (
        search.k
        if modes.n_certified == search.k and certify_leading(problem, modes, search, process)
        else 0
    )


def _choose(op: TrajectoryOperator, k: int, which: str) -> tuple[str, str]:
    n = op.shape[0]
    blocks = op.unit_blocks() if which != "SA" else None  # whose zeros are not listed
    size = 0 if blocks is None else min(blocks.n_rows, blocks.n_columns)
    if blocks is not None and is_cheap(size) and k <= size * blocks.n_units:
        return "exact", "K couples no two units"
    if is_small(op):
        return "exact", "small"
    if 2 * k > n:
        return "exact", "most modes are asked for"
    numbers = (n if op.root is None else min(n, op.root.domain.size)) * 4 * (k + 2)
    if numbers * op.dtype.itemsize > free_bytes(op.device) // 4:
        return "lobpcg", "no memory for a basis"
    return "block-krylov", "large"


def _residual(op: TrajectoryOperator, values: Tensor, block: Tensor, largest: float) -> Tensor:
    """||A v - lambda v|| / max |lambda|, mode by mode; NaN for modes that were not found.

    `largest` is the greatest magnitude of an eigenvalue, as far as it is known.
    """
    found = values.isfinite()
    residual = torch.full_like(values, torch.nan)
    if found.any():
        vectors = flatten_vectors(block[found])
        image = flatten_vectors(op.apply(block[found]))
        gap = image - values[found, None] * vectors
        every = torch.cat([values[found], values.new_tensor([largest])])
        gap = torch.cat([gap, gap.new_zeros(1, gap.shape[1])])
        residual[found] = relative(every, gap)[:-1]
    return residual


def _clusters(values: Tensor, residual: Tensor, largest: float) -> Tensor:
    """Groups of modes that are not told apart; see :func:`kpops.linalg.rounding.clusters`."""
    every = torch.cat([values, values.new_tensor([largest])])
    return clusters(every, torch.cat([residual, residual.new_zeros(1)]))[:-1]
