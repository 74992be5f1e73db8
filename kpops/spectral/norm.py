"""The norms of an operator as one method."""

from __future__ import annotations

from typing import Any

import xarray as xr

from kpops.operators.base import TrajectoryOperator, as_method
from kpops.spectral.norms import frobenius_norm, spectral_norm


@as_method
def norm(op: TrajectoryOperator, kind: str = "frobenius", **options: Any) -> xr.Dataset:
    """Norm of this operator, by its name.

    Parameters
    ----------
    kind : {"frobenius", "spectral"}
        :func:`kpops.frobenius_norm` or :func:`kpops.spectral_norm`;
        :func:`kpops.schatten_norm` has the others.
    **options
        Of that function.

    Returns
    -------
    Dataset
    """
    norms = {"frobenius": frobenius_norm, "spectral": spectral_norm}
    if kind not in norms:
        raise ValueError(
            f"kind={kind!r}: choose 'frobenius' or 'spectral'; see also kpops.schatten_norm"
        )
    return norms[kind](op, **options)
