"""Leading eigenpairs of self-adjoint operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops.engines.memory import free_bytes
from kpops.operators.base import TrajectoryOperator
from kpops.operators.foreign import as_operator
from kpops.spectral import common, exact, scaling, structure
from kpops.spectral.solvers.arpack import arpack
from kpops.spectral.solvers.eigenproblem import FEW, EigenProblem, block_lanczos
from kpops.spectral.solvers.krylov import AT_LEAST, Lanczos, Modes, run
from kpops.spectral.solvers.search import Progress, Search
from kpops.spectral.solvers.subspace import iterate, lobpcg

METHODS: dict[str, Callable[..., Modes]] = {
    "block-krylov": block_lanczos,
    "lobpcg": lobpcg,
    "randomized": iterate,
    "arpack": arpack,
}
MAX_MATVECS = 20_000


@common.in_full_precision
def eigsh(
    op: Any,
    k: int = 6,
    *,
    method: str = "auto",
    tol: float = 1e-6,
    max_matvecs: int | None = None,
    block_size: int | None = None,
    rng: Any = None,
    callback: Callable[[Progress], Any] | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Leading eigenvalues and eigenfunctions of a self-adjoint operator.

    Parameters
    ----------
    op : TrajectoryOperator, LinearOperator or array_like
        Self-adjoint, n x n.
    k : int
        Number of modes, 1 to n: those of largest magnitude.
    method : {"auto", "exact", "block-krylov", "lobpcg", "randomized", "arpack"}
        ``"exact"``: from the structure of the operator (K of a gated cell is block diagonal over
        units, P P* over trials) or from its matrix. ``"block-krylov"``: randomised block Lanczos
        with full reorthogonalisation and thick restart. ``"lobpcg"``: conjugate gradients, which
        keep three blocks of vectors and no more. ``"randomized"``: subspace iteration, for spectra
        that fall fast. ``"arpack"``: SciPy's Lanczos method, on the host and one vector at a time.
        ``"auto"``: exact where structure or size make it cheap, or when most modes are asked for;
        block-krylov else, or lobpcg where there is no memory for its basis.
    tol : float
        Relative residual ``||A v - lambda v|| / max|lambda|`` to reach; not below 64 rounding
        units of the dtype.
    max_matvecs : int, optional
        Products at most, 20,000 by default; when they are spent, the best so far is returned.
    block_size : int, optional
        Vectors of a block. After blocks of less than k vectors, which may miss copies of a repeated
        eigenvalue, a second search makes sure that no mode is missing. Block-krylov starts by
        default with such, as they take fewer products, and goes on to k + 2 if any is.
    rng : int, Generator or None
        Start vectors.
    callback : callable, optional
        Called now and then with a named tuple of ``num_matvecs``, ``values`` and ``residuals``; if
        it returns True, the best so far is returned.
    progress : bool
        Show the number of products so far.

    Returns
    -------
    Dataset
        ``eigenvalue(mode)``, of falling magnitude; ``eigenfunction(mode, *dims)`` of unit norm,
        its entry of largest magnitude positive; ``residual(mode)``, relative to the largest
        eigenvalue; ``converged(mode)``; ``cluster(mode)``, a number that modes share whose
        eigenvalues are too close for their residuals to tell them apart: their eigenfunctions are
        then any basis of a common space. Modes that were not found are NaN. The attributes say
        which method was used and why (``method``, ``chosen``), how many products it took
        (``num_matvecs``) and the ``noise_floor`` of the dtype.

    Raises
    ------
    ValueError
        If `op` is not self-adjoint or not finite, or an argument is out of range.
    MemoryError
        If the matrix of ``method="exact"`` would not fit.

    Warns
    -----
    ConvergenceWarning
        If some modes did not reach `tol`.

    Notes
    -----
    Iterations run in the smallest space that has the spectrum: ``P K P* = R R*`` with R = P F,
    where F is a thin factor of K, so that vectors of the basis are those of ``R* R``, often ten
    times shorter; and on all trials side by side where the operator couples none.

    For each mode some eigenvalue lies within ``residual * max|eigenvalue|`` of the one given. That
    none of the leading ones is missing cannot be known from products alone. A Krylov space from a
    random block of k vectors or more has, with probability one, a part along every copy that is
    wanted; after all other methods a second search from a fresh random block, off the modes found,
    looks for larger ones, until the largest that is left has converged, or one would have been
    missed with a chance of less than 1e-6 (after Kuczynski and Wozniakowski 1992, Estimating the
    largest eigenvalue by the power and Lanczos algorithms with a random start). Where it finds
    some, or comes to no end, no mode counts as converged.

    Examples
    --------
    >>> import numpy as np, kpops
    >>> kpops.eigsh(np.diag([3.0, -5.0, 1.0]), k=2).eigenvalue.values
    array([-5.,  3.])
    """
    op = as_operator(op)
    common.check_k(k, op.shape[0])
    if method not in ("auto", "exact", *METHODS):
        raise ValueError(f"method={method!r}: choose 'auto', 'exact' or one of {list(METHODS)}")
    common.require_self_adjoint(op)
    rng = np.random.default_rng(rng)
    whole, (op, unit) = op, scaling.normalized(op, rng)
    search = start(op, k, tol, max_matvecs, block_size, rng, callback, progress)
    chosen = "asked for"
    if method == "auto":
        method, chosen = _choose(op, k)
    before = op.num_matvecs
    if method == "exact":
        values, block, how = exact.leading(op, k)
        chosen, sure, used = f"{chosen}: {how}", k, op.num_matvecs - before + 1
    else:
        problem = EigenProblem(op, k, together=method == "arpack")
        values, block, sure = solve(problem, method, search, block_size)
        chosen, used = f"{chosen}: in {problem.where}", search.spent + 1

    block = block * common.fix_signs(block).reshape(-1, *[1] * len(op.domain.shape))
    residual = _residual(op, values, block)
    used += len(block)
    converged = common.verdict(residual, tol, f"eigsh by {method}", sure)
    return xr.Dataset(
        {
            **common.mode_variables(
                {
                    "eigenvalue": (scaling.undone(values, unit, whole, "spectrum"), "eigenvalue"),
                    "residual": (residual, "relative residual"),
                    "converged": (converged, "whether the residual meets the tolerance"),
                    "cluster": (common.clusters(values, residual), "modes not told apart"),
                }
            ),
            "eigenfunction": common.modes_of(block, op.domain, "eigenfunction"),
        },
        attrs={
            **common.configuration(whole, k=int(k), method=method, tol=tol),
            "method": method,
            "chosen": chosen,
            "num_matvecs": used,
            "noise_floor": common.noise_floor(op.torch_dtype),
        },
    )


def start(
    op: TrajectoryOperator,
    k: int,
    tol: float,
    max_matvecs: int | None,
    block_size: int | None,
    rng: Any,
    callback: Callable[[Progress], Any] | None,
    progress: bool,
) -> Search:
    """Check what a search is told."""
    if not tol > 0:
        raise ValueError(f"tol={tol}: choose a positive relative residual, for example 1e-6")
    if max_matvecs is not None and max_matvecs < 1:
        raise ValueError(f"max_matvecs={max_matvecs}: choose a positive number of products")
    if block_size is not None and block_size < 1:
        raise ValueError(f"block_size={block_size}: choose a positive number of vectors")
    noise = common.noise_floor(op.torch_dtype)
    budget = MAX_MATVECS if max_matvecs is None else max_matvecs
    return Search(
        int(k),
        max(tol, noise),
        budget,
        np.random.default_rng(rng),
        callback,
        progress,
        rounding=noise / 4,
    )


def solve(
    problem: EigenProblem, method: str, search: Search, block_size: int | None
) -> tuple[Tensor, Tensor, int]:
    """Eigenvalues, eigenfunctions, and how many are known to be the leading ones."""
    if method == "block-krylov" and block_size is None:
        modes, sure = _in_blocks(problem, search)
    else:
        size = block_size or search.k + 2
        modes = METHODS[method](problem.act, problem.family, search, size)
        sees_all = method == "arpack" or (method == "block-krylov" and size >= search.k)
        sure = modes.sure if sees_all else _vouched(problem, modes, search)
    search.close()
    values, block = problem.lift(modes)
    missing = search.k - len(values)
    if missing:
        values = torch.cat([values, values.new_full((missing,), torch.nan)])
        block = torch.cat([block, block.new_full((missing, *block.shape[1:]), torch.nan)])
    return values, block, sure


def _in_blocks(problem: EigenProblem, search: Search) -> tuple[Modes, int]:
    """Block Krylov from few vectors, which takes fewer products; from more if copies are missing.

    A block of k vectors sees every copy of a repeated eigenvalue that is wanted.
    """
    process = Lanczos(problem.act, problem.family, search, FEW)
    modes = run(process, search, FEW)
    if search.k <= FEW:
        return modes, modes.sure
    sure = _vouched(problem, modes, search, process)
    enough = search.budget - search.spent > AT_LEAST * (search.k + 2)
    if sure == search.k or search.stopped or not enough:
        return modes, sure
    modes = block_lanczos(problem.act, problem.family, search, search.k + 2)
    return modes, modes.sure


def _vouched(
    problem: EigenProblem, modes: Modes, search: Search, process: Lanczos | None = None
) -> int:
    """The number of modes if a second search misses none, else 0."""
    return search.k if modes.sure == search.k and problem.vouch(modes, search, process) else 0


def _choose(op: TrajectoryOperator, k: int) -> tuple[str, str]:
    n = op.shape[0]
    blocks = op.unit_blocks()
    size = 0 if blocks is None else min(blocks.n_rows, blocks.n_columns)
    if blocks is not None and size <= structure.DENSE_SIZE and k <= size * blocks.n_units:
        return "exact", "K couples no two units"
    if structure.is_small(op):
        return "exact", "small"
    if 2 * k > n:
        return "exact", "most modes are asked for"
    numbers = (n if op.root is None else min(n, op.root.domain.size)) * 4 * (k + 2)
    if numbers * op.dtype.itemsize > free_bytes(op.device) // 4:
        return "lobpcg", "no memory for a basis"
    return "block-krylov", "large"


def _residual(op: TrajectoryOperator, values: Tensor, block: Tensor) -> Tensor:
    """||A v - lambda v|| / max |lambda|, mode by mode; NaN for modes that were not found."""
    found = values.isfinite()
    residual = torch.full_like(values, torch.nan)
    if found.any():
        vectors = common.columns(block[found])
        image = common.columns(op.apply(block[found]))
        gap = image - values[found, None] * vectors
        residual[found] = common.relative(values[found], gap)
    return residual
