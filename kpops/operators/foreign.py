"""Operators of other libraries and plain matrices, and the export to CuPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy.sparse import issparse
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from torch import Tensor

from kpops.arrays import current_gpu, to_numpy
from kpops.kinds import is_array, is_operator, no_operator
from kpops.labels import Space
from kpops.operators.base import TrajectoryOperator, as_method
from kpops.operators.shapes import Given, Image, InCodomain, InDomain


class ForeignOperator(TrajectoryOperator):
    """A SciPy LinearOperator, a matrix, or an object that acts like one, as an operator of kpops.

    It computes on the CPU, in its own precision. Its symbol is the name of its class.

    Parameters
    ----------
    operator : LinearOperator, sparse matrix, array_like or object
        Shape (m, n). An object of another library needs ``shape`` and ``matvec``, and ``rmatvec``
        for adjoints; ``matmat``, ``rmatmat`` and ``dtype`` are used if it has them.
    domain, codomain : Space, optional
        What it maps from and to. A square operator with one of them given maps that space to
        itself; else a side that is not given has the one dimension ``index``.
    dtype, device : torch.dtype, torch.device, optional
        Of its arguments and results. Default: float32 stays float32, everything else that is real
        becomes float64; on the CPU.

    Raises
    ------
    TypeError
        If it is no operator, or not real.
    ValueError
        If it is not two-dimensional, has no entries or entries that are not finite, or if its
        shape is not that of the spaces.

    Notes
    -----
    With an operator A of kpops, ``A @ B`` and ``A + B`` wrap B in this class, in the space of A.
    If A is of SciPy or PyLops, that library composes, and the product has no labels. A sparse
    matrix of SciPy refuses operators on its right: wrap it in this class.

    Examples
    --------
    >>> import numpy as np, scipy.sparse, torch, kpops
    >>> from kpops.operators import ForeignOperator
    >>> lin = kpops.linearize(torch.nn.GRU(3, 4, batch_first=True), torch.zeros(5, 6, 3))
    >>> weights = scipy.sparse.diags_array(np.arange(120.0))
    >>> ForeignOperator(weights, lin.space, dtype=lin.dtype) @ lin.K
    <dia_array K (trial: 5, time: 6, unit: 4), float32 on cpu>
    """

    def __init__(
        self,
        operator: Any,
        domain: Space | None = None,
        codomain: Space | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        symbol = type(operator).__name__
        self.linear = _linear(operator)
        rows, columns = self.linear.shape
        if rows == columns:
            domain, codomain = domain or codomain, codomain or domain
        single = self.linear.dtype == np.float32
        super().__init__(
            domain or Space(("index",), (columns,)),
            codomain or Space(("index",), (rows,)),
            dtype=dtype or (torch.float32 if single else torch.float64),
            device=device or torch.device("cpu"),
            symbol=symbol,
        )
        if self.shape != (rows, columns):
            raise ValueError(
                f"{symbol} has shape {(rows, columns)}, expected {self.shape}, from {self.domain} "
                f"to {self.codomain}"
            )

    def _apply(self, q: InDomain) -> InCodomain:
        return self._by(self.linear.matmat, q, self.codomain, "matvec")

    def _apply_adjoint(self, q: InCodomain) -> InDomain:
        return self._by(self.linear.rmatmat, q, self.domain, "rmatvec")

    def _by(
        self,
        act: Callable[[np.ndarray], Any],
        q: Given,
        space: Space,
        method: str,
    ) -> Image:
        # Copies: a user's function may change its argument, or later its result.
        columns = np.array(to_numpy(q.flatten(1)).T, order="C")
        try:
            images = np.array(act(columns))
        except (NotImplementedError, TypeError) as error:  # SciPy raises either
            if not self._lacks(method):
                raise
            raise TypeError(f"{self.symbol} has no {method}, which is needed here") from error
        expected = (space.size, len(q))
        if images.shape != expected or images.dtype.kind not in "fiub":
            raise ValueError(
                f"{method} of {self.symbol} returned {images.dtype} of shape {images.shape} for "
                f"{len(q)} vectors, expected real numbers of shape {expected}"
            )
        rows = torch.from_numpy(np.ascontiguousarray(images.T).astype(self.dtype, copy=False))
        return rows.to(self.device).reshape(-1, *space.shape)

    def _lacks(self, method: str) -> bool:
        try:
            getattr(self.linear, method)(np.zeros(self.shape[method == "matvec"], self.dtype))
        except (NotImplementedError, TypeError) as error:
            return isinstance(error, NotImplementedError)
        return False


def as_operator(op: Any, *, spread: bool = False) -> TrajectoryOperator:
    """Return `op` itself if it is a TrajectoryOperator, else as a :class:`ForeignOperator`.

    Raises as :class:`ForeignOperator` does, and for an operator that is spread over processes
    where the caller does not take that.
    """
    if not isinstance(op, TrajectoryOperator):
        return ForeignOperator(op)
    if not spread:
        op.parts.refuse_spread(op)
    return op


@as_method
def _beside(op: TrajectoryOperator, other: Any, **spaces: Any) -> TrajectoryOperator | None:
    """`other` as an operator of kpops, next to `op`; None if it is complex, for SciPy."""
    if isinstance(other, TrajectoryOperator):
        return other
    if isinstance(other, LinearOperator) and np.dtype(other.dtype or float).kind == "c":
        return None
    return ForeignOperator(other, **spaces, dtype=op.torch_dtype, device=op.device)


def _linear(operator: Any) -> LinearOperator:
    """A SciPy LinearOperator that is real, and has finite entries if it has entries."""
    if isinstance(operator, LinearOperator):
        linear = operator
    elif issparse(operator):
        _check_entries(operator.data, "op is a sparse matrix that")
        linear = aslinearoperator(operator)
    elif is_operator(operator):
        linear = LinearOperator(
            operator.shape,
            matvec=operator.matvec,
            **{n: getattr(operator, n, None) for n in ("rmatvec", "matmat", "rmatmat")},
            dtype=getattr(operator, "dtype", None) or np.dtype(float),
        )
    else:
        linear = aslinearoperator(_matrix(operator))
    if np.dtype(linear.dtype or float).kind not in "fiub":
        raise TypeError(f"op has dtype {linear.dtype}: kpops operators are real")
    if 0 in linear.shape:
        raise ValueError(f"op has shape {linear.shape}: it has no entries")
    return linear


def _matrix(given: Any) -> np.ndarray:
    """A dense matrix that is real and finite."""
    if not is_array(given) or isinstance(given, xr.DataArray):
        raise no_operator(given)
    if isinstance(given, Tensor):
        if given.layout != torch.strided:
            raise TypeError(f"op is a tensor of layout {given.layout}: pass op.to_dense()")
        half = given.dtype in (torch.float16, torch.bfloat16)
        given = to_numpy(given.float() if half else given)
    if np.ma.is_masked(given):
        raise ValueError("op is an array with masked entries: fill them, by op.filled(0)")
    try:
        matrix = np.asarray(given)
    except (ValueError, TypeError):  # rows of different lengths; operators
        raise no_operator(given) from None
    if matrix.ndim != 2:
        raise ValueError(f"op has shape {matrix.shape}, expected a matrix (m, n)")
    _check_entries(matrix, "op is a matrix that")
    return matrix


def _check_entries(values: np.ndarray, what: str) -> None:
    if values.dtype.kind not in "fiub":
        raise TypeError(
            f"{what} has dtype {values.dtype}: kpops operators are real; pass real and "
            "imaginary part as two"
        )
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise ValueError(
            f"{what} is not finite: {bad} of {values.size} entries are NaN or infinite: "
            "fill or drop them"
        )


@as_method
def to_cupy(op: TrajectoryOperator) -> Any:
    """Export to ``cupyx.scipy.sparse.linalg.LinearOperator`` without copying.

    Vectors cross by DLPack, which also orders the streams of CuPy and torch.

    Raises
    ------
    ValueError, ImportError
        If the operator is not on a CUDA device; if CuPy is not installed.
    """
    if op.device.type != "cuda":
        raise ValueError(
            f"{op!r} is on {op.device}: CuPy needs a CUDA device, linearise with device='cuda'"
        )
    try:
        from cupyx.scipy.sparse.linalg import LinearOperator as CupyOperator
    except ImportError as error:
        raise ImportError(
            "to_cupy needs CuPy: install the extra cuda12 or cuda13 of kpops-flow"
        ) from error

    def there(act: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def on_its_gpu(x: Any) -> Any:
            with current_gpu(op.device.index):
                return act(x)

        return on_its_gpu

    adjoint = op.H
    return CupyOperator(
        op.shape,
        matvec=there(lambda x: op @ x.reshape(-1)),
        rmatvec=there(lambda x: adjoint @ x.reshape(-1)),
        matmat=there(lambda x: op @ x),
        rmatmat=there(lambda x: adjoint @ x),
        dtype=op.dtype,
    )
