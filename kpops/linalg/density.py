"""The density of a spectrum on a grid, and the end of its bulk, from Gauss rules."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kpops.linalg.quadrature import Nodes, Rule

EDGE_COUNT = 10
"""An outlier stands off the bulk by more than the extent of so many values."""
_ENTRIES = 2**22
"""Grid points times nodes that are smoothed at once."""


class Grid(NamedTuple):
    """The rising values at which the density is evaluated, and the width of the Gaussians."""

    values: Float[Tensor, " value"]
    width: float
    log: bool


def make_grid(
    bulk: Rule, zero: float, scale: str, points: int, width: float | None, steps: int
) -> Grid:
    """Grid over all values, or over those above `zero` if it is logarithmic.

    Parameters are those of :func:`kpops.spectral_density`. The default width is twice the range
    over `steps`.
    """
    nodes = bulk.nodes[bulk.weights > 0]
    if bulk.n_zeros:
        nodes = torch.cat([nodes, nodes.new_zeros(1)])
    shown = nodes[nodes > zero]
    if scale == "log" and (nodes.min() < -zero or not len(shown)):
        raise ValueError(
            f"scale='log' with values from {float(nodes.min()):g} to {float(nodes.max()):g}: there "
            "must be positive ones and no negative ones; use scale='linear'"
        )
    log = scale == "log" or (scale == "auto" and _wide(bulk, nodes, zero))
    ends = torch.stack((shown if log else nodes).aminmax())
    ends = ends.log10() if log else ends
    if width is None:
        # Nodes lie that far apart. The span of a flat spectrum is rounding.
        least = 1.0 if log else 1e-3 * float(nodes.abs().max()) or 1.0
        width = 2 * max(float(ends[1] - ends[0]), least) / steps
    first, last = float(ends[0]) - 4 * width, float(ends[1]) + 4 * width
    values = torch.linspace(first, last, points, dtype=torch.float64, device=nodes.device)
    return Grid(10**values if log else values, width, log)


def _wide(bulk: Rule, nodes: Float[Tensor, " node"], zero: float) -> bool:
    """Whether half of the values that are not zero lie below a tenth of the largest."""
    if nodes.min() < -zero or nodes.max() <= zero:
        return False
    weights = torch.where(bulk.nodes > zero, bulk.weights, 0)
    return bool(weights[bulk.nodes < nodes.max() / 10].sum() > weights.sum() / 2)


def smoothed(
    bulk: Rule, grid: Grid, zero: float
) -> tuple[Float[Tensor, "probe value"], Float[Tensor, "probe value"]]:
    """Density per unit of value, and the count above each value."""
    nodes, weights = bulk.nodes, bulk.weights
    if grid.log:
        weights = torch.where(nodes > zero, weights, 0)
        nodes = nodes.clamp_min(zero).log10()
    elif bulk.n_zeros:
        at_zero = nodes.new_zeros(len(nodes), 1)
        nodes = torch.cat([nodes, at_zero], 1)
        weights = torch.cat([weights, at_zero + bulk.n_zeros], 1)
    x = grid.values.log10() if grid.log else grid.values
    density = nodes.new_zeros(len(nodes), len(x))
    above = torch.zeros_like(density)
    size = max(1, _ENTRIES // density.numel())
    for t, w in zip(nodes.split(size, 1), weights.split(size, 1), strict=True):
        z = (t[:, None] - x[:, None]) / grid.width
        density += ((-z.square() / 2).exp() @ w[..., None])[..., 0]
        above += (torch.special.ndtr(z) @ w[..., None])[..., 0]
    density /= grid.width * math.sqrt(2 * math.pi)
    if grid.log:
        density /= grid.values * math.log(10)
    return density, above


def bulk_edge(bulk: Rule, modes: list[float], zero: float) -> tuple[float, int]:
    """Magnitude where the bulk ends, and how many of the falling `modes` stand off it.

    `bulk` is everything but the modes; up to the magnitude `zero` a value is rounding. The smallest
    mode is compared with the edge, then the next. A mode that lies above the edge by no more than
    the extent of the ten values below the edge is part of the bulk, and the new edge.
    """
    magnitudes, order = bulk.nodes.abs().sort(dim=1, descending=True)
    weights = bulk.weights.gather(1, order)
    edge = _above(magnitudes.flatten(), weights.flatten() / len(weights), 0.5)
    for n_outliers in range(len(modes), 0, -1):
        joined = len(modes) - n_outliers  # modes that have become part of the bulk
        if joined >= EDGE_COUNT:
            tenth = modes[n_outliers + EDGE_COUNT - 1]
        else:
            tenth = _below(magnitudes, weights, EDGE_COUNT - joined)
        if modes[n_outliers - 1] - edge > edge - tenth + zero:
            return edge, n_outliers
        edge = modes[n_outliers - 1]
    return edge, 0


def _above(
    magnitudes: Float[Tensor, " node"], weights: Float[Tensor, " node"], number: float
) -> float:
    """Magnitude at which `number` values are counted from above; 0 if there are fewer."""
    magnitudes, order = magnitudes.sort(descending=True)
    reached = weights[order].cumsum(0) >= number
    return float(magnitudes[reached][0]) if reached.any() else 0.0


def _below(magnitudes: Nodes, weights: Nodes, number: float) -> float:
    """The mean of the same over probes, of falling magnitudes each, but not above it.

    A node stands for values on both sides of it, so the next node is taken, if there is one.
    """
    last = (weights > 0).sum(1, keepdim=True) - 1
    position = (weights.cumsum(1) < number).sum(1, keepdim=True) + 1
    return float(magnitudes.gather(1, torch.minimum(position, last)).mean())
