"""Normal forms of bifurcations, and small models with a parameter mu, as modules."""

import math

import torch
from torch import nn

TURN = 1.0


class Family(nn.Module):
    """h' = f(h, mu)."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.mu = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x, h):
        return self.function(h, self.mu)


def rotation(h, mu):
    """A focus that loses its stability at mu = 0, with the radial map r -> (1 + mu) r - r^3."""
    x, y = h.unbind(-1)
    growth = 1 + mu - x**2 - y**2
    c, s = math.cos(TURN), math.sin(TURN)
    return torch.stack([growth * (c * x - s * y), growth * (s * x + c * y)], -1)


# f, a fixed point at the beginning, kind, coefficient. All bifurcate at mu = 0.
NORMAL_FORMS = {
    "fold": (lambda h, mu: h + mu + 2 * h**2, [-(0.31**0.5) / 2**0.5], 2),
    "transcritical": (lambda h, mu: (1 + mu) * h - 3 * h**2, [0], -3),
    "pitchfork": (lambda h, mu: (1 + mu) * h - h**3, [0], -1),
    "flip": (lambda h, mu: -(1 + mu) * h + 2 * h**3, [0], 2),
    "neimark-sacker": (rotation, [0, 0], -2),  # |z|^2 of a unit eigenvector is r^2 / 2
}


class Field(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.mu = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, t, h):
        return self.function(h, self.mu)


def rnn(W):
    cell = nn.RNNCell(1, len(W)).double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
    return cell, torch.as_tensor(W)
