"""Leading singular triplets of any operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops.operators.base import TrajectoryOperator
from kpops.operators.foreign import as_operator
from kpops.spectral import common
from kpops.spectral.eig import _arpack


def svds(
    op: Any,
    k: int = 6,
    *,
    method: str = "auto",
    tol: float = 1e-6,
    max_iterations: int | None = None,
    rng: Any = None,
    progress: bool = False,
) -> xr.Dataset:
    """Leading singular values and functions of an operator.

    Parameters
    ----------
    op : TrajectoryOperator, LinearOperator or array_like
        m x n.
    k : int
        Number of modes, 1 to min(m, n).
    method : {"auto", "exact", "arpack"}
        ``"exact"`` decomposes the matrix; ``"arpack"`` is SciPy's Lanczos method on the smaller of
        ``A* A`` and ``A A*``, which loses singular values below about the square root of the
        rounding unit times the largest; ``"auto"`` is exact up to a size of 1024.
    tol : float
        Relative residual ``max(||A v - s u||, ||A* u - s v||) / max s`` to reach.
    max_iterations : int, optional
        Restarts of ARPACK at most; default ten times the size.
    rng : int, Generator or None
        Start vector of ARPACK.
    progress : bool
        Show the number of products so far.

    Returns
    -------
    Dataset
        ``singular_value(mode)``, falling; ``left(mode, *codomain)`` and ``right(mode, *domain)``
        of unit norm; ``residual(mode)``; ``converged(mode)``. A dim whose size or labels differ
        between domain and codomain gets the suffix ``_in`` in ``right``.

    Raises
    ------
    ValueError
        If `k` is out of range or `method` unknown.
    MemoryError
        If the matrix of ``method="exact"`` would not fit.

    Warns
    -----
    ConvergenceWarning
        If some modes did not reach `tol`.

    Examples
    --------
    >>> import numpy as np, kpops
    >>> kpops.svds(np.array([[0.0, 2.0], [0.0, 0.0]]), k=1).singular_value.values
    array([2.])
    """
    op = as_operator(op)
    common.check_k(k, min(op.shape))
    if method == "auto":
        small = max(op.shape) <= common.DENSE_SIZE or 2 * k > min(op.shape)
        method = "exact" if small else "arpack"
    before = op.num_matvecs
    if method == "exact":
        left, values, right = _exact(op, k)
        vouched = True
    elif method == "arpack":
        left, values, right, vouched = _by_gram(op, k, tol, max_iterations, rng, progress)
    else:
        raise ValueError(f"method={method!r}: choose 'auto', 'exact' or 'arpack'")
    used = op.num_matvecs - before

    signs = common.fix_signs(right)[:, None]
    left, right = signs * left, signs * right
    lefts = left.reshape(-1, *op.codomain.shape)
    rights = right.reshape(-1, *op.domain.shape)
    residual = _residual(op, lefts, values, rights)
    converged = common.verdict(residual, tol, f"svds by {method}", vouched=vouched)
    right_modes = common.modes_of(rights, op.domain, "right singular function")
    shared = set(op.domain.dims) & set(op.codomain.dims)
    labelled_apart = op.domain.misaligned(op.codomain) if shared == set(op.domain.dims) else []
    clash = [d for d in shared if op.domain.sizes[d] != op.codomain.sizes[d] or d in labelled_apart]
    of_clash = [str(c) for c in right_modes.coords if set(right_modes[c].dims) & set(clash)]
    right_modes = right_modes.rename({name: f"{name}_in" for name in {*clash, *of_clash}})
    return xr.Dataset(
        {
            **common.mode_variables(
                {
                    "singular_value": (values, "singular value"),
                    "residual": (residual, "relative residual"),
                    "converged": (converged, "whether the residual meets the tolerance"),
                }
            ),
            "left": common.modes_of(lefts, op.codomain, "left singular function"),
            "right": right_modes,
        },
        attrs={
            **common.configuration(op, k=int(k), method=method, tol=tol),
            "num_matvecs": used,
            "noise_floor": common.noise_floor(op.torch_dtype),
        },
    )


def _exact(op: TrajectoryOperator, k: int) -> tuple[Tensor, Tensor, Tensor]:
    left, values, right = torch.linalg.svd(op.dense_tensor(), full_matrices=False)
    return left[:, :k].T, values[:k], right[:k]


def _by_gram(
    op: TrajectoryOperator,
    k: int,
    tol: float,
    max_iterations: int | None,
    rng: Any,
    progress: bool,
) -> tuple[Tensor, Tensor, Tensor, bool]:
    wide = op.shape[0] < op.shape[1]
    gram = op @ op.H if wide else op.H @ op
    rng = np.random.default_rng(rng)
    _, vectors, vouched = _arpack(gram, k, tol, max_iterations, rng, progress)
    if wide:
        space, other, act = op.codomain, op.domain, op.apply_adjoint
    else:
        space, other, act = op.domain, op.codomain, op.apply
    images = common.columns(act(vectors.reshape(-1, *space.shape)))
    values = images.norm(dim=1)
    order = values.nan_to_num(-1).argsort(descending=True)  # modes that were not found come last
    values, vectors, images = values[order], vectors[order], images[order]
    # The partner of a vanishing singular value is arbitrary: any vector, for the residual to judge.
    null = values == 0
    if null.any():
        images[null] = common.columns(common.random_block(op, other, int(null.sum()), rng))
    others = images / images.norm(dim=1, keepdim=True)
    left, right = (vectors, others) if wide else (others, vectors)
    return left, values, right, vouched


def _residual(op: TrajectoryOperator, left: Tensor, values: Tensor, right: Tensor) -> Tensor:
    scale = values[:, None]
    forth = common.columns(op.apply(right)) - scale * common.columns(left)
    back = common.columns(op.apply_adjoint(left)) - scale * common.columns(right)
    gap = torch.maximum(forth.norm(dim=1), back.norm(dim=1))
    largest = values[values.isfinite()].max() if values.isfinite().any() else values.new_ones(())
    return gap / largest.clamp_min(torch.finfo(gap.dtype).tiny)
