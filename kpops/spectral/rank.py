"""Effective ranks, each by its name."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops.operators.base import TrajectoryOperator
from kpops.operators.foreign import as_operator
from kpops.spectral import common
from kpops.spectral.eig import eigsh
from kpops.spectral.svd import svds

_MOST_MODES = 256


def effective_rank(
    op: Any,
    kind: str = "participation",
    *,
    threshold: float = 0.95,
    method: str = "auto",
    num_matvecs: int = 64,
    rng: Any = None,
) -> xr.Dataset:
    """Effective rank of an operator, in one of two definitions that differ greatly.

    Parameters
    ----------
    op : TrajectoryOperator, LinearOperator or array_like
        A self-adjoint operator must be positive semi-definite.
    kind : {"participation", "variance"}
        ``"participation"``: ``(tr G)^2 / tr(G^2)`` with G the operator itself if it is
        self-adjoint, and ``op op*`` if not.
        ``"variance"``: the number of leading singular values of `op` whose squares hold the
        fraction `threshold` of the sum of all squares, interpolated linearly between counts
        (a rank-one operator gives 0.95).
    threshold : float
        Fraction of the sum for ``"variance"``, between 0 and 1.
    method : {"auto", "exact", "hutchinson"}
        ``"exact"`` forms the matrix. ``"hutchinson"`` estimates the traces with random vectors and
        takes leading modes, where they are needed, from eigsh or svds. ``"auto"`` is exact where
        the smaller side is at most 1024 and the matrix has at most 2^26 entries.
    num_matvecs : int
        Random vectors for ``"hutchinson"``.
    rng : int, Generator or None
        Source of the random vectors.

    Returns
    -------
    Dataset
        ``estimate`` and its standard error ``stderr`` (zero if exact); the attributes say which
        kind, which method and which G.

    Raises
    ------
    ValueError
        If an option is unknown or out of range, or a self-adjoint operator is not positive.

    Warns
    -----
    ConvergenceWarning
        If more than 256 modes would be needed for ``"variance"``; the estimate is then a lower
        bound and ``stderr`` is NaN.

    Notes
    -----
    Participation: with Gaussian vectors z, ``z* G z`` and ``||G z||^2`` have means tr G and tr G^2;
    one product serves both. The relative standard deviation of the first is ``sqrt(2 / (m PR))``
    for m vectors. The standard error of the ratio is the jackknife's, which also removes its
    first-order bias.

    Variance: the squares of the leading modes are summed exactly, and the mean of ``||A z||^2``
    estimates only what is left of the sum when these modes are projected out.

    Examples
    --------
    >>> import numpy as np, kpops
    >>> identity = np.eye(10)
    >>> float(kpops.effective_rank(identity).estimate)
    10.0
    >>> float(kpops.effective_rank(identity, kind="variance").estimate)
    9.5
    """
    op = as_operator(op)
    if kind not in ("participation", "variance"):
        raise ValueError(f"kind={kind!r}: choose 'participation' or 'variance'")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold={threshold}: choose a fraction between 0 and 1")
    if num_matvecs < 2:
        raise ValueError(f"num_matvecs={num_matvecs}: a standard error needs at least 2")
    if method not in ("auto", "exact", "hutchinson"):
        raise ValueError(f"method={method!r}: choose 'auto', 'exact' or 'hutchinson'")
    if method == "auto":
        thin = min(op.shape) <= common.DENSE_SIZE and op.shape[0] * op.shape[1] <= 2**26
        method = "exact" if thin else "hutchinson"
    symmetric = common.is_self_adjoint(op)
    before = op.num_matvecs
    if method == "exact":
        singular = torch.linalg.svdvals(op.dense_tensor())
        _refuse_indefinite(op, symmetric)
        estimate = _from_spectrum(singular, kind, symmetric, threshold)
        stderr = 0.0
    elif kind == "participation":
        estimate, stderr = _participation(op, symmetric, num_matvecs, rng)
    else:
        estimate, stderr = _variance(op, symmetric, threshold, num_matvecs, rng)
    long_name = f"effective rank ({kind})"
    scalar = np.dtype(op.dtype).type
    return xr.Dataset(
        {
            "estimate": ((), scalar(estimate), {"long_name": long_name, "units": "1"}),
            "stderr": ((), scalar(stderr), {"long_name": "standard error", "units": "1"}),
        },
        attrs={
            **common.configuration(op, kind=kind, method=method, threshold=threshold),
            "kind": kind,
            "method": method,
            "gram": "A" if symmetric else "A A*",
            "num_matvecs": op.num_matvecs - before,
        },
    )


def _refuse_indefinite(op: TrajectoryOperator, symmetric: bool) -> None:
    if symmetric and not op.positive:
        values = torch.linalg.eigvalsh(op.dense_tensor())
        if values[0] < -common.noise_floor(op.torch_dtype) * len(values) * values.abs().max():
            raise ValueError(
                f"{op!r} has the eigenvalue {float(values[0]):g}: an effective rank needs a "
                "positive semi-definite operator; use op @ op.H"
            )


def _from_spectrum(singular: Tensor, kind: str, symmetric: bool, threshold: float) -> float:
    if not singular.isfinite().all():
        raise ValueError("the operator is not finite: check the weights and the scale")
    if not singular.any():
        return 0.0
    singular = singular.double() / singular.max()  # squares of small numbers would underflow
    if kind == "participation":
        gram = singular if symmetric else singular**2
        return float(gram.sum() ** 2 / (gram**2).sum())
    squares = singular**2
    return float(_count_to(squares, threshold * squares.sum()))


def _count_to(squares: Tensor, target: Tensor) -> Tensor:
    """How many of the falling `squares` add up to `target`, interpolated between counts."""
    cumulative = squares.cumsum(0)
    full = int(torch.searchsorted(cumulative, target).clamp_max(len(squares) - 1))
    held = cumulative[full] - squares[full]
    return full + (target - held) / squares[full]


def _participation(
    op: TrajectoryOperator, symmetric: bool, m: int, rng: Any
) -> tuple[float, float]:
    z = common.random_block(op, op.codomain, m, rng)
    if symmetric:
        image = op.apply(z)
        first = _quotients(op, z, image)
    else:
        back = op.apply_adjoint(z)
        image = op.apply(back)
        first = _squared_norms(back)
    second = _squared_norms(image)
    if not second.any():
        return 0.0, 0.0
    whole = first.mean() ** 2 / second.mean()
    # Leave each probe out in turn.
    without = ((first.sum() - first) / (m - 1)) ** 2 / ((second.sum() - second) / (m - 1))
    estimate = m * whole - (m - 1) * without.mean()
    stderr = np.sqrt((m - 1) / m * ((without - without.mean()) ** 2).sum())
    return float(estimate), float(stderr)


def _variance(
    op: TrajectoryOperator, symmetric: bool, threshold: float, m: int, rng: Any
) -> tuple[float, float]:
    rng = np.random.default_rng(rng)
    z = common.columns(common.random_block(op, op.codomain, m, rng))
    images = common.columns(op.apply_adjoint(z.reshape(m, *op.codomain.shape)))
    if symmetric:
        _quotients(op, z, images)
    if not images.any():
        return 0.0, 0.0
    k, most = 8, min(_MOST_MODES, min(op.shape))
    while True:
        k = min(k, most)
        left, values, right = _leading(op, symmetric, k, rng)
        # ||A||_F^2 = sum of the leading squares + E ||(A* - leading part) z||^2
        rest = _squared_norms(images - (z @ left.T * values) @ right)
        squares = values.double().square()
        total = float(squares.sum()) + rest.mean()
        if squares.sum() >= threshold * total:
            count = float(_count_to(squares, squares.new_tensor(threshold * total)))
            last = float(squares[min(int(count), k - 1)])
            return count, threshold * rest.std(ddof=1) / np.sqrt(m) / last
        if k == most:
            warnings.warn(
                f"effective_rank: {k} modes hold {float(squares.sum()) / total:.3f} of the sum of "
                f"squares, less than {threshold}; the estimate is a lower bound",
                common.ConvergenceWarning,
                stacklevel=3,
            )
            return float(k), float("nan")
        k *= 2


def _leading(
    op: TrajectoryOperator, symmetric: bool, k: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """The k leading singular triplets, vectors as rows."""
    if symmetric:
        modes = eigsh(op, k, rng=rng)
        floor = 1e3 * common.noise_floor(op.torch_dtype) * abs(modes.eigenvalue).max()
        if (modes.eigenvalue < -floor).any():
            raise ValueError(
                f"{op!r} has a negative eigenvalue, so it is not positive semi-definite: use "
                "op @ op.H"
            )
        triplet = (modes.eigenfunction, modes.eigenvalue, modes.eigenfunction)
    else:
        modes = svds(op, k, rng=rng)
        triplet = (modes.left, modes.singular_value, modes.right)
    left, values, right = (torch.from_numpy(part.values).to(op.device) for part in triplet)
    return common.columns(left), values, common.columns(right)


def _quotients(op: TrajectoryOperator, z: Tensor, image: Tensor) -> np.ndarray:
    """z* A z of every probe, none of which may be negative."""
    values = common.columns(z).mul(common.columns(image)).double().sum(1).cpu().numpy()
    noise = common.noise_floor(op.torch_dtype) * float(z.norm() * image.norm())
    if values.min() < -noise:
        raise ValueError(f"{op!r} is self-adjoint but not positive semi-definite: use op @ op.H")
    return values


def _squared_norms(block: Tensor) -> np.ndarray:
    return common.columns(block).double().square().sum(1).cpu().numpy()
