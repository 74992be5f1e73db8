"""The critical channel against closed forms: theory 7.8 and 7.9, and the rule that follows it."""

import numpy as np
import pytest
import torch
from families import Family, Field
from torch import nn

import kpops
from kpops.testing import check_operator

OTHERS = [0.6, -0.5, 0.4, 0.2, -0.1]


def near(d, seed=0, others=OTHERS, dtype=torch.float64):
    """An RNN cell with a fixed point h where A has the eigenvalues 1 - d and others."""
    rng = np.random.default_rng(seed)
    S = len(others) + 1
    h = torch.tensor(rng.uniform(-0.6, 0.6, S))
    V = np.eye(S) + 0.4 * rng.standard_normal((S, S)) / S**0.5
    A = torch.from_numpy(V @ np.diag([1 - d, *others]) @ np.linalg.inv(V))
    W = A / (1 - h**2)[:, None]
    cell = nn.RNNCell(1, S).double()
    with torch.no_grad():
        cell.weight_hh.copy_(W)
        cell.bias_hh.copy_(torch.atanh(h) - W @ h)
        cell.bias_ih.zero_()
    return cell.to(dtype), h[None].to(dtype), V


def slope(d, values):
    return np.polyfit(np.log10(d), np.log10(values), 1)[0]


def test_the_residual_falls_linearly_in_d_and_the_top_eigenvalue_as_its_square():
    distances = np.logspace(-2, -4, 5)
    residuals, tops, gains = [], [], []
    for d in distances:
        cell, h, _ = near(d)
        lin = kpops.linearize_at(cell, h)
        channel = kpops.critical_channel(lin)
        np.testing.assert_allclose(channel.eigenvalue, 1 - d, rtol=1e-12)
        residuals.append(channel.residual)
        tops.append(np.linalg.eigvalsh(lin.flow.to_dense())[-1] * d**2)
        gains.append(float(channel.values[0]) * d**2)
    assert slope(distances, residuals) == pytest.approx(1, abs=0.01)
    constant = tops[-1]
    np.testing.assert_allclose(tops, constant, rtol=3e-3)  # 1 + O(d)
    np.testing.assert_allclose(gains, constant, rtol=1e-3)
    assert abs(tops[2] / constant - 1) < 0.15 * abs(tops[0] / constant - 1)


def test_the_channel_is_the_term_of_the_expansion_in_eigenvectors():
    cell, h, V = near(0.05)
    lin = kpops.linearize_at(cell, h)
    channel = kpops.critical_channel(lin)
    J, inverse = lin.J.to_dense(), np.linalg.inv(V)
    terms = [
        np.outer(V[:, i], inverse[i] @ J) / (1 - value) for i, value in enumerate([0.95, *OTHERS])
    ]
    np.testing.assert_allclose(lin.sensitivity.to_dense(), sum(terms), atol=1e-10)
    np.testing.assert_allclose(channel.response.to_dense(), terms[0], atol=1e-11)
    expected = terms[0] @ terms[0].T
    np.testing.assert_allclose(channel.to_dense(), expected, rtol=1e-10, atol=1e-10)
    whole = lin.flow.to_dense()
    residual = np.linalg.norm(whole - expected) / np.linalg.norm(whole)
    assert channel.residual == pytest.approx(residual, rel=1e-9)
    assert np.linalg.matrix_rank(channel.to_dense()) == 1


def test_channels_of_several_points_share_the_parameters():
    # Two fixed points of a unit that excites itself, (h, -h): their responses to w are opposite.
    cell = nn.RNNCell(1, 1, bias=False).double()
    h = 0.3
    w = np.arctanh(h) / h
    with torch.no_grad():
        cell.weight_hh.fill_(w)
        cell.weight_ih.zero_()
    points = torch.tensor([[h], [-h]], dtype=torch.float64)
    for measure, scale in (("sum", 1), ("mean", 0.5)):
        lin = kpops.linearize_at(cell, points, parameters=["weight_hh"], measure=measure)
        channel = kpops.critical_channel(lin)
        rate = (1 - h**2) * h / (1 - w * (1 - h**2))
        expected = scale * rate**2 * np.array([[1, -1], [-1, 1]])
        np.testing.assert_allclose(channel.to_dense(), expected, rtol=1e-10)
        np.testing.assert_allclose(lin.flow.to_dense(), expected, rtol=1e-10)
        assert channel.residual < 1e-12


@pytest.mark.parametrize("mu", [1e-1, 1e-3, 1e-5])
def test_the_scalar_pitchfork_has_the_kernel_one_over_four_mu(mu):
    model = Family(lambda h, m: (1 + m) * h - h**3)
    with torch.no_grad():
        model.mu.fill_(mu)
    lin = kpops.linearize_at(model, torch.tensor([[mu**0.5]], dtype=torch.float64))
    rounding = 1e-14 / mu  # the state is known to rounding over d = 2 mu
    assert lin.flow.to_dense().item() == pytest.approx(1 / (4 * mu), rel=rounding)
    assert kpops.critical_channel(lin).to_dense().item() == pytest.approx(
        1 / (4 * mu), rel=rounding
    )


def test_the_pitchfork_flow_follows_its_closed_form():
    mu, z0, dt = 0.8, 0.05, 0.01
    field = Field(lambda h, m: m * h - h**3)
    with torch.no_grad():
        field.mu.fill_(mu)
    ode = kpops.models.NeuralODE(field, dt, "rk4")
    times = dt * torch.arange(1001, dtype=torch.float64)
    h0 = torch.tensor([[z0]], dtype=torch.float64)
    z = kpops.linearize(ode, ode.inputs(times, n_trials=1).double(), h0=h0).states[0, :, 0]
    t = dt * np.arange(1, z.sizes["time"] + 1)
    growth = np.exp(2 * mu * t)
    expected = mu * z0**2 * growth / (mu + z0**2 * (growth - 1))
    np.testing.assert_allclose(z.values**2, expected, rtol=1e-8)


def moved_point(cell, h, direction):
    """(h*(theta - eta direction) - h*) / eta by Newton's method, as a function of eta."""
    before = nn.utils.parameters_to_vector(cell.parameters()).detach().clone()

    def move(eta):
        with torch.no_grad():
            nn.utils.vector_to_parameters(before - eta * direction, cell.parameters())
            x, g = torch.zeros(1, 1, dtype=torch.float64), h.clone()
            for _ in range(30):
                step = lambda s: cell(x, s[None])[0]  # noqa: E731
                A = torch.autograd.functional.jacobian(step, g[0])
                g = g - torch.linalg.solve(A - torch.eye(len(A)), step(g[0]) - g[0])[None]
            nn.utils.vector_to_parameters(before, cell.parameters())
        return (g - h) / eta

    return move


@pytest.mark.parametrize("damping", [0.1, 10.0])
def test_the_rule_is_a_real_small_natural_gradient_step(damping):
    cell, h, _ = near(0.05)
    lin = kpops.linearize_at(cell, h)
    error = torch.linspace(-1, 2, 6, dtype=torch.float64).view(1, 1, 6)
    gradient = (lin.sensitivity.H @ error).flatten()
    D = torch.as_tensor(kpops.critical_channel(lin).response.to_dense())
    metric = D.T @ D + damping * torch.eye(D.shape[1])
    direction = damping * torch.linalg.solve(metric, gradient)
    move = moved_point(cell, h, direction)
    predicted = -(kpops.learning_rule(lin, "critical channel", damping=damping) @ error)[0]
    etas = np.array([1e-3, 1e-4, 1e-5, 1e-6])
    errors = np.array([float((move(eta) - predicted).norm()) for eta in etas])
    assert slope(etas[1:], errors[1:]) == pytest.approx(1, abs=0.02)
    assert errors[-1] < 1e-3 * float(predicted.norm())


def test_the_rule_bounds_the_step_that_gradient_descent_takes_without_bound():
    damping, tops, plain = 0.5, [], []
    for d in (1e-2, 1e-3, 1e-4):
        cell, h, _ = near(d)
        lin = kpops.linearize_at(cell, h)
        rule = kpops.learning_rule(lin, "critical channel", damping=damping)
        tops.append(np.linalg.eigvalsh(rule.to_dense())[-1])
        plain.append(np.linalg.eigvalsh(lin.flow.to_dense())[-1])
    assert plain[-1] / plain[0] == pytest.approx(1e4, rel=0.01)
    np.testing.assert_allclose(tops, tops[-1], rtol=1e-2)


def test_a_point_with_one_direction_steps_by_the_damping():
    # Nothing is beside the channel: R = l s^2 / (s^2 + l).
    model = Family(lambda h, m: (1 + m) * h - h**3)
    with torch.no_grad():
        model.mu.fill_(1e-4)
    lin = kpops.linearize_at(model, torch.tensor([[1e-2]], dtype=torch.float64))
    R = kpops.learning_rule(lin, "critical channel", damping=3.0)
    assert R.to_dense().item() == pytest.approx(3 * 2500 / 2503, rel=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_channel_response_and_rule_keep_the_contract(dtype):
    cell, h, _ = near(0.2, dtype=dtype)
    lin = kpops.linearize_at(cell, h)
    channel = kpops.critical_channel(lin)
    rule = kpops.learning_rule(lin, "critical channel", damping=1.0)
    for operator in (channel, channel.response, rule, channel.root, rule.root):
        figures = check_operator(operator, rng=0)
        assert operator.torch_dtype == dtype and figures["adjoint"] < 1e-4


def test_the_unit_of_forcing_changes_nothing():
    found = []
    for forcing in ("state", "rate"):
        field = Field(lambda h, m: m * h - h**3)
        with torch.no_grad():
            field.mu.fill_(0.04)
        ode = kpops.models.NeuralODE(field, 0.1, "rk4", forcing=forcing)
        lin = kpops.linearize_at(ode, torch.tensor([[0.2]], dtype=torch.float64))
        channel = kpops.critical_channel(lin)
        assert channel.residual < 1e-11
        found.append(channel.to_dense().item())
    np.testing.assert_allclose(found, 1 / 0.16, rtol=1e-9)


def test_what_has_no_channel_is_refused():
    cell, h, _ = near(0.1)
    with pytest.raises(TypeError, match=r"lin is a model .RNNCell.: pass a linearization at fixed"):
        kpops.critical_channel(cell)
    staying = kpops.linearize_at(cell, h, 3)
    with pytest.raises(TypeError, match=r"lin is a Linearization.*without n_steps"):
        kpops.critical_channel(staying)
    with pytest.raises(ValueError, match="the critical channel is that of fixed points"):
        kpops.learning_rule(staying, "critical channel", damping=1.0)
    at = kpops.linearize_at(cell, h)
    for damping in (0, -1.0, np.inf):
        with pytest.raises(ValueError, match="choose a positive number"):
            kpops.learning_rule(at, "critical channel", damping=damping)

    def at_rest(W):
        rest = nn.RNNCell(1, 2).double()
        with torch.no_grad():
            for parameter in rest.parameters():
                parameter.zero_()
            rest.weight_hh.copy_(torch.tensor(W))
        return kpops.linearize_at(rest, torch.zeros(1, 2, dtype=torch.float64))

    with pytest.raises(ValueError, match=r"point 0 .*nearest to 1 is complex.*leave the point out"):
        kpops.critical_channel(at_rest([[0.5, -0.5], [0.5, 0.5]]))
    with pytest.raises(ValueError, match="lacks an eigenvector of its own"):
        kpops.critical_channel(at_rest([[0.5, 1.0], [0.0, 0.5]]))
    with pytest.raises(ValueError, match="lacks an eigenvector of its own"):  # it has a plane
        kpops.critical_channel(at_rest([[0.5, 0.0], [0.0, 0.5]]))
