"""Exponential Euler: exact in the leak, LeakyCell as a case, and its order."""

import itertools
import math

import numpy as np
import pytest
import torch
from cell_contract import assert_contract, normal, randomised, unrolled
from dense import relative
from torch import nn

import kpops
from kpops.models import ExponentialEuler, LeakyCell, NeuralODE

TAU = [0.3, 1.0, 2.0, 5.0]


class Goal(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent, self.drive = nn.Linear(4, 4), nn.Linear(2, 4, bias=False)

    def forward(self, x, h):
        return torch.tanh(self.recurrent(h) + self.drive(x))


class Rotation(nn.Module):
    """The goal under which the equation is a rotation at unit speed."""

    def __init__(self, tau):
        super().__init__()
        self.tau = tau

    def forward(self, t, h):
        return h + self.tau * torch.stack([-h[..., 1], h[..., 0]], -1)


def driven(dt=0.5, tau=TAU):
    return ExponentialEuler(randomised(Goal()), dt, tau, arguments="xh")


@pytest.mark.parametrize("dt", [0.5, None])
def test_the_operators_are_those_of_autograd(dt):
    model = driven(dt)
    times = [0.0, 0.1, 0.7, 2.0, 2.2] if dt is None else 0.5 * np.arange(5)
    inputs, h0 = model.inputs(times, normal(3, 4, 2)), normal(3, 4)
    assert_contract(model, inputs, unrolled(model, inputs, h0), h0=h0)


def test_a_constant_goal_is_reached_exactly_at_every_step_length():
    goal, h0, tau = normal(4), normal(1, 4, seed=2), torch.tensor(TAU, dtype=torch.float64)
    model = ExponentialEuler(lambda t, h: goal.expand_as(h), None, TAU).double()
    times = torch.tensor([0.0, 0.01, 0.5, 3.0, 50.0], dtype=torch.float64)
    with torch.no_grad():
        model.log_tau.copy_(tau.log())  # not rounded to float32
    lin = kpops.linearize(model, model.inputs(times), h0=h0)
    decay = torch.exp(-times[1:, None] / tau)
    assert relative(lin.states.values[0], goal + decay * (h0 - goal)) < 1e-14
    P = torch.from_numpy(lin.P.to_dense()).reshape(4, 4, 4, 4)
    for s, t in itertools.combinations(range(4), 2):
        expected = torch.diag(torch.exp(-(times[t + 1] - times[s + 1]) / tau))
        assert relative(P[t, :, s], expected) < 1e-13


def test_with_one_time_constant_it_is_the_leaky_cell():
    cell, dt, tau = randomised(LeakyCell(2, 4, alpha=1 - math.exp(-0.5 / 2.0))), 0.5, 2.0
    model = driven(dt, tau)
    with torch.no_grad():
        model.field.recurrent.weight.copy_(cell.weight_hh)
        model.field.recurrent.bias.copy_(cell.bias)
        model.field.drive.weight.copy_(cell.weight_ih)
    x, h0 = normal(3, 6, 2), normal(3, 4)
    one = kpops.linearize(model, x, h0=h0)
    other = kpops.linearize(cell, x, h0=h0)
    assert relative(one.states.values, other.states.values) < 1e-14
    assert relative(one.P.to_dense(), other.P.to_dense()) < 1e-14


def test_it_converges_at_first_order():
    # To the rotation by one radian, of which P[t, s] is the rotation between two times.
    errors = []
    for n_steps in (40, 80, 160):
        model = ExponentialEuler(Rotation(0.7), 1 / n_steps, 0.7).double()
        with torch.no_grad():
            model.log_tau.fill_(math.log(0.7))
        inputs = model.inputs(np.arange(n_steps + 1) / n_steps)
        lin = kpops.linearize(model, inputs, h0=torch.tensor([1.0, 0.0]).double())
        exact = torch.tensor([math.cos(1), math.sin(1)])
        errors.append(float((torch.from_numpy(lin.states.values[0, -1]) - exact).norm()))
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert orders == pytest.approx([1, 1], abs=0.05)


def test_a_step_longer_than_the_time_constant_does_not_overshoot():
    times = np.arange(20.0)
    model = ExponentialEuler(lambda t, h: torch.zeros_like(h), 1.0, 0.2).double()
    euler = NeuralODE(lambda t, h: -h / 0.2, 1.0)
    h0 = torch.ones(1, 3, dtype=torch.float64)
    states = kpops.linearize(model, model.inputs(times), h0=h0).states.values
    assert (states > 0).all()
    assert (np.diff(states, axis=1) < 0).all()
    h = h0
    for t in range(19):
        h = euler(torch.full((1, 1), float(t)).double(), h)
    assert h.abs().min() > 1e11


def test_time_constants_learn():
    model = driven()
    lin = kpops.linearize(model, normal(2, 5, 2))
    assert next(iter(lin.parameters)) == "log_tau"
    assert lin.K_by_parameter["log_tau"].to_dense().any()
    assert lin.space.shape[-1] == len(TAU)


@pytest.mark.parametrize(
    ("field", "tau", "error", "told"),
    [
        (3, 1.0, TypeError, "field is a int, expected an nn.Module or a function"),
        (Goal().forward, 1.0, ValueError, "field is a method of Goal"),
        (Goal(), 0.0, ValueError, r"tau=0.0: pass one time constant, or one for each unit"),
        (Goal(), [1.0, -1.0], ValueError, r"tau=\[1.0, -1.0\]: pass one"),
        (Goal(), [[1.0]], ValueError, r"tau=\[\[1.0\]\]: pass one"),
        (Goal(), [], ValueError, r"tau=\[\]: pass one"),
    ],
    ids=range(6),
)
def test_wrong_options_are_refused(field, tau, error, told):
    with pytest.raises(error, match=told):
        ExponentialEuler(field, 0.1, tau)
