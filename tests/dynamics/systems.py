"""Textbook systems as modules, and the exponents of any module by plain loops."""

import numpy as np
import torch
from torch import nn

from kpops.engines.random_vectors import RandomVectors


class Linear(nn.Module):
    """h' = W h, with no structure told."""

    def __init__(self, W):
        super().__init__()
        self.W = nn.Parameter(torch.as_tensor(W))

    def forward(self, x, h):
        return h @ self.W.T


class Residual(nn.Module):
    """A cell without structure."""

    def __init__(self, n):
        super().__init__()
        self.inner, self.outer, self.drive = nn.Linear(n, 7), nn.Linear(7, n), nn.Linear(2, n)
        self.state_size = n

    def forward(self, x, h):
        return 0.7 * h + torch.tanh(self.outer(torch.tanh(self.inner(h))) + self.drive(x))


class Henon(nn.Module):
    def forward(self, x, h):
        return torch.stack([1 - 1.4 * h[:, 0] ** 2 + h[:, 1], 0.3 * h[:, 0]], -1)


class RK4(nn.Module):
    """A step of the classical Runge-Kutta method."""

    def __init__(self, field, dt):
        super().__init__()
        self.field, self.dt = field, dt

    def forward(self, x, h):
        a = self.field(h)
        b = self.field(h + self.dt / 2 * a)
        c = self.field(h + self.dt / 2 * b)
        d = self.field(h + self.dt * c)
        return h + self.dt / 6 * (a + 2 * b + 2 * c + d)


def lorenz(h):
    x, y, z = h.unbind(-1)
    return torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], -1)


def with_eigenvalues(values, seed=0, skew=3.0):
    """A matrix that is far from normal."""
    V = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values),) * 2))[0]
    V = V @ (np.eye(len(values)) + np.triu(np.full((len(values),) * 2, skew / len(values)), 1))
    return V @ np.diag(values) @ np.linalg.inv(V)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_cell(cell, seed=0, scale=1.0):
    """Weights larger than PyTorch's, in float64."""
    generator = torch.Generator().manual_seed(seed)
    cell = cell.double()
    with torch.no_grad():
        for p in cell.parameters():
            spread = scale / p.shape[-1] ** 0.5 if p.ndim > 1 else 0.3
            p.copy_(spread * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return cell


def dense_jacobians(step, states, inputs):
    """States (trial, time, unit) after every step, and A of every step, by plain autograd."""
    trajectories, jacobians = [], []
    for h, xs in zip(states, inputs, strict=True):
        hs, As = [], []
        for x in xs:
            one_step = lambda g, x=x: step(x[None], g[None])[0]  # noqa: E731
            As.append(torch.autograd.functional.jacobian(one_step, h))
            h = one_step(h).detach()
            hs.append(h)
        trajectories.append(torch.stack(hs))
        jacobians.append(torch.stack(As))
    return torch.stack(trajectories).numpy(), torch.stack(jacobians).numpy()


def textbook(jacobians, k, seed, begin=0, lengths=None):
    """Mean log |R_ii| (trial, mode) of the steps from `begin` on, with a QR at every step."""
    n_trials, n_steps, n_units, _ = jacobians.shape
    like = torch.empty(0, dtype=torch.float64)
    starts = RandomVectors(seed).normal(k, range(n_trials * n_units), like).numpy()
    starts = starts.reshape(k, n_trials, n_units)
    result = np.zeros((n_trials, k))
    for b in range(n_trials):
        Q = np.linalg.qr(starts[:, b].T)[0]
        last = n_steps if lengths is None else lengths[b]
        for t in range(last):
            Q, R = np.linalg.qr(jacobians[b, t] @ Q)
            result[b] += (t >= begin) * np.log(np.abs(np.diag(R))) / (last - begin)
    return result
