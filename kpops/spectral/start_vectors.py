"""Start vectors of a solver: modes found before, or guesses."""

from __future__ import annotations

from typing import Any

import xarray as xr
from torch import Tensor

from kpops.arrays import as_tensor
from kpops.labels import Space, by_name
from kpops.operators.base import TrajectoryOperator


def start_vectors(op: TrajectoryOperator, v0: Any) -> Tensor | None:
    """Block (vector, *domain), or None, without vectors of NaN: modes that were not found."""
    if v0 is None:
        return None
    block = in_space(op, v0, op.domain, "v0")
    block = block[~block.isnan().flatten(1).all(1)]
    parts, n = op.parts, float(len(block))
    if parts.largest(n) != parts.least(n):
        raise ValueError(
            "v0 has more vectors on some processes than on others: pass on each its part of the "
            "same vectors"
        )
    if parts.any(not block.isfinite().all()):
        raise ValueError("v0 has entries that are not finite: pass finite start vectors")
    if len(block) and not parts.any(bool(block.any())):
        raise ValueError("v0 is zero: pass start vectors that are not, or None for random ones")
    return block if len(block) else None


def in_space(op: TrajectoryOperator, functions: Any, space: Space, what: str) -> Tensor:
    """Functions ([mode,] *dims) of a space as a block (mode, *dims) for `op`."""
    if isinstance(functions, xr.DataArray):
        # svds adds this suffix to dims of right functions that differ from the left ones.
        renamed = {f"{d}_in": d for d in space.dims if f"{d}_in" in functions.dims}
        functions = functions.drop_vars("mode", errors="ignore").rename(renamed)
        if "mode" not in functions.dims:
            functions = functions.expand_dims("mode")
        shape = (functions.sizes["mode"], *space.shape)
        functions = by_name(functions, Space(("mode", *space.dims), shape, space.coords), what)
    values = as_tensor(functions, what)
    shape = tuple(values.shape)
    if space.shape not in (shape, shape[1:]) and (space.size,) not in (shape, shape[1:]):
        raise ValueError(
            f"{what} has shape {shape}, expected {space.shape} or (mode, *{space.shape}), as a "
            f"vector or a block of vectors for {op!r}"
        )
    return values.to(dtype=op.torch_dtype, device=op.device).reshape(-1, *space.shape).contiguous()
