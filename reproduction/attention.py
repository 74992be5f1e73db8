"""A block of self-attention and an MLP, whose weight sites are named parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

import kpops

WEIGHT_SITES = {"embed": 3, "heads": 1, "read": 1, "act": 1, "last": 1}
"""The parts whose outputs weights multiply, and how many weights do: V of arXiv 2605.08746."""


class Block(nn.Module):
    """Embedding, softmax attention of several heads, an MLP with GELU; no positions, no residuals.

    Biases are in the embedding alone. The MLP has three layers, the last of one output.
    """

    def __init__(self, inputs: int, width: int, heads: int, hidden: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed = nn.Linear(inputs, width)
            self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
            self.first = nn.Linear(width, hidden, bias=False)
            self.last = nn.Linear(hidden, hidden, bias=False)
            self.out = nn.Linear(hidden, 1, bias=False)
        self.heads, self.read, self.act = nn.Identity(), nn.GELU(), nn.GELU()
        self.n_heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (trial, time, 1) for inputs (trial, time, input)."""
        h = self.embed(x)
        q, k, v = (
            part(h).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        weights = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1)
        mixed = self.heads((weights @ v).transpose(1, 2).flatten(2))
        return self.out(self.last(self.act(self.first(self.read(self.o(mixed))))))


def linearize(block: Block, inputs: np.ndarray) -> kpops.SiteLinearization:
    """Linearise in float64 about the values of the weight sites."""
    x = torch.from_numpy(inputs)
    found: Any = kpops.linearize(block, x, sites=list(WEIGHT_SITES), dtype=torch.float64)
    return found


def averaged_ntk(lin: kpops.SiteLinearization) -> np.ndarray:
    """The tangent kernel of V, averaged over its units: a matrix over (trial, time).

    It is ``D D^T``, where a row of D is the gradient by the parameters of the sum of V at one trial
    and time; D = (P J)* applied to ones at the sites.
    """
    space = lin.space
    site, position = (space.coords[name].values for name in ("site", "position"))
    counts = np.array([WEIGHT_SITES[str(name)] for name in site], float)
    n_trials, n_steps = space.shape[0], int(position.max()) + 1
    rows = []
    for trial in range(n_trials):
        ones = np.zeros((*space.shape, n_steps))
        for step in range(n_steps):
            ones[trial, :, step] = counts * (position == step)
        rows.append(np.asarray(lin.sensitivity.H @ ones.reshape(-1, n_steps)).T)
    D = np.concatenate(rows)
    return D @ D.T


def weight_features(lin: kpops.SiteLinearization) -> np.ndarray:
    """V (trial and time, unit), each site as often as weights multiply it."""
    space = lin.space
    values = lin.states.values
    site, position = (space.coords[name].values for name in ("site", "position"))
    parts = []
    for name, count in WEIGHT_SITES.items():
        at = site == name
        of_site = values[:, at].reshape(len(values), int(position[at].max()) + 1, -1)
        parts += count * [of_site]
    joint = np.concatenate(parts, axis=-1)
    return joint.reshape(-1, joint.shape[-1])


def rank(matrix: Any) -> float:
    """Participation ratio of a positive matrix."""
    found: xr.Dataset = kpops.effective_rank(matrix, method="exact")
    return float(found.estimate)
