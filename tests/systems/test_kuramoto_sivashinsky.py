"""The Kuramoto-Sivashinsky equation: its field, its exponential solver, and their laws."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import kpops
from kpops.systems.divergence import divergence
from kpops.systems.models import _phi


@pytest.fixture
def model():
    return kpops.systems.load("KuramotoSivashinsky")


def dense_field(n, length=22.0):
    """The rate by dense matrices of trigonometric interpolation."""
    k = np.fft.fftfreq(n, 1 / n) * 2 * np.pi / length
    F = np.fft.fft(np.eye(n))
    odd = np.where(np.arange(n) == n // 2, 0, k)
    D = np.real(np.linalg.solve(F, np.diag(1j * odd) @ F))
    L = np.real(np.linalg.solve(F, np.diag(k**2 - k**4) @ F))
    return lambda t, u: L @ u - D @ (u * u / 2)


@pytest.mark.parametrize("n", [16, 15])
def test_field_is_that_of_dense_differentiation_matrices(model, n):
    u = np.random.default_rng(0).standard_normal(n)
    if n % 2:  # without a highest mode that is real
        k = np.fft.fftfreq(n, 1 / n) * 2 * np.pi / 22
        rate = np.real(np.fft.ifft((k**2 - k**4) * np.fft.fft(u) - 0.5j * k * np.fft.fft(u * u)))
    else:
        rate = dense_field(n)(0, u)
    got = model.field(None, torch.as_tensor(u)[None])[0].detach()
    np.testing.assert_allclose(got, rate, atol=1e-11)


def test_steps_follow_a_solver_of_stiff_equations(model):
    states = kpops.systems.trajectory(model, 20)[0]
    options = {"method": "Radau", "rtol": 1e-9, "atol": 1e-10}
    exact = solve_ivp(
        dense_field(16), (0, 2), model.start.numpy(), t_eval=states.time.values, **options
    )
    np.testing.assert_allclose(states, exact.y.T, atol=2e-6)


def test_divergence_is_the_sum_over_wavenumbers(model):
    k = np.fft.fftfreq(16, 1 / 16) * 2 * np.pi / 22
    states = model.start + torch.as_tensor(np.random.default_rng(0).standard_normal((5, 16)))
    got = divergence(model.field, states).detach()
    np.testing.assert_allclose(got, (k**2 - k**4).sum(), rtol=1e-12)


def test_the_mean_is_kept_and_the_mean_flow_only_moves_the_pattern(model):
    states = kpops.systems.trajectory(model, 50)[0]
    np.testing.assert_allclose(states.mean("unit"), states[0].mean(), atol=1e-12)
    with (
        torch.no_grad()
    ):  # u + c is u in a frame of speed c: 22 / 16 takes a point per unit of time
        moving = kpops.systems.load("KuramotoSivashinsky")
        moving.start += 22 / 16
        shifted = kpops.systems.trajectory(moving, 10)[0, -1].values - 22 / 16
    # The lowest 7 modes of 16 points are moved exactly, all others have no amplitude.
    np.testing.assert_allclose(np.roll(states[9].values, 1), shifted, atol=5e-2)


def test_the_derivative_of_a_step_is_exact(model):
    x, h = torch.zeros(1, 0, dtype=torch.float64), model.start
    A = torch.func.jacrev(lambda h: model(x, h[None])[0])(h).detach().numpy()
    lin = kpops.linearize(model, torch.zeros(1, 2, 0, dtype=torch.float64), h0=h)
    second = torch.func.jacrev(lambda h: model(x, h[None])[0])(model(x, h[None])[0].detach())
    blocks = lin.P.to_dense().reshape(2, 16, 2, 16)
    np.testing.assert_allclose(blocks[1, :, 0], second.detach(), atol=1e-12)
    step = 1e-6
    with torch.no_grad():
        for i in (0, 7):
            e = torch.zeros(16, dtype=torch.float64)
            e[i] = step
            column = (model(x, (h + e)[None]) - model(x, (h - e)[None]))[0] / (2 * step)
            np.testing.assert_allclose(A[:, i], column, atol=1e-8)


def test_solver_has_order_four(model):
    with torch.no_grad():
        x, h = torch.zeros(1, 0, dtype=torch.float64), model.start[None]
        ends = {}
        for n in (2, 4, 8, 64):
            model.n_substeps = n
            ends[n] = model(x, h)
    errors = [float((ends[n] - ends[64]).norm()) for n in (2, 4, 8)]
    slopes = np.log2(np.divide(errors[:-1], errors[1:]))
    assert (slopes > 3.5).all() and (slopes < 4.6).all()


def test_phi_functions_are_their_integrals():
    """phi_j(z) = integral over s from 0 to 1 of e^{(1 - s) z} s^{j-1} / (j-1)!, by Gauss."""
    z = torch.tensor([-30.0, -4.0, -1.0, -0.999, -1e-3, 0.0, 0.3, 1.0, 2.0], dtype=torch.float64)
    nodes, weights = np.polynomial.legendre.leggauss(60)
    s, w = (nodes + 1) / 2, weights / 2
    for j, got in enumerate(_phi(z)[1:], start=1):
        power = s ** (j - 1) / math.factorial(j - 1)
        expected = (np.exp(np.outer(z.numpy(), 1 - s)) * power) @ w
        np.testing.assert_allclose(got, expected, rtol=1e-13)


def test_more_points_give_a_larger_model(model):
    h = torch.cos(torch.arange(32, dtype=torch.float64) * 2 * math.pi / 32)
    result = kpops.lyapunov_spectrum(model, 2, h0=h, n_steps=3, dt=model.dt, rng=0)
    assert result.sizes["mode"] == 2
    lorenz96 = kpops.systems.load("Lorenz96")
    wide = torch.linspace(1, 8, 12, dtype=torch.float64)
    result = kpops.lyapunov_spectrum(lorenz96, h0=wide, n_steps=3, dt=lorenz96.dt, rng=0)
    assert float(result.exponent.sum()) == pytest.approx(-12, abs=1e-5)
