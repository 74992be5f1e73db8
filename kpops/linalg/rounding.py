"""What rounding leaves of numbers and vectors: floors, signs, residuals, clusters."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kpops.transfers import on_host

_TINY = torch.finfo(torch.double).tiny


def noise_floor(dtype: torch.dtype) -> float:
    """Relative residual below which rounding decides: 64 units of rounding."""
    return 64 * torch.finfo(dtype).eps


def flatten_vectors(block: Float[Tensor, " vector *dims"]) -> Float[Tensor, "vector entry"]:
    """Flatten every vector of a block."""
    return block.flatten(1)


def fix_signs(block: Float[Tensor, " vector *dims"]) -> Float[Tensor, " vector"]:
    """Signs that make the entry of largest magnitude of every vector positive."""
    flat = flatten_vectors(block)
    largest = flat.gather(1, flat.abs().argmax(dim=1, keepdim=True))[:, 0]
    return torch.where(largest < 0, -1.0, 1.0).to(block.dtype)


def relative(
    values: Float[Tensor, " mode"], *gaps: Float[Tensor, " mode"], largest: float = 0.0
) -> Float[Tensor, " mode"]:
    """Residuals of modes: the longest of the gaps of each, relative to the largest value.

    Each value has an eigenvalue within the length of its gap, so the normaliser is the largest
    value less its own gap. `largest` is a magnitude that is known without a gap.
    """
    if not len(values):
        return values
    sizes = values.double().abs()
    unit = sizes.max().clamp_min(max(largest, _TINY))
    lengths = torch.stack([gap.double() / unit for gap in gaps]).amax(0)
    warranted = torch.maximum((sizes / unit - lengths).max(), largest / unit)
    return (lengths / warranted.clamp_min(_TINY)).to(values.dtype)


def clusters(
    values: Float[Tensor, " mode"], residual: Float[Tensor, " mode"], largest: float = 0.0
) -> Int[Tensor, " mode"]:
    """Number the groups of neighbours that are closer than ten times what their residuals allow.

    Within a group, the directions of the modes are not determined: they turn by about the residual
    over the gap. `largest` is a magnitude that no value exceeds, if it is known.
    """
    device, floor = values.device, noise_floor(values.dtype)
    values, residual = on_host(values.double(), residual.double())
    order = values.nan_to_num(-torch.inf).argsort(descending=True)
    ordered, doubt = values[order], residual[order]
    unsure = 10 * torch.maximum(doubt[1:], doubt[:-1]).clamp_min(0.1 * floor)
    gaps = ordered[:-1] - ordered[1:]
    scale = max(float(values.abs().nan_to_num(0).max()), largest)
    apart = ~(gaps <= unsure * scale)
    group = torch.empty_like(order)
    group[order] = torch.cat([apart.new_zeros(1), apart]).cumsum(0)
    names: dict[int, int] = {}
    numbers = [names.setdefault(g, len(names) + 1) for g in group.tolist()]
    return torch.tensor(numbers, device=device)
