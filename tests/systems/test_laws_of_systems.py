"""Laws that the systems obey: volumes, energies, bounds, and the sum of exponents."""

import math

import numpy as np
import pytest
import torch

import kpops
from kpops.systems.divergence import contraction, divergence

FLOWS, MAPS = kpops.systems.names("flow"), kpops.systems.names("map")

CONSTANT_DIVERGENCE = {
    "Lorenz": -41 / 3,
    "DiffusionlessLorenz": -1,
    "Chen": 28 - 35 - 3,
    "Lu": 20 - 36 - 3,
    "Halvorsen": -3 * 1.27,
    "Thomas": -3 * 0.18,
    "RabinovichFabrikant": 2 * (0.87 - 1.1),
    "Rucklidge": -3,
    "BurkeShaw": -11,
    "Arneodo": -1,
    "GenesioTesi": -0.44,
    "Dadras": 1.7 - 3 - 9,
    "MooreSpiegel": -1,
    "Windmi": -0.7,
    "SimplestQuadratic": -2.017,
    "SimplestPiecewiseLinear": -0.6,
    "DoublePendulum": 0,
    "HenonHeiles": 0,
    "Lorenz96": -8,
    "SprottB": -1,
    "SprottC": -1,
    "SprottE": -1,
    "SprottF": 0.5 - 1,
    "SprottG": 0.4 - 1,
    "SprottH": 0.5 - 1,
    "SprottI": -1,
    "SprottJ": -2,
    "SprottL": -1,
    "SprottM": -1,
    "SprottN": -2,
    "SprottQ": 0.5 - 1,
    "SprottR": -1,
    "SprottS": -1,
}
DETERMINANTS = {
    "Henon": 0.3,
    "Lozi": 0.5,
    "Ikeda": 0.9**2,
    "KaplanYorke": 2 * 0.2,
    "Holmes": 0.2,
    "Standard": 1,
    "DissipativeStandard": 0.1,
    "Cat": 1,
}


def random_states(model, n=50):
    drawn = np.random.default_rng(0).standard_normal((n, len(model.start)))
    return model.start + torch.as_tensor(drawn)


@pytest.mark.parametrize(("name", "expected"), CONSTANT_DIVERGENCE.items())
def test_divergence_by_differentiation_is_that_by_hand(name, expected):
    model = kpops.systems.load(name)
    got = divergence(model.field, random_states(model)).detach()
    np.testing.assert_allclose(got, expected, atol=1e-11)


def test_divergence_of_rossler_and_its_integral_follow_x():
    model = kpops.systems.load("Rossler")
    states = random_states(model)
    x = states[:, 0]
    got = divergence(model.field, states).detach()
    np.testing.assert_allclose(got, 0.2 + x - 5.7, atol=1e-12)
    volume = contraction(model, states).numpy()  # the mean of a + x - c over a step of 0.1
    fine = kpops.systems.load("Rossler")
    fine.dt, fine.n_substeps = 0.001, 1
    h, along = states, []
    with torch.no_grad():
        for _ in range(101):
            along.append(0.2 + h[:, 0].numpy() - 5.7)
            h = fine(h.new_zeros(len(h), 1), h)
    simpson = np.array([1, *[4, 2] * 49, 4, 1]) / 300
    np.testing.assert_allclose(volume, simpson @ np.array(along), atol=1e-8)


@pytest.mark.parametrize(("name", "expected"), DETERMINANTS.items())
def test_determinant_of_a_map_is_that_by_hand(name, expected):
    model = kpops.systems.load(name)
    got = contraction(model, random_states(model))
    np.testing.assert_allclose(got, math.log(expected), atol=1e-12)


@pytest.mark.parametrize("name", ["Standard", "Cat"])
def test_symplectic_maps_have_jacobians_of_determinant_one(name):
    model = kpops.systems.load(name)
    lin = kpops.linearize(model, torch.zeros(1, 50, 0, dtype=torch.float64), h0=model.start)
    blocks = lin.P.to_dense().reshape(50, 2, 50, 2)
    steps = np.stack([blocks[t + 1, :, t] for t in range(49)])
    np.testing.assert_allclose(abs(np.linalg.det(steps)), 1, atol=1e-12)


@pytest.mark.parametrize("name", FLOWS + MAPS)
def test_exponents_add_up_to_the_mean_of_log_det(name):
    model = kpops.systems.load(name)
    result = kpops.lyapunov_spectrum(model, h0=model.start, n_steps=30, dt=model.dt, rng=0)
    assert result.attrs["dynamics"] == "autonomous"
    bound = 1e-9 * max(1, abs(float(result.mean_log_det)))
    assert abs(float(result.exponent.sum() - result.mean_log_det)) < bound


@pytest.mark.parametrize(("name", "expected"), [("Lorenz", -41 / 3), ("Henon", math.log(0.3))])
def test_sums_of_exponents_are_those_of_theory(name, expected):
    result = kpops.systems.measure(
        kpops.systems.load(name), n_trials=20, n_steps=100, transient=50, rng=0
    )
    assert float(result.exponent.sum()) == pytest.approx(expected, abs=1e-6)
    assert float(result.mean_divergence) == pytest.approx(expected, abs=1e-11)
    assert abs(float(result.sum_error)) < 1e-9 and abs(float(result.solver_error)) < 1e-6


@pytest.mark.parametrize("name", FLOWS + MAPS)
def test_initial_states_are_near_the_attractor(name):
    model = kpops.systems.load(name)
    if model.dt is not None:
        model.n_substeps = max(1, model.n_substeps // 2)
    states = kpops.systems.trajectory(model, 300, transient=60)[0]
    ring = not model.entry.variables  # whose units are alike
    over = ("time", "unit") if ring else "time"
    low, high = states.min(over).values, states.max(over).values
    room = 0.5 * np.maximum(high - low, 0.1 * (high - low).max())
    start = model.start.numpy()
    assert (start > low - room).all() and (start < high + room).all()


def test_lorenz_stays_in_its_ball():
    """V = x^2 + y^2 + (z - sigma - rho)^2 ends below beta^2 (sigma + rho)^2 / (4 (beta - 1))."""
    x, y, z = kpops.systems.trajectory(kpops.systems.load("Lorenz"), 600).values[0].T
    bound = (8 / 3) ** 2 * 38**2 / (4 * 5 / 3)
    assert (x**2 + y**2 + (z - 38) ** 2 < bound).all()


@pytest.mark.parametrize("name", ["Duffing", "Ueda", "VanDerPol", "Pendulum"])
def test_drives_turn_on_their_cycle(name):
    model = kpops.systems.load(name)
    states = kpops.systems.trajectory(model, 50)[0].sel(unit=[2, 3])
    omega, t = model.settings["omega"], states.time.values
    c0, s0 = model.start[2:].numpy()
    phase = np.arctan2(s0, c0) + omega * t
    circle = np.stack([np.cos(phase), np.sin(phase)], -1)
    np.testing.assert_allclose(states, circle, atol=1e-4)


def test_energy_of_mechanics_is_kept():
    model = kpops.systems.load("HenonHeiles")
    x, y, p, q = kpops.systems.trajectory(model, 300).values[0].T
    energy = (p**2 + q**2 + x**2 + y**2) / 2 + x**2 * y - y**3 / 3
    np.testing.assert_allclose(energy, energy[0], rtol=1e-5)
    assert energy[0] < 1 / 6  # beyond, trajectories escape
    a, b, p, q = kpops.systems.trajectory(kpops.systems.load("DoublePendulum"), 300).values[0].T
    kinetic = p**2 + 2 * q**2 - 2 * p * q * np.cos(a - b)
    energy = kinetic / (2 * (1 + np.sin(a - b) ** 2)) - 2 * np.cos(a) - np.cos(b)
    np.testing.assert_allclose(energy, energy[0], rtol=1e-4)


def test_the_double_pendulum_obeys_newton():
    """The second derivatives of the angles of two unit masses on unit rods, in the usual form."""
    model = kpops.systems.load("DoublePendulum", gravity=9.81)
    states = random_states(model, 8)

    def rates(h):
        return model.field(None, h)[:2]

    for h in states:
        jacobian = torch.func.jacrev(rates)(h)
        got = (jacobian @ model.field(None, h)).detach().numpy()
        a, b = h[:2].numpy()
        va, vb = rates(h).detach().numpy()
        matrix = [[2, np.cos(a - b)], [np.cos(a - b), 1]]
        right = [
            -(vb**2) * np.sin(a - b) - 2 * 9.81 * np.sin(a),
            va**2 * np.sin(a - b) - 9.81 * np.sin(b),
        ]
        np.testing.assert_allclose(got, np.linalg.solve(matrix, right), rtol=1e-9)
