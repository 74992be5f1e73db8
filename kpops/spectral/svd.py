"""Leading singular triplets of any operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import xarray as xr
from torch import Tensor

from kpops import work
from kpops.linalg.eigenpairs import Options
from kpops.linalg.search import Progress
from kpops.linalg.triplets import singular_triplets
from kpops.operators.base import TrajectoryOperator, as_method
from kpops.operators.foreign import as_operator
from kpops.precision import in_full_precision
from kpops.scalars import check_modes
from kpops.spectral._result import modes_dataset, modes_of
from kpops.spectral.start_vectors import start_vectors


@as_method
@in_full_precision
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
        Start vectors near the right singular functions, in the domain of `op`: for example
        ``right`` of an earlier result. As for :func:`kpops.eigsh`.
    method : {"auto", "exact", "block-krylov", "lobpcg", "arpack"}
        ``"exact"`` decomposes the matrix, or that of each trial if trials are not coupled.
        ``"block-krylov"`` is that of :func:`kpops.eigsh` on the smaller of ``A* A`` and ``A A*``.
        If their rounding would cost digits that `tol` requires, it is block Lanczos
        bidiagonalisation, with full reorthogonalisation of both sides and thick restart.
        ``"lobpcg"`` and ``"arpack"`` are those of :func:`kpops.eigsh` on ``A* A`` or ``A A*``; they
        lose singular values below about the square root of the rounding unit times the largest.
        ``"auto"`` is exact up to a size of 1024 or if most modes are wanted; otherwise
        block-krylov, or lobpcg if its bases do not fit in memory.
    tol : float
        Target of the relative residual ``max(||A v - s u||, ||A* u - s v||) / max s``; at least 64
        rounding units of the dtype.
    max_matvecs, block_size, rng, callback, progress, on_interrupt
        As for :func:`kpops.eigsh`. Matvecs with A and with A* both count.

    Returns
    -------
    Dataset
        ``singular_value(mode)``, falling; ``left(mode, *codomain)`` and ``right(mode, *domain)`` of
        unit norm; ``residual(mode)``; ``converged(mode)``; ``cluster(mode)``, a number shared by
        modes that cannot be separated. A dimension whose size or labels differ between domain and
        codomain gets the suffix ``_in`` in ``right``. Attributes as for :func:`kpops.eigsh`.

    Raises
    ------
    ValueError
        If an argument is out of range, or the operator is not finite; if most modes are wanted,
        and the decomposition that ``"auto"`` chooses would take more than ten minutes.
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
    op = as_operator(op, spread=True)
    check_modes(k, min(op.shape))
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
    found = singular_triplets(op, k, options)
    left, right = found.vectors
    functions = {
        "left": modes_of(left, op.codomain, "left singular function"),
        "right": _right_modes(op, right),
    }
    settings = {"k": int(k), "tol": tol}
    return modes_dataset(op, found, "singular_value", "singular value", functions, **settings)


def _right_modes(op: TrajectoryOperator, rights: Tensor) -> xr.DataArray:
    """Label right singular functions, apart from left ones where sizes or labels differ."""
    modes = modes_of(rights, op.domain, "right singular function")
    shared = set(op.domain.dims) & set(op.codomain.dims)
    labelled_apart = op.domain.misaligned(op.codomain) if shared == set(op.domain.dims) else []
    clash = [d for d in shared if op.domain.sizes[d] != op.codomain.sizes[d] or d in labelled_apart]
    of_clash = [str(c) for c in modes.coords if set(modes[c].dims) & set(clash)]
    return modes.rename({name: f"{name}_in" for name in {*clash, *of_clash}})
