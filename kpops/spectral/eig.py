"""Leading eigenpairs of self-adjoint operators."""

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
from kpops.kinds import described
from kpops.operators.base import TrajectoryOperator, as_method
from kpops.operators.foreign import as_operator
from kpops.scalars import check_count, check_real
from kpops.scalars import generator as seeded
from kpops.spectral import common, exact, scaling, structure
from kpops.spectral.solvers.arpack import arpack
from kpops.spectral.solvers.eigenproblem import FEW, EigenProblem, block_lanczos
from kpops.spectral.solvers.krylov import AT_LEAST, Lanczos, Modes, run
from kpops.spectral.solvers.search import Progress, Search
from kpops.spectral.solvers.subspace import iterate, lobpcg
from kpops.spectral.start_vectors import start_vectors

METHODS: dict[str, Callable[..., Modes]] = {
    "block-krylov": block_lanczos,
    "lobpcg": lobpcg,
    "randomized": iterate,
    "arpack": arpack,
}
MAX_MATVECS = 20_000
_CHOICE = "'LM' (largest magnitude), 'LA' or 'SA' (largest or smallest algebraically)"
_ENDS = {
    "BE": "'LA' and 'SA', one call for each end",
    "SM": "'SA' for a positive operator, or take 'LM' of the inverse, such as lin.P_inv's",
    **dict.fromkeys(("LR", "LI", "SR", "SI"), f"{_CHOICE}: eigenvalues are real"),
}


@as_method
@common.in_full_precision
@work.shown
def eigsh(
    op: Any,
    k: int = 6,
    *,
    which: str = "LM",
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
    """Leading eigenvalues and eigenfunctions of a self-adjoint operator.

    Parameters
    ----------
    op : TrajectoryOperator, LinearOperator or array_like
        Self-adjoint, n x n.
    k : int
        Number of modes, 1 to n.
    which : {"LM", "LA", "SA"}
        Those of largest magnitude, or at one end of the spectrum: the largest, or the smallest
        algebraically.
    v0 : Tensor, array_like or DataArray, optional
        A vector of the domain of `op`, or a block of them with the leading dim ``mode``, near the
        modes: for example the ``eigenfunction`` of an earlier result. Iterations start there and
        take fewer products the nearer it is. No mode is missing all the same: a second search makes
        sure, which takes about what is saved where k is 1 or 2. Vectors of NaN are left out.
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
        Show the matvecs so far, the modes found and the residual of the others.
    on_interrupt : {"raise", "return"}
        What Ctrl-C does while it iterates: with ``"return"`` the first one ends it after the matvec
        under way, with the best so far, a warning, and what is not certain marked as not converged;
        the second one raises. An exact method has no best so far: there, Ctrl-C raises.

    Returns
    -------
    Dataset
        ``eigenvalue(mode)``, of falling magnitude, or from the end inwards; ``eigenfunction(mode,
        *dims)`` of unit norm, its entry of largest magnitude positive; ``residual(mode)``, relative
        to the eigenvalue of largest magnitude; ``converged(mode)``; ``cluster(mode)``, a number
        that modes share whose eigenvalues are too close for their residuals to tell them apart:
        their eigenfunctions are then any basis of a common space. Modes that were not found are
        NaN. The attributes say which method was used and why (``method``, ``chosen``), how many
        products it took (``num_matvecs``) and the ``noise_floor`` of the dtype.

    Raises
    ------
    ValueError
        If `op` is not self-adjoint or not finite, or an argument is out of range; if most modes are
        wanted, which ``"auto"`` finds by a decomposition that will take more than ten minutes.
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
    wanted; after all other methods, and from any `v0`, a second search from a fresh random block,
    off the modes found, looks for larger ones, until the largest that is left has converged, or one
    would have been missed with a chance of less than 1e-6 (after Kuczynski and Wozniakowski 1992,
    Estimating the largest eigenvalue by the power and Lanczos algorithms with a random start).
    Where it finds some, or comes to no end, no mode counts as converged.

    For one end of the spectrum, the same is done with ``s + A`` or ``s - A``, where s is a tenth
    above the largest magnitude, which a search for one mode finds first.

    Examples
    --------
    >>> import numpy as np, kpops
    >>> kpops.eigsh(np.diag([3.0, -5.0, 1.0]), k=2).eigenvalue.values
    array([-5.,  3.])
    """
    op = as_operator(op)
    if op.domain != op.codomain:
        raise ValueError(
            f"{op!r} maps no space to itself, and so is not self-adjoint: use kpops.svds, or eigsh "
            "of op @ op.H"
        )
    common.check_k(k, op.shape[0])
    if method not in ("auto", "exact", *METHODS):
        raise ValueError(f"method={method!r}: choose 'auto', 'exact' or one of {list(METHODS)}")
    if which not in exact.ENDS:
        raise ValueError(f"which={which!r}: choose {_ENDS.get(which, _CHOICE)}")
    common.require_self_adjoint(op)
    work.check_on_interrupt(on_interrupt)
    near = start_vectors(op, v0)
    rng = seeded(rng)
    with work.held(on_interrupt):
        whole, (op, unit) = op, scaling.normalized(op, rng)
    search = start(op, k, tol, max_matvecs, block_size, rng, callback)
    chosen, insist = "asked for", "method='exact'" if method == "auto" else ""
    if method == "auto":
        method, chosen = _choose(op, k, which)
    before = op.num_matvecs
    if method == "exact":
        work.refuse_interrupted()
        values, block, how, largest = exact.leading(op, k, which, insist)
        chosen, sure, used = f"{chosen}: {how}", k, op.num_matvecs - before + 1
        residual = _residual(op, values, block, largest)
    else:
        with work.held(on_interrupt):
            shift, largest = _shift(op, which, search)
            problem = EigenProblem(op, k, together=method == "arpack", **shift)
            values, block, sure = solve(problem, method, search, block_size, near)
            residual = _residual(op, values, block, largest)
        chosen, used = f"{chosen}: in {problem.where}", search.spent + 1

    block = block * common.fix_signs(block).reshape(-1, *[1] * len(op.domain.shape))
    used += len(block)
    converged = common.verdict(residual, tol, f"eigsh by {method}", sure)
    return xr.Dataset(
        {
            **common.mode_variables(
                {
                    "eigenvalue": (scaling.undone(values, unit, whole, "spectrum"), "eigenvalue"),
                    "residual": (residual, "relative residual"),
                    "converged": (converged, "whether the residual meets the tolerance"),
                    "cluster": (_clusters(values, residual, largest), "modes not told apart"),
                }
            ),
            "eigenfunction": common.modes_of(block, op.domain, "eigenfunction"),
        },
        coords=common.identity(op),
        attrs={
            **common.configuration(whole, k=int(k), which=which, method=method, tol=tol),
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
    noise = common.noise_floor(op.torch_dtype)
    budget = MAX_MATVECS if max_matvecs is None else max_matvecs
    return Search(
        int(k),
        max(tol, noise),
        budget,
        seeded(rng),
        callback,
        rounding=noise / 4,
    )


def _shift(op: TrajectoryOperator, which: str, search: Search) -> tuple[dict[str, float], float]:
    """The shift that makes the end that is wanted that of largest magnitude, and this magnitude.

    It is not needed, and zero, for those of largest magnitude.
    """
    if which == "LM" or (which == "LA" and op.positive):
        return {}, 0.0
    first = replace(search, k=1, tol=max(search.tol, 1e-2), callback=None)
    problem = EigenProblem(op, 1)
    modes = block_lanczos(problem.act, problem.family, first, FEW)
    search.spend(first.spent + 1)
    search.over |= modes.sure < 1
    largest = float(modes.values[0].abs())
    return {"sign": 1.0 if which == "LA" else -1.0, "shift": 1.1 * largest}, largest


def solve(
    problem: EigenProblem,
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
        search.spend(math.ceil(len(near) / 2) if problem.root is not None else 0)
    if method == "block-krylov" and block_size is None:
        modes, sure = _in_blocks(problem, search)
    else:
        size = block_size or search.k + 2
        modes = METHODS[method](problem.act, problem.family, search, size)
        random = near is None and method == "block-krylov"
        sees_all = method == "arpack" or (random and size >= search.k)
        sure = modes.sure if sees_all else _vouched(problem, modes, search)
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
    if search.k <= FEW and search.near is None:
        return modes, modes.sure
    # Of what the basis knows beside the modes, one from `near` knows too little to set it aside.
    sure = _vouched(problem, modes, search, process if search.near is None else None)
    enough = search.budget - search.spent > AT_LEAST * (search.k + 2)
    if sure == search.k or search.stopped or not enough:
        return modes, sure
    search.near = None
    modes = block_lanczos(problem.act, problem.family, search, search.k + 2)
    return modes, modes.sure


def _vouched(
    problem: EigenProblem, modes: Modes, search: Search, process: Lanczos | None = None
) -> int:
    """The number of modes if a second search misses none, else 0."""
    return search.k if modes.sure == search.k and problem.vouch(modes, search, process) else 0


def _choose(op: TrajectoryOperator, k: int, which: str) -> tuple[str, str]:
    n = op.shape[0]
    blocks = op.unit_blocks() if which != "SA" else None  # whose zeros are not listed
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


def _residual(op: TrajectoryOperator, values: Tensor, block: Tensor, largest: float) -> Tensor:
    """||A v - lambda v|| / max |lambda|, mode by mode; NaN for modes that were not found.

    `largest` is the greatest magnitude of an eigenvalue, as far as it is known.
    """
    found = values.isfinite()
    residual = torch.full_like(values, torch.nan)
    if found.any():
        vectors = common.columns(block[found])
        image = common.columns(op.apply(block[found]))
        gap = image - values[found, None] * vectors
        every = torch.cat([values[found], values.new_tensor([largest])])
        gap = torch.cat([gap, gap.new_zeros(1, gap.shape[1])])
        residual[found] = common.relative(every, gap)[:-1]
    return residual


def _clusters(values: Tensor, residual: Tensor, largest: float) -> Tensor:
    """Groups of modes that are not told apart; see :func:`kpops.spectral.common.clusters`."""
    every = torch.cat([values, values.new_tensor([largest])])
    return common.clusters(every, torch.cat([residual, residual.new_zeros(1)]))[:-1]
