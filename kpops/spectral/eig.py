"""Leading eigenpairs of self-adjoint operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse.linalg
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from kpops.operators.base import TrajectoryOperator
from kpops.operators.foreign import as_operator
from kpops.spectral import common


def eigsh(
    op: Any,
    k: int = 6,
    *,
    method: str = "auto",
    tol: float = 1e-6,
    max_iterations: int | None = None,
    rng: Any = None,
    progress: bool = False,
) -> xr.Dataset:
    """Leading eigenvalues and eigenfunctions of a self-adjoint operator.

    Parameters
    ----------
    op : TrajectoryOperator, LinearOperator or array_like
        Self-adjoint, n x n.
    k : int
        Number of modes, 1 to n: those of largest magnitude.
    method : {"auto", "exact", "arpack"}
        ``"exact"`` forms the matrix and diagonalises it; ``"arpack"`` is SciPy's Lanczos method;
        ``"auto"`` is exact up to n = 1024, or when most modes are asked for.
    tol : float
        Relative residual ``||A v - lambda v|| / max|lambda|`` to reach.
    max_iterations : int, optional
        Restarts of ARPACK at most; default 10 n.
    rng : int, Generator or None
        Start vector of ARPACK.
    progress : bool
        Show the number of products so far.

    Returns
    -------
    Dataset
        ``eigenvalue(mode)``, of falling magnitude; ``eigenfunction(mode, *dims)`` of unit norm,
        its entry of largest magnitude positive; ``residual(mode)``, relative to the largest
        eigenvalue; ``converged(mode)``. Modes that ARPACK did not find are NaN.

    Raises
    ------
    ValueError
        If `op` is not self-adjoint, `k` is out of range or `method` unknown.
    MemoryError
        If the matrix of ``method="exact"`` would not fit.

    Warns
    -----
    ConvergenceWarning
        If some modes did not reach `tol`.

    Notes
    -----
    ARPACK: Lehoucq, Sorensen and Yang (1998), ARPACK Users' Guide.

    Examples
    --------
    >>> import numpy as np, kpops
    >>> kpops.eigsh(np.diag([3.0, -5.0, 1.0]), k=2).eigenvalue.values
    array([-5.,  3.])
    """
    op = as_operator(op)
    n = op.shape[0]
    common.require_self_adjoint(op)
    common.check_k(k, n)
    if method == "auto":
        method = "exact" if n <= common.DENSE_SIZE or 2 * k > n else "arpack"
    before = op.num_matvecs
    if method == "exact":
        values, vectors = _exact(op, k)
    elif method == "arpack":
        values, vectors = _arpack(op, k, tol, max_iterations, rng, progress)
    else:
        raise ValueError(f"method={method!r}: choose 'auto', 'exact' or 'arpack'")
    used = op.num_matvecs - before

    vectors = vectors * common.fix_signs(vectors)[:, None]
    block = vectors.reshape(-1, *op.domain.shape)
    residual = _residual(op, values, block)
    converged = common.verdict(residual, tol, f"eigsh by {method}")
    return xr.Dataset(
        {
            **common.mode_variables(
                {
                    "eigenvalue": (values, "eigenvalue"),
                    "residual": (residual, "relative residual"),
                    "converged": (converged, "whether the residual meets the tolerance"),
                }
            ),
            "eigenfunction": common.modes_of(block, op.domain, "eigenfunction"),
        },
        attrs={
            **common.configuration(op, k=int(k), method=method, tol=tol),
            "num_matvecs": used,
            "noise_floor": common.noise_floor(op.torch_dtype),
        },
    )


def _exact(op: TrajectoryOperator, k: int) -> tuple[Tensor, Tensor]:
    dense = op.dense_tensor()
    values, vectors = torch.linalg.eigh((dense + dense.T) / 2)
    leading = values.abs().argsort(descending=True)[:k]
    return values[leading], vectors[:, leading].T


def _arpack(
    op: TrajectoryOperator,
    k: int,
    tol: float,
    max_iterations: int | None,
    rng: Any,
    progress: bool,
) -> tuple[Tensor, Tensor]:
    n = op.shape[0]
    if k >= n:
        raise ValueError(f"k={k}: ARPACK finds at most n - 1 = {n - 1} modes; use method='exact'")
    start = common.random_block(op, op.domain, 1, rng)
    if not op.apply(start).any():
        # ARPACK fails on a zero operator. A random vector in its null space shows that it is one.
        basis = torch.linalg.qr(common.columns(common.random_block(op, op.domain, k, rng)).T)[0]
        return start.new_zeros(k), basis.T
    bar = tqdm(disable=not progress, desc="eigsh", unit=" products")

    def matvec(x: np.ndarray) -> np.ndarray:
        bar.update()
        return op.matvec(x)

    linear = scipy.sparse.linalg.LinearOperator(op.shape, matvec=matvec, dtype=op.dtype)
    with bar:
        try:
            values, vectors = scipy.sparse.linalg.eigsh(
                linear,
                k,
                which="LM",
                tol=tol / 4,  # ARPACK stops by a bound of its own, near the residual
                maxiter=max_iterations,
                v0=start.cpu().numpy().ravel(),
            )
        except scipy.sparse.linalg.ArpackNoConvergence as stopped:
            values, vectors = stopped.eigenvalues, stopped.eigenvectors
    found = np.argsort(-np.abs(values))
    out_values = torch.full((k,), torch.nan, dtype=op.torch_dtype)
    out_vectors = torch.full((k, n), torch.nan, dtype=op.torch_dtype)
    out_values[: len(found)] = torch.from_numpy(np.ascontiguousarray(values[found]))
    out_vectors[: len(found)] = torch.from_numpy(np.ascontiguousarray(vectors[:, found].T))
    return out_values.to(op.device), out_vectors.to(op.device)


def _residual(op: TrajectoryOperator, values: Tensor, block: Tensor) -> Tensor:
    """||A v - lambda v|| / max |lambda|, mode by mode; NaN for modes that were not found."""
    found = values.isfinite()
    residual = torch.full_like(values, torch.nan)
    if found.any():
        vectors = common.columns(block[found])
        image = common.columns(op.apply(block[found]))
        gap = (image - values[found, None] * vectors).norm(dim=1)
        residual[found] = gap / values[found].abs().max().clamp_min(torch.finfo(gap.dtype).tiny)
    return residual
