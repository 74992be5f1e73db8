"""Random networks with a fixed point whose leading eigenvalue is a chosen distance from 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

FAMILIES = ("fold", "pitchfork")
"""With biases, at a point of any values; without, on an arm of the pitchfork of the rest."""

NEAR = 0.025
"""Largest distance at which slopes are taken."""


def at_distance(
    family: str, seed: int, units: int, distance: float
) -> tuple[nn.RNNCell, NDArray[np.float64]]:
    """A tanh network and its fixed point.

    Parameters
    ----------
    family : {"fold", "pitchfork"}
        ``"fold"`` learns weights and biases, and its eigenvalue is 1 - `distance` exactly.
        ``"pitchfork"`` learns weights, at rest its eigenvalue is 1 + `distance` / 2, so that the
        arms have 1 - `distance` to first order.
    seed, units : int
        Of the random numbers, which do not depend on the distance; number of units.
    distance : float
        Of the leading eigenvalue from 1.

    Returns
    -------
    RNNCell
        In float64, whose input is one constant zero.
    array (unit,)
        The fixed point.
    """
    rng = np.random.default_rng(seed)
    bulk = 0.5 * rng.normal(size=(units, units)) / np.sqrt(units)
    point = rng.uniform(-0.5, 0.5, units)
    right, left = _vectors(rng, units)
    projection = np.eye(units) - np.outer(right, left)
    bulk = projection @ bulk @ projection
    if family == "fold":
        A = (1 - distance) * np.outer(right, left) + bulk
        W = A / (1 - point**2)[:, None]
        return _cell(W, np.arctanh(point) - W @ point), point
    W = (1 + distance / 2) * np.outer(right, left) + bulk
    amplitude = np.sqrt(1.5 * distance / (left @ right**3))
    return _cell(W, None), newton(W, amplitude * right)


def _vectors(rng: np.random.Generator, units: int) -> tuple[NDArray, NDArray]:
    """A unit vector, and one beside it, at an angle, whose product with it is 1."""
    right = rng.normal(size=units)
    right /= np.linalg.norm(right)
    other = rng.normal(size=units)
    other -= (other @ right) * right
    return right, right + 0.5 * other / np.linalg.norm(other)


def newton(W: NDArray, point: NDArray) -> NDArray:
    """Solve h = tanh(W h), from nearby."""
    for _ in range(50):
        value = np.tanh(W @ point)
        jacobian = (1 - value**2)[:, None] * W
        step = np.linalg.solve(np.eye(len(W)) - jacobian, value - point)
        point = point + step
        if np.linalg.norm(step) < 1e-13:
            break
    return point


def _cell(W: NDArray, bias: NDArray | None) -> nn.RNNCell:
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        cell = nn.RNNCell(1, len(W), bias=bias is not None).double()
    with torch.no_grad():
        cell.weight_ih.zero_()
        cell.weight_hh.copy_(torch.from_numpy(W))
        if bias is not None:
            cell.bias_ih.copy_(torch.from_numpy(bias))
            cell.bias_hh.zero_()
    return cell


def slopes(distance: NDArray, values: NDArray) -> list[float]:
    """Slope of log values (seed, distance) in log distance below `NEAR`, of each seed."""
    found = []
    for d, line in zip(distance, values, strict=True):
        near = d < NEAR
        found.append(float(np.polyfit(np.log(d[near]), np.log(line[near]), 1)[0]))
    return found
