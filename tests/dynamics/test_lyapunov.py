"""Lyapunov exponents: the oracles 11 and 12 of theory, and textbook loops over dense Jacobians."""

import numpy as np
import pytest
import torch
from systems import RK4, Henon, Linear, Residual, lorenz, normal, random_cell, with_eigenvalues
from test_oracles import linear_rnn
from torch import nn

import kpops
from kpops.dynamics.lyapunov import lyapunov_spectrum

# Linear maps and flows.


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("n", "k"), [(5, 5), (5, 2), (20, 2), (68, 3), (68, 30)])
def test_linear_map_has_the_logarithms_of_its_eigenvalues(n, k, gated):
    values = 1.3 * 0.8 ** np.arange(n) * np.where(np.arange(n) % 3, 1, -1)
    W = with_eigenvalues(values)
    model = linear_rnn(W, engine="gated") if gated else Linear(W)
    result = lyapunov_spectrum(model, k, h0=np.zeros(n), n_steps=400, frame_transient=300, rng=0)
    np.testing.assert_allclose(result.exponent, np.log(np.abs(values[:k])), atol=1e-10)
    np.testing.assert_allclose(result.trial_stderr[0], 0, atol=1e-10)
    assert result.attrs["dynamics"] == "autonomous"


def test_a_pair_of_complex_eigenvalues_shares_its_modulus():
    turn = 0.9 * np.array([[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]])
    W = np.block([[turn, np.zeros((2, 1))], [np.zeros((1, 2)), np.full((1, 1), -0.4)]])
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    model = Linear(Q @ W @ Q.T)
    result = lyapunov_spectrum(model, h0=np.zeros(3), n_steps=400, frame_transient=200, rng=0)
    np.testing.assert_allclose(result.exponent, np.log([0.9, 0.9, 0.4]), atol=1e-10)


def test_linear_flow_has_the_real_parts_of_its_eigenvalues_per_unit_of_time():
    values = np.array([0.5, -0.2, -1.0])
    M = torch.as_tensor(with_eigenvalues(values))
    model = RK4(lambda h: h @ M.T, 0.01)
    options = {"h0": np.zeros(3), "n_steps": 4000, "frame_transient": 3500, "rng": 0}
    result = lyapunov_spectrum(model, dt=0.01, **options)
    np.testing.assert_allclose(result.exponent, values, atol=1e-6)
    assert result.exponent.units == "1/time"
    per_step = lyapunov_spectrum(model, **options)
    np.testing.assert_allclose(per_step.exponent, 0.01 * result.exponent, rtol=1e-12)
    assert per_step.exponent.units == "1/step"


# Chaos.


def test_henon_has_its_exponents_within_half_a_percent():
    h0 = 0.1 * normal(200, 2, seed=1)
    result = lyapunov_spectrum(Henon(), h0=h0, n_steps=3200, transient=100, rng=0)
    gaps = np.abs(result.exponent - [0.419, -1.623])
    assert (gaps <= 0.005 * np.array([0.419, 1.623])).all()
    assert (gaps <= 4 * result.stderr).all() and (result.stderr < 1e-3).all()
    assert float(result.exponent.sum()) == pytest.approx(np.log(0.3), abs=1e-10)
    assert float(result.mean_log_det) == pytest.approx(np.log(0.3), abs=1e-10)
    assert float(result.entropy_bound) == pytest.approx(float(result.exponent[0]), rel=1e-12)
    first, second = result.exponent.values
    assert float(result.kaplan_yorke_dimension) == pytest.approx(1 - first / second, rel=1e-12)


@pytest.mark.parametrize(
    ("n_trials", "n_steps", "percent"),
    [(200, 2500, 2), pytest.param(2000, 6000, 0.5, marks=pytest.mark.slow)],
)
def test_lorenz_has_its_exponents(n_trials, n_steps, percent):
    h0 = normal(n_trials, 3) + torch.tensor([0.0, 0.0, 25.0])
    options = {"transient": 750, "frame_transient": 250, "dt": 0.02, "rng": 0}
    result = lyapunov_spectrum(RK4(lorenz, 0.02), h0=h0, n_steps=n_steps, **options)
    gaps = np.abs(result.exponent - [0.905, 0, -14.57]).values
    assert (gaps <= percent / 100 * np.array([0.905, 0.905, 14.57])).all()
    assert (gaps <= 4 * result.stderr).all() and (result.stderr < percent / 400).all()
    mean_log_det = float(result.mean_log_det)
    assert float(result.exponent.sum()) == pytest.approx(mean_log_det, abs=1e-10)
    assert float(result.kaplan_yorke_dimension) == pytest.approx(2.062, abs=2e-3)


def test_the_sum_for_lorenz_is_minus_41_thirds_at_the_order_of_the_solver():
    h0 = [[1.0, 2.0, 20.0]]
    gaps = []
    for dt in (0.01, 0.005, 0.0025):
        result = lyapunov_spectrum(RK4(lorenz, dt), h0=h0, n_steps=int(2 / dt), dt=dt, rng=0)
        gaps.append(abs(float(result.exponent.sum()) + 41 / 3))
    assert gaps[0] < 1e-3 and gaps[2] < 1e-5
    assert np.log2(np.divide(gaps[:-1], gaps[1:])) == pytest.approx(4, abs=0.3)


def test_a_rossler_system_is_three_lines_and_has_its_exponents():
    def rossler(h):
        x, y, z = h.unbind(-1)
        return torch.stack([-y - z, x + 0.2 * y, 0.2 + z * (x - 5.7)], -1)

    phase = torch.linspace(0, 2 * torch.pi, 200).double()  # which runs keep: they must differ
    h0 = torch.stack([6 * phase.cos(), 6 * phase.sin(), torch.zeros(200)], -1)
    options = {"transient": 1000, "frame_transient": 1000, "dt": 0.05, "rng": 0}
    result = lyapunov_spectrum(RK4(rossler, 0.05), h0=h0, n_steps=4000, **options)
    # Sprott 2003, Chaos and Time-Series Analysis: (0.0714, 0, -5.3943).
    gaps = np.abs(result.exponent - [0.0714, 0, -5.3943]).values
    assert (gaps <= 4 * result.stderr).all() and (gaps <= [4e-3, 2e-3, 2e-2]).all()
    assert float(result.exponent.sum()) == pytest.approx(float(result.mean_log_det), abs=1e-10)
    assert float(result.kaplan_yorke_dimension) == pytest.approx(2.0132, abs=1e-3)


# Networks.


def test_a_stable_fixed_point_of_a_tanh_rnn_has_the_logarithms_of_its_eigenvalues():
    W = normal(6, 6, seed=4)
    W = 0.12 * (W + W.T)  # then diag(1 - h^2) W has real eigenvalues
    model = nn.RNN(1, 6, batch_first=True).double()
    with torch.no_grad():
        model.weight_hh_l0.copy_(W)
    bias = (model.bias_ih_l0 + model.bias_hh_l0).detach()
    result = lyapunov_spectrum(
        model, h0=normal(2, 6), n_steps=4000, transient=1000, frame_transient=2500, rng=0
    )
    h = torch.zeros(6).double()
    for _ in range(5000):
        h = torch.tanh(W @ h + bias)
    values = torch.linalg.eigvals((1 - h**2)[:, None] * W).abs().sort(descending=True).values
    assert float(values[0]) < 1
    np.testing.assert_allclose(result.exponent, values.log(), atol=1e-10)
    assert float(result.kaplan_yorke_dimension) == 0 and float(result.entropy_bound) == 0


def test_autonomous_and_driven_exponents_of_an_rnn_differ_and_say_which_they_are():
    model = kpops.models.initialize_recurrent(nn.RNN(2, 64, batch_first=True), 2.5, rng=0).double()
    with torch.no_grad():
        model.weight_ih_l0.copy_(normal(64, 2, seed=1))
    options = {"h0": normal(4, 64), "transient": 100, "rng": 0}
    alone = lyapunov_spectrum(model, 1, n_steps=600, **options)
    driven = lyapunov_spectrum(model, 1, inputs=5 * normal(4, 600, 2), **options)
    assert alone.attrs["dynamics"] == "autonomous" and driven.attrs["dynamics"] == "driven"
    # Strong inputs quench the chaos of the network (Rajan, Abbott and Sompolinsky 2010).
    assert float(alone.exponent[0]) > 0.1 and float(driven.exponent[0]) < -0.1
    constant = lyapunov_spectrum(model, 1, inputs=np.zeros((4, 600, 2)), **options)
    assert constant.attrs["dynamics"] == "autonomous"
    assert float(constant.exponent[0]) == float(alone.exponent[0])


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_generalised_teacher_forcing_shifts_the_spectrum(alpha):
    cell = random_cell(nn.RNNCell(1, 5), scale=2)
    inputs, h0 = torch.zeros(3, 200, 1).double(), normal(3, 5, seed=2)
    lin = kpops.linearize(cell, inputs, h0=h0)
    free = lyapunov_spectrum(lin, rng=7)
    # The network as its own teacher stays on its trajectory.
    forced = torch.cat([inputs, lin.trajectory.previous], -1)
    model = kpops.models.TeacherForced(cell, alpha)
    shifted = lyapunov_spectrum(model, inputs=forced, h0=h0, rng=7)
    np.testing.assert_allclose(shifted.exponent, free.exponent + np.log(1 - alpha), atol=1e-10)


@pytest.mark.parametrize("cell", [lambda: nn.GRU(2, 6, batch_first=True), lambda: Residual(20)])
def test_float32_stays_float32(cell):
    torch.manual_seed(0)
    single = cell()
    inputs = normal(3, 200, 2, dtype=torch.float32)
    result = lyapunov_spectrum(single, 3, inputs=inputs, rng=0)
    assert all(v.dtype == np.float32 for v in result.data_vars.values())
    double = lyapunov_spectrum(single, 3, inputs=inputs, dtype=torch.float64, rng=0)
    assert all(v.dtype == np.float64 for v in double.data_vars.values())
    np.testing.assert_allclose(result.exponent, double.exponent, atol=1e-5)
    assert next(single.parameters()).dtype == torch.float32


# Singular Jacobians.


def test_a_singular_map_has_as_many_infinite_exponents_as_its_kernel_has_dimensions():
    values = np.array([1.2, -0.9, 0.5, 0, 0])
    for n_steps in (1, 300):
        result = lyapunov_spectrum(
            Linear(with_eigenvalues(values)), h0=np.zeros(5), n_steps=n_steps, rng=0
        )
        assert (result.exponent[3:] == -np.inf).all() and np.isfinite(result.exponent[:3]).all()
    np.testing.assert_allclose(result.exponent[:3], np.log([1.2, 0.9, 0.5]), atol=1e-2)
    assert np.isnan(result.stderr[3:]).all() and (result.stderr[:3] < 1e-2).all()
    assert float(result.mean_log_det) < np.log(1e-15) or float(result.mean_log_det) == -np.inf


def test_a_map_that_forgets_its_state_has_no_finite_exponent():
    class Forgetful(nn.Module):
        def forward(self, x, h):
            return x.sum(-1, keepdim=True).expand_as(h).clone()

    result = lyapunov_spectrum(Forgetful(), inputs=normal(2, 20, 3), h0=np.zeros(3), rng=0)
    assert np.isneginf(result.trial_exponent).all() and float(result.mean_log_det) == -np.inf


@pytest.mark.parametrize("k", [32, 3])
def test_units_that_are_off_take_modes_away_for_ever(k):
    """A ReLU unit that is off once makes one exponent minus infinity, even if it comes back."""
    cell = random_cell(nn.RNNCell(1, 32, nonlinearity="relu"), scale=0.3)
    with torch.no_grad():
        cell.bias_hh.fill_(2)  # all units on
        cell.weight_ih.zero_()
        cell.weight_ih[:30] = -1000.0
    inputs = torch.zeros(2, 50, 1).double()
    inputs[0, 20] = 1  # 30 units off at one step of one trial
    result = lyapunov_spectrum(cell, k, inputs=inputs, frame_transient=0, rng=0)
    gone = np.isneginf(result.trial_exponent)
    assert not gone[1].any()
    np.testing.assert_array_equal(gone[0], np.arange(k) >= 2)
    times = np.isneginf(result.finite_time_exponent[0, :, 2])
    np.testing.assert_array_equal(times, result.time > 20)


@pytest.mark.parametrize(("dtype", "factor"), [(torch.float32, 1e25), (torch.float64, 1e200)])
def test_growth_whose_square_overflows_is_not_taken_for_singular(dtype, factor):
    model = Linear(torch.tensor([[factor, 1.0], [0.0, 2 * factor]], dtype=dtype))
    h0 = torch.zeros(2, dtype=dtype)
    result = lyapunov_spectrum(model, h0=h0, n_steps=300, frame_transient=150, rng=0)
    expected = np.log([2 * factor, factor])
    np.testing.assert_allclose(result.exponent, expected, rtol=10 * torch.finfo(dtype).eps)


def test_strong_contraction_is_not_taken_for_singular():
    values = np.array([1.0, 1e-3, 1e-6, 1e-9])
    model = Linear(np.diag(values))
    result = lyapunov_spectrum(model, h0=np.zeros(4), n_steps=50, frame_transient=20, rng=0)
    np.testing.assert_allclose(result.exponent, np.log(values), atol=1e-6)


# P.


def test_singular_values_of_the_blocks_of_p_tend_to_the_exponents():
    # Slow enough for singular values above the rounding of the largest.
    model = random_cell(kpops.models.LeakyCell(2, 5, alpha=0.05), scale=2)
    inputs, h0 = normal(1, 161, 2, seed=1), normal(1, 5, seed=2)
    gaps = []
    for n in (40, 160):
        lin = kpops.linearize(model, inputs[:, : n + 1], h0=h0)
        P = lin.P.to_dense().reshape(n + 1, 5, n + 1, 5)
        logs = np.log(np.linalg.svd(P[n, :, 0], compute_uv=False))  # A[n] ... A[1]
        gaps.append([])
        for seed in range(10):
            result = lyapunov_spectrum(lin, transient=1, frame_transient=0, rng=seed)
            growth = n * result.exponent.values
            assert logs.sum() == pytest.approx(growth.sum(), abs=1e-8)
            assert (logs.cumsum() >= growth.cumsum() - 1e-8).all()
            gaps[-1].append(np.abs(logs - growth).max() / n)
    # The frame adds a constant of its own to n times the gap, so a quarter is seen only on average.
    assert np.mean(gaps[1]) < 0.5 * np.mean(gaps[0]) and max(gaps[1]) < 0.05
