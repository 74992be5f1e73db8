"""Orthonormal bases of a few long rows."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kpops.engines.threads import enough_for
from kpops.linalg.probes import Rows, inner
from kpops.transfers import beside, on_host

# How far from orthonormal, in the Frobenius norm, the first of two passes may leave the rows.
_NEAR = 0.5


def orthonormal(rows: Rows) -> tuple[Float[Tensor, "q entry"], Float[Tensor, "vector q"]]:
    """Orthonormal rows, and the coordinates of `rows` in them, lower triangular.

    The coordinates are float64, on the host. Rows that depend on those before them give arbitrary
    directions.
    """
    # On a CPU, LAPACK's reflections take about as long; a GPU is at its best in matrix products.
    found = None if rows.device.type == "cpu" else by_cholesky(rows)
    if found is None:
        # A reflection at a time, each of which all threads would wait for.
        with enough_for(4 * rows.numel()):
            q, r = torch.linalg.qr(rows.mT)
        found = q.mT.contiguous(), on_host(r.mT.double())[0]
    return found


def by_cholesky(
    rows: Rows,
) -> tuple[Float[Tensor, "vector entry"], Float[Tensor, "vector vector"]] | None:
    """As :func:`orthonormal`, from two Gram matrices; None if the rows are too close to dependent.

    Yamamoto, Nakatsukasa, Yanagisawa and Fukaya (2015), Roundoff error analysis of the CholeskyQR2
    algorithm: with L the Cholesky factor of the Gram matrix, the rows of ``L^-1 rows`` are
    orthonormal up to the rounding unit times the square of their condition, and after a second pass
    to rounding. It is enough that the first one leaves little: the condition need not be known.
    """
    q, coords = rows, torch.eye(len(rows), dtype=torch.float64)
    for first in (True, False):
        (gram,) = on_host(inner(q, q))
        lower, failed = torch.linalg.cholesky_ex(gram)
        far = 0.0 if first else float((gram - torch.eye(len(gram))).norm())
        if failed or not far <= _NEAR:  # also where it is NaN
            return None
        upper = beside(lower.mT, rows)
        q = torch.linalg.solve_triangular(upper, q.mT, upper=True, left=False).mT
        coords = coords @ lower.to(rows.dtype).double()
    return q.contiguous(), coords
