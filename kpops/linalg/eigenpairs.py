"""Leading eigenpairs: the choice of a method, its run, and how many modes are certain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from kpops import work
from kpops.engines.memory import free_bytes
from kpops.engines.random_vectors import RandomVectors
from kpops.kinds import described
from kpops.linalg.arpack import arpack
from kpops.linalg.certify import certify_leading
from kpops.linalg.exact import is_cheap, is_small, leading
from kpops.linalg.lanczos import AT_LEAST, Lanczos, block_lanczos, run
from kpops.linalg.lobpcg import lobpcg
from kpops.linalg.problem import Modes, SpectralProblem
from kpops.linalg.rounding import clusters, flatten_vectors, noise_floor, relative
from kpops.linalg.scaling import normalized
from kpops.linalg.search import LeadingModes, Progress, Search, padded, verdict
from kpops.linalg.vectors import VectorSpace
from kpops.operators.base import TrajectoryOperator
from kpops.scalars import check_count, check_real
from kpops.scalars import generator as seeded

METHODS: dict[str, Callable[..., Modes]] = {
    "block-krylov": block_lanczos,
    "lobpcg": lobpcg,
    "arpack": arpack,
}
_MAX_MATVECS = 20_000
# Vectors of a block that looks for few modes.
SMALL_BLOCK = 2


@dataclass(frozen=True)
class Options:
    """The options that :func:`kpops.eigsh` and :func:`kpops.svds` share, checked.

    `near` holds start vectors of the domain.
    """

    near: Float[Tensor, " vector *dims"] | None = None
    method: str = "auto"
    tol: float = 1e-6
    max_matvecs: int | None = None
    block_size: int | None = None
    rng: Any = None
    callback: Callable[[Progress], Any] | None = None
    on_interrupt: str = "raise"

    def __post_init__(self) -> None:
        if self.method not in ("auto", "exact", *METHODS):
            raise ValueError(
                f"method={self.method!r}: choose 'auto', 'exact' or one of {list(METHODS)}"
            )
        check_real("tol", self.tol)
        if not self.tol > 0:
            raise ValueError(
                f"tol={self.tol}: choose a positive relative residual, for example 1e-6"
            )
        for name in ("max_matvecs", "block_size"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), 1)
        if self.callback is not None and not callable(self.callback):
            raise TypeError(
                f"callback is {described(self.callback)}: pass a function of the progress"
            )
        work.check_on_interrupt(self.on_interrupt)

    def begin(self, op: TrajectoryOperator, k: int) -> tuple[TrajectoryOperator, float, Search]:
        """The operator, made of about one, its scale, and the search for k modes of it."""
        op.parts.check_interrupt(self.on_interrupt)
        parts, asked = op.parts, self.callback
        # Processes stop together, also where only one is told to.
        callback = asked and (lambda progress: parts.any(bool(asked(progress))))
        rng = seeded(self.rng, parts)
        with work.held(self.on_interrupt):
            op, unit = normalized(op, rng)
        noise = noise_floor(op.torch_dtype)
        tol, budget = max(self.tol, noise), self.max_matvecs or _MAX_MATVECS
        return op, unit, Search(int(k), tol, budget, rng, callback, rounding=noise / 4)


DEFAULTS = Options()


def eigenpairs(
    op: TrajectoryOperator, k: int, options: Options = DEFAULTS, *, which: str = "LM"
) -> LeadingModes:
    """Leading eigenpairs of a self-adjoint operator."""
    op, unit, search = options.begin(op, k)
    method, chosen, insist = options.method, "asked for", ""
    if method == "auto":
        (method, chosen), insist = _choose(op, k, which), "method='exact'"
    before = op.num_matvecs
    if method == "exact":
        work.refuse_interrupted()
        values, block, how, largest = leading(op, k, which, insist)
        chosen, n_certified, used = f"{chosen}: {how}", k, op.num_matvecs - before + 1
        residual = _residual(op, values, block, largest)
    else:
        with work.held(options.on_interrupt):
            sign, shift, largest = _shift(op, which, search)
            together = method == "arpack"
            problem = SpectralProblem(op, n_modes=k, together=together, sign=sign, shift=shift)
            values, block, n_certified = solve(problem, method, search, options)
            residual = _residual(op, values, block, largest)
        chosen, used = f"{chosen}: in {problem.where}", search.spent + 1
    values, block, residual = padded(search.k, values, block, residual)
    signs = VectorSpace.of(op, op.domain).signs(flatten_vectors(block))
    block = block * signs.reshape(-1, *[1] * len(op.domain.shape))
    converged = verdict(residual, options.tol, f"eigsh by {method}", n_certified)
    cluster = clusters(values, residual, largest)
    used += len(block)
    return LeadingModes(values, (block,), unit, residual, converged, cluster, method, chosen, used)


def _shift(op: TrajectoryOperator, which: str, search: Search) -> tuple[float, float, float]:
    """Sign and shift that make the wanted end that of largest magnitude, and this magnitude.

    1, 0 and 0 for the modes of largest magnitude, which need no shift.
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
    problem: SpectralProblem, method: str, search: Search, options: Options
) -> tuple[Float[Tensor, " mode"], Float[Tensor, " mode *dims"], int]:
    """Eigenvalues and eigenfunctions found, and how many are known to be the leading ones."""
    near, small = options.near, method == "block-krylov" and options.block_size is None
    size = options.block_size or search.k + 2
    if near is not None:
        most = 1 if small or method == "arpack" else min(size, problem.space.total)
        near = _mixed(near, most, search.rng)
        search.near = problem.bring(near)
        search.spend(math.ceil(len(near) / 2) if problem.moves else 0)
    if small:
        modes, n_certified = _in_blocks(problem, search)
    else:
        modes = METHODS[method](problem.act, problem.space, search, size)
        random = near is None and method == "block-krylov"
        sees_all = method == "arpack" or (random and size >= search.k)
        n_certified = modes.n_certified if sees_all else _certified(problem, modes, search)
    return *problem.lift(modes), n_certified


def _mixed(
    near: Float[Tensor, " vector *dims"], n: int, rng: np.random.Generator
) -> Float[Tensor, " mixture *dims"]:
    """At most n start vectors: random mixtures of those given, if these are more.

    The Krylov space of ``s = v_1 + ... + v_k + e`` holds polynomials in A that single out every v_i
    and are small along e. Each further degree costs one matvec and serves all modes, while the
    v_i as a block, which have an e each, cost k. Signs, since no mode may get a small coefficient.
    """
    if len(near) <= n:
        return near
    signs = RandomVectors(rng).signs(n, range(len(near)), near)
    return (signs @ flatten_vectors(near)).unflatten(1, near.shape[1:])


def _in_blocks(problem: SpectralProblem, search: Search) -> tuple[Modes, int]:
    """Block Krylov from few vectors, which takes fewer matvecs; from more if copies are missing.

    A block of k vectors sees every copy of a repeated eigenvalue that is wanted. Where there are as
    many problems as wanted modes, most have one at best, for which one vector takes fewest matvecs.
    """
    few = 1 if SMALL_BLOCK < search.k <= problem.space.total_problems else SMALL_BLOCK
    size = few if search.near is None else search.near.shape[1]
    process = Lanczos(problem.act, problem.space, search, size)
    modes = run(process, search, size)
    if search.k <= SMALL_BLOCK and search.near is None:
        return modes, modes.n_certified
    n_certified = _certified(problem, modes, search, process)
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
    if modes.n_certified < search.k or not certify_leading(problem, modes, search, process):
        return 0
    return search.k


def _choose(op: TrajectoryOperator, k: int, which: str) -> tuple[str, str]:
    n = op.shape[0]
    blocks = op.unit_blocks() if which != "SA" else None  # whose zeros are not listed
    size = 0 if blocks is None else min(blocks.n_rows, blocks.n_columns)
    if blocks is not None and is_cheap(size) and k <= blocks.n_values:
        return "exact", "K couples no two units"
    if is_small(op):
        return "exact", "small"
    if 2 * k > n:
        return "exact", "most modes are asked for"
    numbers = (n if op.root is None else min(n, op.root.domain.total)) * 4 * (k + 2)
    if numbers * op.dtype.itemsize > op.parts.least(free_bytes(op.device)) // 4:
        return "lobpcg", "no memory for a basis"
    return "block-krylov", "large"


def _residual(
    op: TrajectoryOperator,
    values: Float[Tensor, " mode"],
    block: Float[Tensor, " mode *dims"],
    largest: float,
) -> Float[Tensor, " mode"]:
    """||A v - lambda v|| / max |lambda|, the greatest magnitude being `largest` if it is known."""
    gap = flatten_vectors(op.apply(block)) - values[:, None] * flatten_vectors(block)
    lengths = VectorSpace.of(op, op.domain).lengths(gap)
    return relative(values, lengths, largest=largest)
