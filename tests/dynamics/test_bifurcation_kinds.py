"""Each kind of bifurcation, on its normal form and in planted networks."""

import math

import numpy as np
import pytest
import torch
from families import NORMAL_FORMS, TURN, Family, Field, rnn
from systems import with_eigenvalues

import kpops


def bifurcations(model, points, along, span, **options):
    points = np.atleast_2d(np.asarray(points, float))
    return kpops.continuation(model, points, along, span, **options)


@pytest.mark.parametrize("shift", [0, 0.0137], ids=["on a step", "between steps"])
@pytest.mark.parametrize("kind", NORMAL_FORMS)
def test_the_normal_form_is_found_with_its_coefficient(kind, shift):
    f, start, coefficient = NORMAL_FORMS[kind]
    last = 0.29 + shift
    found = bifurcations(Family(f), start, "mu", (-0.31, last), step=0.05)
    assert found.kind.values.tolist() == [kind]
    assert abs(found.event_parameter.item()) < 1e-8
    np.testing.assert_allclose(found.event_state, 0, atol=1e-7)
    assert found.coefficient.item() == pytest.approx(coefficient, rel=1e-6)
    assert found.end.values.tolist() == ["span"]
    value = {"flip": -1, "neimark-sacker": complex(math.cos(TURN), math.sin(TURN))}.get(kind, 1)
    at = complex(found.event_eigenvalue_real.item(), found.event_eigenvalue_imag.item())
    assert abs(at - value) < 1e-7


@pytest.mark.parametrize("kind", NORMAL_FORMS)
def test_the_normal_form_is_found_in_other_coordinates(kind):
    # h = T u + shift(mu), with directions that contract: nothing is zero or symmetric there.
    f, start, coefficient = NORMAL_FORMS[kind]
    n = len(start)
    T = torch.from_numpy(with_eigenvalues(np.arange(1.0, n + 3), seed=3))
    T[:, :n] /= T[:, :n].norm(dim=0)
    inverse = torch.linalg.inv(T)
    shift = torch.linspace(-1, 1, n + 2).double()

    def turned(h, mu):
        u = (h - mu * shift) @ inverse.T
        critical, other = u[:, :n], u[:, n:]
        new = torch.cat([f(critical, mu), other / 2 + 0.3 * critical[:, :1] ** 2], -1)
        return new @ T.T + mu * shift

    u = torch.tensor([*start, 0.6 * start[0] ** 2, 0.6 * start[0] ** 2]).double()
    found = bifurcations(Family(turned), T @ u - 0.31 * shift, "mu", (-0.31, 0.3), step=0.05)
    assert found.kind.values.tolist() == [kind]
    assert abs(found.event_parameter.item()) < 1e-7
    if n == 1:  # the eigenvector is T[:, 0], up to its sign
        sign = 1 if T[:, 0][T[:, 0].abs().argmax()] > 0 else -1
        power = 1 if kind in ("fold", "transcritical") else 2
        assert found.coefficient.item() == pytest.approx(coefficient * sign**power, rel=1e-5)


def pair(radius, angle):
    c, s = radius * math.cos(angle), radius * math.sin(angle)
    return np.array([[c, -s], [s, c]])


PLANTED = {
    "pitchfork": ([0.8, 0.3, -0.5, 0.2, -0.1], 0.8),
    "flip": ([-0.9, 0.3, 0.5, 0.2, -0.1], 0.9),
    "neimark-sacker": (None, 0.7),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_the_rest_of_a_planted_network_bifurcates_at_the_known_gain(kind):
    values, radius = PLANTED[kind]
    if values is None:
        V = with_eigenvalues([2.0, 1, 1.5, 0.7], seed=5)
        blocks = torch.block_diag(torch.from_numpy(pair(radius, 0.9)), 0.3 * torch.eye(2)).numpy()
        W = V @ blocks @ np.linalg.inv(V)
    else:
        W = with_eigenvalues(values)
    cell, W = rnn(W)
    rest = np.zeros(len(W))
    path = lambda g: {"weight_hh": g * W}  # noqa: E731
    found = bifurcations(cell, rest, path, (0.5, 1.6))
    assert found.kind.values.tolist() == [kind]
    assert found.event_parameter.item() == pytest.approx(1 / radius, abs=1e-9)

    # f = tanh(g W h) has no second derivative at rest, and C(u, v, w) = -2 gWu gWv gWw there.
    eigenvalues, right = np.linalg.eig(W.numpy() / radius)
    i = np.abs(np.abs(eigenvalues) - 1).argmin()
    r, left = right[:, i], np.linalg.inv(right)[i]
    expected = {
        "pitchfork": -(left @ r**3) / 3,
        "flip": (left @ r**3) / 3,
        "neimark-sacker": -(left @ (r * np.abs(r) ** 2)),
    }[kind]
    assert found.coefficient.item() == pytest.approx(expected.real, rel=1e-6)


def test_folds_of_a_planted_network_are_where_the_closed_form_has_them():
    # Five units in a population: h = tanh(w h + b) for all, whose folds are at h^2 = 1 - 1/w.
    w = 1.7
    cell, W = rnn(np.full((5, 5), w / 5))
    with torch.no_grad():
        cell.weight_hh.copy_(W)
    low = -1.0
    h = -1.0
    for _ in range(200):
        h = math.tanh(w * h + low)
    path = lambda b: {"bias_hh": b * torch.ones(5, dtype=torch.float64)}  # noqa: E731
    found = bifurcations(cell, np.full(5, h), path, (low, 1.0))
    assert found.kind.values.tolist() == ["fold", "fold"] and found.end.item() == "span"
    states = np.array([-1, 1]) * (1 - 1 / w) ** 0.5
    at = np.arctanh(states) - w * states
    np.testing.assert_allclose(found.event_parameter, at, atol=1e-12)
    np.testing.assert_allclose(found.event_state, states[:, None] * np.ones(5), atol=1e-6)
    # Along r = 1 / sqrt(5), z = h sqrt(5): f'' = -2 h (1 - h^2) w^2, with 1 - h^2 = 1 / w.
    np.testing.assert_allclose(found.coefficient, -states * w / 5**0.5, rtol=1e-5)
    assert found.n_unstable.values[0, 0] == 0 and found.n_unstable.values[0, -1] == 0
    assert found.n_unstable.values.max() == 1


def test_the_input_may_be_the_parameter():
    cell, W = rnn([[1.7]])
    with torch.no_grad():
        cell.weight_hh.copy_(W)
        cell.weight_ih.fill_(2.0)
    h = -1.0
    for _ in range(200):
        h = math.tanh(1.7 * h - 1)
    found = bifurcations(cell, [h], "input", (-0.5, 0.5))
    state = (1 - 1 / 1.7) ** 0.5
    at = (np.arctanh(state) - 1.7 * state) / 2
    np.testing.assert_allclose(found.event_parameter, [-at, at], atol=1e-12)


def test_a_neural_ode_bifurcates_where_its_solver_does():
    pitchfork = kpops.models.NeuralODE(Field(lambda h, mu: mu * h - h**3), 0.1, "rk4")
    found = bifurcations(pitchfork, [0.0], name_of(pitchfork), (-0.5, 0.5))
    assert found.kind.values.tolist() == ["pitchfork"]
    assert abs(found.event_parameter.item()) < 1e-9
    assert found.coefficient.item() == pytest.approx(-0.1, rel=1e-6)  # dt times that of the flow

    def hopf(h, mu):
        x, y = h.unbind(-1)
        return torch.stack([mu * x - 2 * y, 2 * x + mu * y], -1) - h * (x**2 + y**2)[:, None]

    euler = kpops.models.NeuralODE(Field(hopf), 0.1, "euler")
    found = bifurcations(euler, [0.0, 0.0], name_of(euler), (-0.5, 0.2))
    # |1 + dt (mu + 2 i)| = 1
    expected = ((1 - 0.2**2) ** 0.5 - 1) / 0.1
    assert found.kind.values.tolist() == ["neimark-sacker"]
    assert found.event_parameter.item() == pytest.approx(expected, abs=1e-9)


def name_of(ode):
    return next(name for name, _ in ode.named_parameters())


def test_eigenvalues_that_cross_together_are_called_multiple():
    cell, W = rnn(0.8 * np.eye(3))
    found = bifurcations(cell, np.zeros(3), lambda g: {"weight_hh": g * W}, (0.5, 1.6))
    assert found.kind.values.tolist() == ["multiple"]
    assert found.event_parameter.item() == pytest.approx(1.25, abs=1e-9)
    assert np.isnan(found.coefficient.item())


def test_an_eigenvalue_that_jumps_at_a_corner_is_told_from_one_that_passes():
    # Slope 1/2 below zero, and -1.2 above: h* = 2 mu, and mu / 2.2.
    corner = Family(lambda h, mu: mu + torch.where(h > 0, -1.2 * h, h / 2))
    found = bifurcations(corner, [-0.8], "mu", (-0.4, 0.6))
    assert found.kind.values.tolist() == ["border-collision"]
    assert abs(found.event_parameter.item()) < 1e-9 and found.end.item() == "span"
    assert found.n_unstable.values[0, [0, -1]].tolist() == [0, 1]


def test_two_that_cross_in_one_step_are_told_apart():
    cell, W = rnn(np.diag([0.8, -0.799, 0.2]))
    path = lambda g: {"weight_hh": g * W}  # noqa: E731
    found = bifurcations(cell, np.zeros(3), path, (0.5, 1.6), step=0.1)
    assert found.kind.values.tolist() == ["pitchfork", "flip"]
    np.testing.assert_allclose(found.event_parameter, [1 / 0.8, 1 / 0.799], atol=1e-9)


def test_every_eigenvalue_of_a_random_network_crosses_where_and_as_it_must():
    W = np.random.default_rng(0).standard_normal((16, 16)) / 4
    cell, W = rnn(W)
    path = lambda g: {"weight_hh": g * W}  # noqa: E731
    found = bifurcations(cell, np.zeros(16), path, (0.7, 2.0), step=0.1)
    values = np.linalg.eigvals(W.numpy())
    values = values[(values.imag >= 0) & (np.abs(values) > 0.5) & (np.abs(values) < 1 / 0.7)]
    values = values[np.argsort(-np.abs(values))]
    kinds = np.where(
        values.imag > 1e-9, "neimark-sacker", np.where(values.real > 0, "pitchfork", "flip")
    )
    assert len(values) > 4 and found.kind.values.tolist() == kinds.tolist()
    np.testing.assert_allclose(found.event_parameter, 1 / np.abs(values), rtol=1e-9)
    at = found.event_eigenvalue_real + 1j * found.event_eigenvalue_imag
    np.testing.assert_allclose(at, values / np.abs(values), atol=1e-8)


def test_a_symmetric_branch_point_without_a_cubic_term_is_a_pitchfork():
    found = bifurcations(Family(lambda h, mu: (1 + mu) * h - h**5), [0], "mu", (-0.3, 0.3))
    assert found.kind.values.tolist() == ["pitchfork"]
    assert abs(found.coefficient.item()) < 1e-12


@pytest.mark.parametrize(
    ("quadratic", "coefficient"), [(0, -1.0), (0.3, math.nan)], ids=["symmetric", "resonant"]
)
def test_a_third_of_a_turn_has_a_coefficient_only_without_its_quadratic_term(
    quadratic, coefficient
):
    c, s = math.cos(2 * math.pi / 3), math.sin(2 * math.pi / 3)
    turn = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)

    def third(h, mu):
        u = (1 + mu) * h @ turn.T
        x, y = u.unbind(-1)
        # The cubic term is -|w|^2 w / 2 of w = x + iy, the quadratic one that of w*^2.
        again = quadratic * torch.stack([x**2 - y**2, -2 * x * y], -1)
        return u + again - u * (x**2 + y**2)[..., None] / 2

    found = bifurcations(Family(third), [0, 0], "mu", (-0.31, 0.3))
    assert found.kind.values.tolist() == ["neimark-sacker"]
    np.testing.assert_allclose(found.coefficient, [coefficient], rtol=1e-7)
