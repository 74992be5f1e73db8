"""The best approximations of an operator by one of low rank."""

from __future__ import annotations

import json
from typing import Any

import xarray as xr
from torch import Tensor

from kpops import work
from kpops.arrays import as_tensor
from kpops.labels import Space
from kpops.linalg.rounding import flatten_vectors, noise_floor
from kpops.linalg.symmetry import is_self_adjoint
from kpops.operators.base import TrajectoryOperator, bracketed
from kpops.operators.foreign import as_operator
from kpops.operators.low_rank import LowRank
from kpops.precision import in_full_precision
from kpops.scalars import check_modes
from kpops.spectral.eig import eigsh
from kpops.spectral.start_vectors import in_space
from kpops.spectral.svd import svds


@in_full_precision
@work.shown
def truncate(
    op: Any,
    k: int,
    *,
    tol: float = 1e-6,
    method: str = "auto",
    rng: Any = None,
    modes: xr.Dataset | None = None,
    progress: bool = False,
) -> LowRank:
    """Keep the k leading modes of an operator: its best approximation of rank k, as an operator.

    Parameters
    ----------
    op : TrajectoryOperator, LinearOperator or array_like
        m x n.
    k : int
        Number of modes, 1 to min(m, n): the eigenvalues of largest magnitude if `op` is
        self-adjoint, the largest singular values if not.
    tol, method, rng
        As for :func:`kpops.eigsh` or :func:`kpops.svds`, which finds the modes.
    modes : Dataset, optional
        An earlier result of eigsh or svds for this operator, with at least k modes. Two matvecs
        then check that they belong to it.
    progress : bool
        Show a bar of the matvecs.

    Returns
    -------
    LowRank
        ``sum_i s_i u_i v_i*`` on the spaces, in the dtype and on the device of `op`; self-adjoint
        or positive if `op` is. Its attribute ``modes`` holds the modes.

    Raises
    ------
    ValueError
        If `k` is out of range, some modes were not found, or `modes` holds fewer than k or belongs
        to another operator.

    Warns
    -----
    ConvergenceWarning
        If some modes did not reach `tol`.

    Notes
    -----
    By the theorem of Eckart and Young (Mirsky 1960, for every unitarily invariant norm) no operator
    of rank k is nearer. The spectral norm of the difference is the singular value s_{k+1}; its
    squared Frobenius norm is the sum of the squares of the omitted ones. A gradient step through
    the leading modes of the flow operator alone, ``truncate(flow, k) @ error``, therefore differs
    from the full one by at most ``s_{k+1} ||error||``. It misses
    ``flow @ (error - its part in the modes)``.

    Examples
    --------
    How much of the effect of a gradient step on the trajectories goes through six modes:

    >>> import torch, kpops
    >>> _ = torch.manual_seed(0)
    >>> lin = kpops.linearize(torch.nn.GRU(3, 8, batch_first=True), torch.randn(5, 10, 3))
    >>> error = torch.randn(5, 10, 8)
    >>> full = lin.flow @ error
    >>> top = kpops.truncate(lin.flow, 6, rng=0) @ error
    >>> next_value = float(kpops.eigsh(lin.flow, 7, rng=0).eigenvalue[6])
    >>> bool((full - top).norm() <= next_value * error.norm())
    True
    """
    op = as_operator(op)
    check_modes(k, min(op.shape))
    if modes is None:
        solver = eigsh if is_self_adjoint(op) else svds
        modes = solver(op, k, tol=tol, method=method, rng=rng)
    else:
        _refuse_others(op, modes, k)
    left, values, right = _triplets(op, modes, k)
    if op.positive:
        values = values.clamp_min(0)  # rounding may make a zero negative
    return LowRank(
        left,
        values,
        right,
        op.domain,
        op.codomain,
        symbol=f"{bracketed(op)}[{k}]",
        attrs=op.attrs,
        modes=modes.isel(mode=slice(k)),
    )


def _refuse_others(op: TrajectoryOperator, modes: xr.Dataset, k: int) -> None:
    """Refuse modes of a user that are not the leading ones of `op`."""
    numbers = modes["mode"].values[:k].tolist() if "mode" in modes.coords else []
    which = json.loads(modes.attrs.get("configuration", "{}")).get("which", "LM")
    if numbers != list(range(1, len(numbers) + 1)) or which == "SA":
        raise ValueError(
            f"modes begins with {numbers}, which={which!r}: pass the leading ones in their order, "
            "as kpops.eigsh or kpops.svds returns them"
        )
    left, values, right = _triplets(op, modes, k)
    ends = [0, k - 1] if k > 1 else [0]
    inside = left if right is None else right
    gaps = op.apply(inside[ends]) - values[ends].reshape(-1, *[1] * (left.ndim - 1)) * left[ends]
    residual = flatten_vectors(gaps).double().norm(dim=1).max() / values.double().abs().max()
    own = float(modes["residual"][:k].max()) if "residual" in modes else 1e-3
    if not residual <= 10 * max(own, noise_floor(op.torch_dtype)):
        raise ValueError(
            f"modes are not those of {op!r}: their relative residual is {float(residual):.2g} "
            "there; compute them for this very operator, or leave modes out"
        )


def _triplets(
    op: TrajectoryOperator, modes: xr.Dataset, k: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The leading k of the modes on the operator's device; no right ones if they are the left."""
    right: str | None
    if "eigenfunction" in modes:
        value, left, right = "eigenvalue", "eigenfunction", None
    elif "left" in modes and "right" in modes:
        value, left, right = "singular_value", "left", "right"
    else:
        raise ValueError(
            f"modes has the variables {list(modes)}: pass what kpops.eigsh or kpops.svds returns"
        )
    found = modes.sizes["mode"]
    if found < k:
        raise ValueError(f"k={k}, but modes holds {found} of them: compute as many, or lower k")
    modes = modes.isel(mode=slice(k))
    values = as_tensor(modes[value].values, value).to(op.device, op.torch_dtype)
    missing = int((~values.isfinite()).sum())
    if missing:
        raise ValueError(
            f"{missing} of the {k} modes were not found: raise the solver's budget, or lower k"
        )

    def block(name: str, space: Space) -> Tensor:
        return in_space(op, modes[name], space, f"{name} of modes")

    return block(left, op.codomain), values, None if right is None else block(right, op.domain)
