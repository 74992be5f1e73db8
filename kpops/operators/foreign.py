"""Operators that are not ours: SciPy LinearOperators and plain matrices, without labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from torch import Tensor

from kpops.labels import Space, as_tensor, to_numpy
from kpops.operators.base import TrajectoryOperator


class ForeignOperator(TrajectoryOperator):
    """A SciPy LinearOperator, sparse matrix or dense array as an operator of kpops.

    It computes on the CPU through ``matmat`` and ``rmatmat``. float32 stays float32; everything
    else that is real becomes float64.

    Parameters
    ----------
    operator : LinearOperator, sparse matrix or array_like
        Shape (m, n).
    """

    def __init__(self, operator: Any) -> None:
        if not isinstance(operator, LinearOperator) and not issparse(operator):
            operator = to_numpy(operator) if isinstance(operator, Tensor) else np.asarray(operator)
            if operator.ndim != 2:
                raise ValueError(f"op has shape {operator.shape}, expected a matrix (m, n)")
        self.linear = aslinearoperator(operator)
        if np.dtype(self.linear.dtype).kind not in "fiub":
            raise TypeError(f"op has dtype {self.linear.dtype}: kpops operators are real")
        single = self.linear.dtype == np.float32
        rows, columns = self.linear.shape
        super().__init__(
            Space(("index",), (columns,)),
            Space(("index",), (rows,)),
            dtype=torch.float32 if single else torch.float64,
            device=torch.device("cpu"),
            symbol=type(operator).__name__,
        )

    def _apply(self, block: Tensor) -> Tensor:
        return self._torch(self.linear.matmat(to_numpy(block).T))

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        return self._torch(self.linear.rmatmat(to_numpy(block).T))

    def _torch(self, columns: np.ndarray) -> Tensor:
        return as_tensor(np.ascontiguousarray(columns.T), f"what {self.symbol} returns").to(
            self.torch_dtype
        )


def as_operator(op: Any) -> TrajectoryOperator:
    """Return `op` itself if it is a TrajectoryOperator, else wrap it."""
    return op if isinstance(op, TrajectoryOperator) else ForeignOperator(op)
