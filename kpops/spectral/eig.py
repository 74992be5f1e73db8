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
    ARPACK: Lehoucq, Sorensen and Yang (1998), ARPACK Users' Guide. Repeated eigenvalues are the
    rule here (a linear RNN has K = M M^T kron I), and a Krylov method from one vector may skip
    copies of them. The operator is therefore searched again off the modes found, until no larger
    one is left.

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
        vouched = True
    elif method == "arpack":
        values, vectors, vouched = _arpack(op, k, tol, max_iterations, rng, progress)
    else:
        raise ValueError(f"method={method!r}: choose 'auto', 'exact' or 'arpack'")
    used = op.num_matvecs - before

    vectors = vectors * common.fix_signs(vectors)[:, None]
    block = vectors.reshape(-1, *op.domain.shape)
    residual = _residual(op, values, block)
    converged = common.verdict(residual, tol, f"eigsh by {method}", vouched=vouched)
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
) -> tuple[Tensor, Tensor, bool]:
    """Leading k eigenpairs, vectors as rows, NaN where none was found; and whether they are those.

    From one start vector, Lanczos sees one copy of a repeated eigenvalue; ARPACK finds the others
    by rounding, or not at all, and then goes on to smaller ones. So it looks again, from a fresh
    vector, off the modes that it has: until nothing larger than the least of them is left.
    """
    n = op.shape[0]
    if k >= n:
        raise ValueError(f"k={k}: ARPACK finds at most n - 1 = {n - 1} modes; use method='exact'")
    rng = np.random.default_rng(rng)
    probe = common.random_block(op, op.domain, 1, rng)
    scale = float(op.apply(probe).norm() / probe.norm())  # ARPACK's test of convergence is absolute
    if scale == 0:
        # A random vector in the null space shows that the operator is zero.
        basis = torch.linalg.qr(common.columns(common.random_block(op, op.domain, k, rng)).T)[0]
        return probe.new_zeros(k), basis.T, True
    bar = tqdm(disable=not progress, desc="eigsh", unit=" products")

    def run(found: np.ndarray, k: int, tol: float) -> tuple[np.ndarray, np.ndarray]:
        def off_found(x: np.ndarray) -> np.ndarray:
            return x - found @ (found.T @ x)

        def matvec(x: np.ndarray) -> np.ndarray:
            bar.update()
            return off_found(op.matvec(off_found(x.ravel())) / op.dtype.type(scale))

        start = off_found(rng.standard_normal(n).astype(op.dtype))
        if np.linalg.norm(matvec(start)) <= common.noise_floor(op.torch_dtype) * n**0.5:
            return np.zeros(k, op.dtype), np.zeros((n, k), op.dtype)  # nothing is left
        linear = scipy.sparse.linalg.LinearOperator(op.shape, matvec=matvec, dtype=op.dtype)
        try:
            values, vectors = scipy.sparse.linalg.eigsh(
                linear, k, which="LM", tol=tol, maxiter=max_iterations, v0=start
            )
        except scipy.sparse.linalg.ArpackNoConvergence as stopped:
            values, vectors = stopped.eigenvalues, stopped.eigenvectors
        order = np.argsort(-np.abs(values))
        return values[order], vectors[:, order]

    with bar:
        # A quarter of the tolerance: ARPACK stops by a bound of its own, near the residual.
        values, vectors = run(np.zeros((n, 0), op.dtype), k, tol / 4)
        complete = len(values) == k
        while complete and vectors.shape[1] < n - 1:
            more, another = run(vectors, 1, tol / 4)
            complete = len(more) == 1
            least = np.sort(np.abs(values))[-k]
            if not complete or np.abs(more[0]) <= least * (1 + max(tol, 1e-6)):
                break
            values, vectors = np.append(values, more), np.hstack([vectors, another])
    order = np.argsort(-np.abs(values))[:k]
    out_values = torch.full((k,), torch.nan, dtype=op.torch_dtype, device="cpu")
    out_vectors = torch.full((k, n), torch.nan, dtype=op.torch_dtype, device="cpu")
    out_values[: len(order)] = torch.from_numpy(scale * values[order])
    out_vectors[: len(order)] = torch.from_numpy(np.ascontiguousarray(vectors[:, order].T))
    return out_values.to(op.device), out_vectors.to(op.device), complete


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
