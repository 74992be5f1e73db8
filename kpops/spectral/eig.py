"""Leading eigenpairs of self-adjoint operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import xarray as xr

from kpops import work
from kpops.linalg.eigenpairs import Options, eigenpairs
from kpops.linalg.exact import ENDS
from kpops.linalg.search import Progress
from kpops.linalg.symmetry import require_self_adjoint
from kpops.operators.base import as_method
from kpops.operators.foreign import as_operator
from kpops.precision import in_full_precision
from kpops.scalars import check_modes
from kpops.spectral._result import modes_dataset, modes_of
from kpops.spectral.start_vectors import start_vectors

_CHOICE = "'LM' (largest magnitude), 'LA' or 'SA' (largest or smallest algebraically)"
_ENDS = {
    "BE": "'LA' and 'SA', one call for each end",
    "SM": "'SA' for a positive operator, or take 'LM' of the inverse, such as lin.P_inv's",
    **dict.fromkeys(("LR", "LI", "SR", "SI"), f"{_CHOICE}: eigenvalues are real"),
}


@as_method
@in_full_precision
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
    method : {"auto", "exact", "block-krylov", "lobpcg", "arpack"}
        ``"exact"``: from the structure of the operator (K of a gated cell is block diagonal over
        units, P P* over trials) or from its matrix. ``"block-krylov"``: randomised block Lanczos
        with full reorthogonalisation and thick restart. ``"lobpcg"``: conjugate gradients, which
        keep three blocks of vectors and no more. ``"arpack"``: SciPy's Lanczos method, on the host
        and one vector at a time. ``"auto"``: exact where structure or size make it cheap, or when
        most modes are asked for; block-krylov else, or lobpcg where there is no memory for its
        basis.
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
    check_modes(k, op.shape[0])
    if which not in ENDS:
        raise ValueError(f"which={which!r}: choose {_ENDS.get(which, _CHOICE)}")
    options = Options(
        near=start_vectors(op, v0),
        method=method,
        tol=tol,
        max_matvecs=max_matvecs,
        block_size=block_size,
        rng=rng,
        callback=callback,
        on_interrupt=on_interrupt,
    )
    require_self_adjoint(op)
    found = eigenpairs(op, k, options, which=which)
    result = modes_dataset(op, found, "eigenvalue", "eigenvalue", k=int(k), which=which, tol=tol)
    return result.assign(eigenfunction=modes_of(found.vectors[0], op.domain, "eigenfunction"))
