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
        Modes of largest magnitude, or at one end of the spectrum: largest or smallest
        algebraically.
    v0 : Tensor, array_like or DataArray, optional
        A vector of the domain of `op`, or a block of them with the leading dimension ``mode``, near
        the modes: for example the ``eigenfunction`` of an earlier result. Iterations start there,
        block-krylov from one random mixture of them, and take somewhat fewer matvecs: in a Krylov
        space a decade of accuracy costs only a few. A second search still certifies that no mode is
        missing; for k of 1 or 2 it costs about what `v0` saves. Vectors of NaN are ignored.
    method : {"auto", "exact", "block-krylov", "lobpcg", "arpack"}
        ``"exact"``: from the structure of the operator (K of a gated cell is block diagonal over
        units, P P* over trials) or from its matrix. ``"block-krylov"``: randomised block Lanczos
        with full reorthogonalisation and thick restart. ``"lobpcg"``: conjugate gradients, which
        store only three blocks of vectors. ``"arpack"``: SciPy's Lanczos method, on the host and
        one vector at a time. ``"auto"``: exact if structure or size make it cheap, or if most modes
        are wanted; otherwise block-krylov, or lobpcg if its basis does not fit in memory.
    tol : float
        Target of the relative residual ``||A v - lambda v|| / max|lambda|``; at least 64 rounding
        units of the dtype.
    max_matvecs : int, optional
        Budget of matvecs, 20,000 by default. When it is spent, the best modes so far are returned.
    block_size : int, optional
        Vectors in a block. Blocks of fewer than k vectors take fewer matvecs, but may miss copies
        of a repeated eigenvalue; a second search then certifies that no mode is missing.
        Block-krylov starts with such a block by default, and takes k + 2 vectors if one is.
    rng : int, Generator or None
        Source of the start vectors.
    callback : callable, optional
        Called regularly with a named tuple of ``num_matvecs``, ``values`` and ``residuals``. If it
        returns True, the best modes so far are returned.
    progress : bool
        Show the matvecs so far, the modes found and the residual of the others.
    on_interrupt : {"raise", "return"}
        What Ctrl-C does during an iteration. With ``"return"``, the first one ends it after the
        current matvec and returns the best modes so far, with a warning; those that are not
        certified are marked as not converged. The second one raises. An exact method has nothing
        to return before its end, so Ctrl-C raises there.

    Returns
    -------
    Dataset
        ``eigenvalue(mode)``, in order of falling magnitude, or from the end of the spectrum
        inwards; ``eigenfunction(mode, *dims)`` of unit norm, its entry of largest magnitude
        positive; ``residual(mode)``, relative to the eigenvalue of largest magnitude;
        ``converged(mode)``; ``cluster(mode)``, a number shared by modes whose eigenvalues are too
        close for their residuals to separate: their eigenfunctions are any basis of a common space.
        Modes that were not found are NaN. Attributes: ``method``, and ``chosen``, why;
        ``num_matvecs``, the matvecs spent; ``noise_floor`` of the dtype.

    Raises
    ------
    ValueError
        If `op` is not self-adjoint or not finite, or an argument is out of range; if most modes are
        wanted, and the decomposition that ``"auto"`` chooses would take more than ten minutes.
    MemoryError
        If the matrix of ``method="exact"`` would not fit.

    Warns
    -----
    ConvergenceWarning
        If some modes did not reach `tol`.

    Notes
    -----
    Iterations run in the smallest space that has the spectrum. For ``P K P* = R R*`` with R = P F
    and F a thin factor of K, this is the space of ``R* R``, whose vectors are often ten times
    shorter. Trials that are not coupled are solved side by side.

    Each value has an eigenvalue within ``residual * max|eigenvalue|``. Matvecs alone cannot prove
    that no leading mode is missing. A Krylov space from a random block of at least k vectors has,
    with probability one, a component along every wanted copy. After all other methods, and after
    any `v0`, a second search starts from a fresh random block, with the modes deflated, and looks
    for larger ones. It ends when the largest mode that is left has converged, or when a larger one
    would have been missed with a probability below 1e-6 (after Kuczynski and Wozniakowski 1992,
    Estimating the largest eigenvalue by the power and Lanczos algorithms with a random start). If
    it finds a larger mode, or does not end, no mode counts as converged.

    For one end of the spectrum, the same is done with ``s + A`` or ``s - A``, where s is a tenth
    above the largest magnitude, which a search for one mode finds first.

    Examples
    --------
    >>> import numpy as np, kpops
    >>> kpops.eigsh(np.diag([3.0, -5.0, 1.0]), k=2).eigenvalue.values
    array([-5.,  3.])
    """
    op = as_operator(op, spread=True)
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
    functions = {"eigenfunction": modes_of(found.vectors[0], op.domain, "eigenfunction")}
    settings = {"k": int(k), "which": which, "tol": tol}
    return modes_dataset(op, found, "eigenvalue", "eigenvalue", functions, **settings)
