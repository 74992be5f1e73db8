"""What rounding leaves of numbers and vectors: floors, signs, residuals, clusters."""

from __future__ import annotations

import torch
from torch import Tensor


def noise_floor(dtype: torch.dtype) -> float:
    """Relative residual below which rounding decides: 64 units of rounding."""
    return 64 * torch.finfo(dtype).eps


def flatten_vectors(block: Tensor) -> Tensor:
    """Block (k, *dims) as a matrix whose rows are the flat vectors."""
    return block.flatten(1)


def fix_signs(block: Tensor) -> Tensor:
    """Signs (k,) that make the entry of largest magnitude of every vector positive."""
    flat = flatten_vectors(block)
    largest = flat.gather(1, flat.abs().argmax(dim=1, keepdim=True))[:, 0]
    return torch.where(largest < 0, -1.0, 1.0).to(block.dtype)


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
