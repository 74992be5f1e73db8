"""Observers: the correction, how an error of the state dies out, and teacher forcing as a case."""

import numpy as np
import pytest
import torch
from cell_contract import assert_contract, normal, randomised, unrolled
from dense import relative
from torch import nn

import kpops
from kpops.models import LearnedStart, Observer, PLRNNCell, SwitchingLinear, TeacherForced

C = normal(2, 4, seed=5)
L = 0.4 * normal(4, 2, seed=6)


def observer(cell, c=C, gain=L):
    return Observer(randomised(cell, scale=0.5), c, gain)


def test_the_step_predicts_and_corrects():
    model = observer(nn.GRUCell(3, 4))
    x, y, h = normal(7, 3), normal(7, 2, seed=3), normal(7, 4)
    predicted = model.cell(x, h)
    expected = predicted + (y - predicted @ C.T) @ L.T
    assert relative(model(torch.cat([x, y], -1), h).detach(), expected.detach()) < 1e-14


@pytest.mark.parametrize("cell", [lambda: nn.GRUCell(2, 4), lambda: PLRNNCell(2, 4)])
def test_the_operators_are_those_of_autograd(cell):
    model, h0 = observer(cell()), normal(3, 4)
    x = normal(3, 4, model.input_size)
    assert_contract(model, x, unrolled(model, x, h0), h0=h0)


def test_the_jacobian_is_that_of_the_cell_without_what_is_corrected():
    model, x = observer(nn.GRUCell(2, 4)), normal(3, 5, 4)
    lin = kpops.linearize(model, x)
    for t in range(5):
        h = lin.trajectory.previous[:, t]
        free = kpops.linearize(model.cell, x[:, t : t + 1, :2], h0=h, engine="jacobian")
        F = free.engine.step_jacobians(0)
        expected = (torch.eye(4, dtype=torch.float64) - L @ C) @ F
        assert relative(lin.engine.step_jacobians(t), expected) < 1e-14


def test_an_error_of_the_state_of_a_linear_system_dies_out_by_P():
    # The system itself, from another start: h - h_true after t steps is P[t, 1] A[1] (h0 - true).
    system = randomised(SwitchingLinear(1, 4), scale=0.5)
    ones = torch.ones(1, 9, 1, dtype=torch.float64)
    true = kpops.linearize(system, ones, h0=normal(4))
    states = torch.from_numpy(true.states.values)
    model = Observer(system, C, L)
    lin = kpops.linearize(model, torch.cat([ones, states @ C.T], -1), h0=normal(4, seed=9))
    error = torch.from_numpy(lin.states.values) - states
    A = (torch.eye(4, dtype=torch.float64) - L @ C) @ system.dictionary[0].detach()
    kick = torch.zeros(1, 9, 4, dtype=torch.float64)
    kick[0, 0] = A @ (normal(4, seed=9) - normal(4))
    assert relative(lin.P @ kick, error) < 1e-12


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_full_observation_by_alpha_is_generalised_teacher_forcing(alpha):
    # Its states are those that teacher forcing starts its steps from, after the correction.
    cell, one = randomised(nn.GRUCell(2, 4)), torch.eye(4, dtype=torch.float64)
    x, d = normal(3, 6, 2), normal(3, 6, 4, seed=3)
    lin = kpops.linearize(Observer(cell, one, alpha * one), torch.cat([x, d], -1))
    late = torch.cat([torch.zeros_like(d[:, :1]), d[:, :-1]], 1)  # d of the step before
    forced = kpops.linearize(TeacherForced(cell, alpha), torch.cat([x, late], -1))
    corrected = (1 - alpha) * torch.from_numpy(forced.states.values) + alpha * d
    assert relative(lin.states.values, corrected) < 1e-14


def test_exponents_move_by_the_logarithm_of_one_minus_alpha():
    # theory, oracle 12, for an observer: where y is what it expects, only the factor changes.
    cell, one, h0 = randomised(PLRNNCell(2, 4), scale=0.2), torch.eye(4).double(), normal(1, 4)
    x = normal(1, 9, 2)
    free = kpops.linearize(cell, x, h0=h0)
    y = torch.from_numpy(free.states.values)
    lin = kpops.linearize(Observer(cell, one, 0.6 * one), torch.cat([x, y], -1), h0=h0)
    assert relative(lin.states.values, free.states.values) < 1e-14
    first, last = (op.P.to_dense().reshape(9, 4, 9, 4)[8, :, 0] for op in (free, lin))
    np.testing.assert_allclose(last, 0.4**8 * first, rtol=1e-10, atol=1e-14)


def test_the_kalman_gain_minimises_the_error_of_the_observer():
    # h' = F h + noise of variance 1, y = C h + noise of variance 1: the steady Riccati equation.
    F, c = torch.tensor([[0.9, 0.4], [0.0, 0.7]]).double(), torch.tensor([[1.0, 0.0]]).double()
    one, S = torch.eye(2).double(), torch.eye(2).double()
    for _ in range(200):
        prior = F @ S @ F.T + one
        gain = prior @ c.T / (c @ prior @ c.T + 1)
        S = (one - gain @ c) @ prior

    def variance(gain):
        """Of the error at rest, by A = (1 - L C) F of the observer."""
        system = SwitchingLinear(1, 2).double()
        system.dictionary.data[0] = F
        lin = kpops.linearize(Observer(system, c, gain), torch.ones(1, 200, 2).double())
        kicks = torch.cat([one - gain @ c, gain], 1)  # of the noises of state and observation
        P = torch.from_numpy(lin.P.to_dense()).reshape(200, 2, 200, 2)[-1]
        return float(torch.einsum("isj,jk->isk", P, kicks).square().sum())

    best = variance(gain)
    assert best == pytest.approx(float(S.trace()), rel=1e-10)
    for i in range(2):
        for change in (-0.05, 0.05):
            moved = gain.clone()
            moved[i] += change
            assert variance(moved) > best + 1e-4


def test_a_cell_without_parameters_leaves_the_matrices_in_float64():
    class Decay(nn.Module):
        input_size, hidden_size = 0, 2

        def forward(self, x, h):
            return 0.5 * h

    decays = Observer(Decay(), np.eye(2)[:1], 0.1 * np.ones((2, 1)))
    assert decays.C.dtype == decays.gain.dtype == torch.float64
    lin = kpops.linearize(decays, torch.ones(1, 3, 1, dtype=torch.float64))
    np.testing.assert_allclose(lin.states[0, 0], [0.1, 0.1], rtol=1e-14)


class Sizeless(nn.Module):
    def forward(self, x, h):
        return h


@pytest.mark.parametrize(
    ("cell", "c", "gain", "error", "told"),
    [
        (nn.GRU(2, 4), C, L, TypeError, "GRU is no cell whose state is one tensor"),
        (LearnedStart(nn.GRUCell(2, 4)), C, L, TypeError, "put other wrappers around"),
        (Sizeless(), C, L, ValueError, "sizes of Sizeless are unknown"),
        (nn.GRUCell(2, 4), C.T, L, ValueError, r"C has shape \(4, 2\), expected .* 4 units"),
        (nn.GRUCell(2, 4), C, L.T, ValueError, r"gain has shape \(2, 4\), expected .* \(4, 2\)"),
        (nn.GRUCell(2, 4), C * np.nan, L, ValueError, "C is not finite"),
        (nn.GRUCell(2, 4), C, L * np.inf, ValueError, "gain is not finite"),
    ],
    ids=range(7),
)
def test_wrong_use_is_refused(cell, c, gain, error, told):
    with pytest.raises(error, match=told):
        Observer(cell, c, gain)


def test_inputs_without_the_observations_are_refused():
    with pytest.raises(ValueError, match="the model takes 4 features"):
        kpops.linearize(observer(nn.GRUCell(2, 4)), normal(3, 5, 2))
