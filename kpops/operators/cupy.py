"""Export to CuPy's solvers, with no copy and no way through the host."""

from __future__ import annotations

from typing import Any

from kpops.operators.base import TrajectoryOperator, as_method


@as_method
def to_cupy(operator: TrajectoryOperator) -> Any:
    """Export to ``cupyx.scipy.sparse.linalg.LinearOperator`` without copying.

    Vectors cross by DLPack, which also orders the streams of CuPy and torch.

    Raises
    ------
    ValueError, ImportError
        If the operator is not on a CUDA device; if CuPy is not installed.
    """
    if operator.device.type != "cuda":
        raise ValueError(
            f"{operator!r} is on {operator.device}: CuPy needs a CUDA device, linearise with "
            "device='cuda'"
        )
    try:
        from cupyx.scipy.sparse.linalg import LinearOperator
    except ImportError as error:
        raise ImportError(
            "to_cupy needs CuPy: install the extra cuda12 or cuda13 of kpops-flow"
        ) from error

    adjoint = operator.H
    return LinearOperator(
        operator.shape,
        matvec=lambda x: operator @ x.reshape(-1),
        rmatvec=lambda x: adjoint @ x.reshape(-1),
        matmat=lambda x: operator @ x,
        rmatmat=lambda x: adjoint @ x,
        dtype=operator.dtype,
    )
