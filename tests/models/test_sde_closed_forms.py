"""SDE blocks with a closed form: Ornstein-Uhlenbeck and geometric Brownian motion, along a path.

Of a linear drift with additive noise P is the power of one factor; of geometric Brownian motion the
product of the factors of the path. As dt falls they go to exp(-theta t) and to
exp((mu - sigma^2 / 2) t + sigma W(t)), the derivative of the flow of the path by its start.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from dense import relative
from torch import nn

import kpops
from kpops.models import NeuralSDE


class Multiple(nn.Module):
    """A multiple of the state, one for each unit."""

    def __init__(self, factors):
        super().__init__()
        self.factors = nn.Parameter(torch.tensor(factors, dtype=torch.float64))

    def forward(self, t, h):
        return self.factors * h


def ornstein_uhlenbeck(theta, sigma, dt):
    return NeuralSDE(Multiple([-v for v in theta]), lambda t, h: sigma * torch.ones_like(h), dt)


def blocks(lin):
    """Diagonals of the blocks P[t, s] of the one trial; (time, time, unit)."""
    n_steps, size = lin.space.shape[1:]
    P = torch.from_numpy(lin.P.to_dense()).reshape(n_steps, size, n_steps, size)
    assert not torch.count_nonzero(P.permute(0, 2, 1, 3)[..., ~torch.eye(size, dtype=torch.bool)])
    return P.permute(0, 2, 1, 3).diagonal(dim1=2, dim2=3)


def test_P_and_states_of_an_ornstein_uhlenbeck_process_are_powers_of_its_factor():
    theta, sigma, dt, n = np.array([0.5, 4.0]), 0.3, 0.05, 30
    sde = ornstein_uhlenbeck(theta, sigma, dt)
    inputs = sde.inputs(dt * np.arange(n + 1), 2, rng=0)
    lin = kpops.linearize(sde, inputs, h0=np.array([1.0, -2.0]))
    lags = np.subtract.outer(np.arange(n), np.arange(n))[..., None]
    expected = np.where(lags >= 0, (1 - theta * dt) ** np.maximum(lags, 0), 0)
    assert relative(blocks(lin), expected) < 1e-12
    kicks = sigma * inputs[0, :, 1:].numpy()
    steps = np.arange(1, n + 1)[:, None]
    states = (1 - theta * dt) ** steps * [1.0, -2.0] + np.einsum("tsi,si->ti", expected, kicks)
    assert relative(lin.states.values[0], states) < 1e-12


def test_P_of_an_ornstein_uhlenbeck_process_goes_to_its_exponential_at_first_order():
    errors = []
    for n in (40, 80, 160):
        sde = ornstein_uhlenbeck([2.0], 0.3, 1 / n)
        P = blocks(kpops.linearize(sde, sde.inputs(np.arange(n + 1) / n, 1, rng=0), h0=np.ones(1)))
        elapsed = (n - 1) / n  # a kick at the end of the first step
        errors.append(abs(float(P[-1, 0, 0]) - math.exp(-2.0 * elapsed)))
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert orders == pytest.approx([1, 1], abs=0.1)


def test_the_stationary_covariance_is_that_of_the_discrete_process():
    # Var = sigma^2 dt / (1 - (1 - theta dt)^2), from P P* alone: no path is drawn.
    theta, sigma, dt, n = 2.0, 0.3, 0.05, 400
    sde = ornstein_uhlenbeck([theta], sigma, dt)
    lin = kpops.linearize(sde, sde.inputs(dt * np.arange(n + 1), 1, rng=0), h0=np.ones(1))
    last = lin.P.to_dense()[-1]
    variance = sigma**2 * dt * float(last @ last)
    assert variance == pytest.approx(sigma**2 * dt / (1 - (1 - theta * dt) ** 2), rel=1e-12)
    assert variance == pytest.approx(sigma**2 / (2 * theta), rel=0.06)  # that of dt -> 0


def test_P_of_geometric_brownian_motion_is_the_product_of_its_factors():
    mu, sigma, dt, n = np.array([0.4, -1.0]), np.array([0.8, 0.5]), 0.02, 25
    sde = NeuralSDE(Multiple(list(mu)), Multiple(list(sigma)), dt)
    inputs = sde.inputs(dt * np.arange(n + 1), 2, rng=1)
    lin = kpops.linearize(sde, inputs, h0=np.array([1.0, 2.0]))
    factors = 1 + mu * dt + sigma * inputs[0, :, 1:].numpy()
    expected = np.zeros((n, n, 2))
    for s in range(n):
        expected[s:, s] = np.cumprod(np.vstack([np.ones(2), factors[s + 1 :]]), axis=0)
    assert relative(blocks(lin), expected) < 1e-12
    assert relative(lin.states.values[0], np.cumprod(factors, axis=0) * [1.0, 2.0]) < 1e-12


def test_P_of_geometric_brownian_motion_goes_to_the_exponential_of_its_path():
    # In the root mean square over paths, from a kick at time 0.25 to time 1: strong order 1/2.
    mu, sigma, finest, n_paths = 0.3, 0.9, 256, 2000
    sde = NeuralSDE(Multiple([mu]), Multiple([sigma]), None)
    fine = sde.inputs(np.linspace(0, 1, finest + 1), 1, n_trials=n_paths, rng=0)
    late = fine[:, finest // 4 :, 2].sum(1)  # the path from 0.25 to 1
    exact = torch.exp(0.75 * (mu - sigma**2 / 2) + sigma * late)
    errors = []
    for n in (16, 32, 64):
        inputs = sde.inputs(np.linspace(0, 1, n + 1), 1, n_trials=n_paths)
        inputs[:, :, 2] = fine[:, :, 2].unflatten(1, (n, -1)).sum(2)
        lin = kpops.linearize(sde, inputs, h0=np.ones(1))
        kick = torch.zeros(n_paths, n, 1, dtype=torch.float64)
        kick[:, n // 4 - 1] = 1
        found = (lin.P @ kick)[:, -1, 0]
        errors.append(float((found - exact).square().mean().sqrt()))
    assert np.log2(errors[0] / errors[-1]) / 2 == pytest.approx(0.5, abs=0.1)
    assert errors[-1] < 0.15 * float(exact.square().mean().sqrt())
