"""What the solvers share: checks, random vectors, labels and the verdict on convergence."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, TypeVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops import work
from kpops.arrays import to_numpy
from kpops.labels import Space
from kpops.operators.base import TrajectoryOperator
from kpops.scalars import generator as seeded
from kpops.spectral.scaling import power_of_two

Function = TypeVar("Function", bound=Callable[..., Any])


class ConvergenceWarning(UserWarning):
    """A solver returned modes that did not meet the tolerance."""


def warn(message: str) -> None:
    """Warn that something did not converge."""
    work.warn(message, ConvergenceWarning)


def noise_floor(dtype: torch.dtype) -> float:
    """Relative residual below which rounding decides: 64 units of rounding."""
    return 64 * torch.finfo(dtype).eps


def random_block(op: TrajectoryOperator, space: Space, k: int, rng: Any) -> Tensor:
    """Standard normal block (k, *space.shape) in the dtype and on the device of `op`."""
    values = seeded(rng).standard_normal((k, *space.shape))
    return torch.from_numpy(values).to(dtype=op.torch_dtype, device=op.device)


def check_k(k: int, n: int) -> None:
    """Refuse a number of modes that the operator does not have."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= n:
        raise ValueError(f"k={k!r}: choose an int from 1 to {n}, the size of the operator")


def is_self_adjoint(op: TrajectoryOperator) -> bool:
    """Whether `op` is self-adjoint: by construction, or on random vectors."""
    if op.self_adjoint:
        return True
    if op.domain != op.codomain:
        return False
    probes = random_block(op, op.domain, 2, 0)
    images = op.apply(probes)
    u, v = probes.double()
    image_u, image_v = images.double() / power_of_two(images, repr(op))
    gap = abs(float((u * image_v).sum() - (image_u * v).sum()))
    scale = float(u.norm() * image_v.norm() + image_u.norm() * v.norm())
    return gap <= noise_floor(op.torch_dtype) * scale


def require_self_adjoint(op: TrajectoryOperator) -> None:
    """Refuse an operator whose eigenvalues a symmetric solver would get wrong in silence."""
    if not is_self_adjoint(op):
        raise ValueError(f"{op!r} is not self-adjoint: use kpops.svds, or eigsh of op @ op.H")


def refuse_indefinite(op: TrajectoryOperator, quotients: Tensor, remedy: str) -> None:
    """Refuse an operator that has been seen to have a negative eigenvalue.

    The least eigenvalue is at most any Rayleigh quotient or Ritz value, so that one below rounding
    is a proof. That none is seen is no proof of the contrary.
    """
    if not len(quotients):
        return
    least, largest = float(quotients.min()), float(quotients.abs().max())
    if least < -noise_floor(op.torch_dtype) * len(quotients) ** 0.5 * largest:
        raise ValueError(
            f"{op!r} is not positive semi-definite: an eigenvalue is at most {least / largest:.3g} "
            f"of the largest magnitude; {remedy}"
        )


def columns(block: Tensor) -> Tensor:
    """Block (k, *dims) as a matrix whose rows are the flat vectors."""
    return block.flatten(1)


def fix_signs(block: Tensor) -> Tensor:
    """Signs (k,) that make the entry of largest magnitude of every vector positive."""
    flat = columns(block)
    largest = flat.gather(1, flat.abs().argmax(dim=1, keepdim=True))[:, 0]
    return torch.where(largest < 0, -1.0, 1.0).to(block.dtype)


def mode_variables(variables: Mapping[str, tuple[Any, str]]) -> dict[str, xr.DataArray]:
    """Label per-mode numbers, tensors or arrays; name to (values, long_name)."""
    values = {n: to_numpy(v) if isinstance(v, Tensor) else v for n, (v, _) in variables.items()}
    k = len(next(iter(values.values())))
    modes = {"mode": _numbered(k)}
    return {
        name: xr.DataArray(
            values[name], dims="mode", coords=modes, attrs={"long_name": text, "units": "1"}
        )
        for name, (_, text) in variables.items()
    }


def _numbered(k: int) -> tuple[str, np.ndarray, dict[str, str]]:
    return "mode", np.arange(1, k + 1), {"long_name": "mode", "units": "1"}


def modes_of(block: Tensor, space: Space, long_name: str) -> xr.DataArray:
    """Label a block of modes (mode, *dims)."""
    modes = {"mode": _numbered(len(block))}
    return space.label(
        to_numpy(block), block_dims=("mode",), block_coords=modes, long_name=long_name
    )


def in_full_precision(function: Function) -> Function:
    """Keep autocast, which lowers the precision of matrix products, out of a function."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        with ExitStack() as stack:
            for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
                stack.enter_context(torch.autocast(device, enabled=False))
            return function(*arguments, **options)

    return wrapped  # type: ignore[return-value]


def relative(values: Tensor, *gaps: Tensor) -> Tensor:
    """Residuals of modes: the longest of their gaps (mode, entry), over the largest value.

    Some eigenvalue lies within its gap of every value; what is called the largest is not more than
    that warrants.
    """
    unit = values.double().abs().max().clamp_min(torch.finfo(torch.double).tiny)
    lengths = torch.stack([(gap.double() / unit).norm(dim=1) for gap in gaps]).amax(0)
    warranted = (values.double().abs() / unit - lengths).max()
    if not lengths.any():
        return lengths.to(values.dtype)
    return (lengths / warranted.clamp_min(torch.finfo(torch.double).tiny)).to(values.dtype)


def clusters(values: Tensor, residual: Tensor) -> Tensor:
    """Number the groups of neighbours that are closer than ten times what their residuals allow.

    Within a group, the directions of the modes are not determined: they turn by about the residual
    over the gap.
    """
    order = values.double().nan_to_num(-torch.inf).argsort(descending=True)
    ordered, doubt = values.double()[order], residual.double()[order]
    unsure = 10 * torch.maximum(doubt[1:], doubt[:-1]).clamp_min(0.1 * noise_floor(values.dtype))
    gaps = ordered[:-1] - ordered[1:]
    apart = ~(gaps <= unsure * values.double().abs().nan_to_num(0).max())
    group = torch.empty_like(order)
    group[order] = torch.cat([apart.new_zeros(1), apart]).cumsum(0)
    names: dict[int, int] = {}
    numbers = [names.setdefault(g, len(names) + 1) for g in group.tolist()]
    return torch.tensor(numbers, device=values.device)


def verdict(residual: Tensor, tol: float, what: str, sure: int) -> Tensor:
    """Which modes meet the tolerance, of the first `sure` ones that the solver vouches for.

    Warns if some do not.
    """
    converged = residual <= max(tol, noise_floor(residual.dtype))  # NaN counts as not converged
    converged[sure:] = False
    if not converged.all():
        warn(
            f"{what}{' was interrupted' * work.interrupted()}: {int((~converged).sum())} of "
            f"{len(converged)} modes did not reach the relative residual {tol:g}, or larger modes "
            "may be missing; the variable 'converged' marks them"
        )
    return converged


def identity(*ops: TrajectoryOperator, **names: str) -> dict[str, Any]:
    """What a result is of, as scalar coordinates: concatenation keeps these, and no attributes.

    Those of the user are among them, where all spaces of the operators agree on them.
    """
    names |= {f"operator{i}" if i > 1 else "operator": op.symbol for i, op in enumerate(ops, 1)}
    scalars = [
        {k: xr.Variable(*c.described(k)) for k, c in space.coords.items() if not c.dims}
        for op in ops
        for space in (op.domain, op.codomain)
    ]
    kept = {
        name: value
        for own in scalars
        for name, value in own.items()
        if all(value.equals(other.get(name, value)) for other in scalars)
    }
    # Object strings, since Zarr has no specified type for NumPy's fixed-length ones.
    return kept | {
        name: ((), np.array(text, dtype=object), {"long_name": name})
        for name, text in names.items()
    }


def configuration(op: TrajectoryOperator, **settings: Any) -> dict[str, Any]:
    """Flat attributes of a result: where the operator is from, its dtype, the settings as JSON."""
    return {
        **op.attrs,
        "dtype": str(op.torch_dtype).removeprefix("torch."),
        "configuration": json.dumps(settings, sort_keys=True),
    }
