"""Generalised teacher forcing: the forced step, its Jacobian, and what it does to exponents."""

import numpy as np
import pytest
import torch
from cell_contract import assert_contract, normal, randomised, unrolled
from dense import relative
from torch import nn

import kpops
from kpops.models import LeakyCell, LearnedStart, PLRNNCell, ShallowPLRNNCell, TeacherForced

CELLS = {
    "plrnn": lambda: PLRNNCell(2, 4),
    "shallow": lambda: ShallowPLRNNCell(2, 4, 6),
    "gru_cell": lambda: nn.GRUCell(2, 4),
    "leaky_with_noise": lambda: LeakyCell(2, 4, alpha=0.5, noise=True),
}


def test_the_step_starts_from_the_forced_state():
    cell, x, d, h = randomised(PLRNNCell(2, 4)), normal(7, 2), normal(7, 4, seed=3), normal(7, 4)
    forced = TeacherForced(cell, 0.3)(torch.cat([x, d], -1), h)
    assert relative(forced.detach(), cell(x, 0.7 * h + 0.3 * d).detach()) < 1e-15


@pytest.mark.parametrize("name", CELLS)
def test_the_operators_are_those_of_autograd(name):
    model = randomised(TeacherForced(CELLS[name](), 0.3), scale=0.5)
    x, h0 = normal(3, 4, model.input_size), normal(3, 4)
    assert_contract(model, x, unrolled(model, x, h0), h0=h0)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_the_jacobian_is_that_of_the_cell_at_the_forced_state_times_one_minus_alpha(alpha):
    cell, x, d = randomised(nn.GRUCell(2, 4)), normal(3, 5, 2), normal(3, 5, 4, seed=3)
    lin = kpops.linearize(TeacherForced(cell, alpha), torch.cat([x, d], -1))
    forced = (1 - alpha) * lin.trajectory.previous + alpha * d
    for t in range(5):
        free = kpops.linearize(cell, x[:, t : t + 1], h0=forced[:, t], engine="jacobian")
        gap = lin.engine.step_jacobians(t) - (1 - alpha) * free.engine.step_jacobians(0)
        assert float(gap.abs().max()) < 1e-15


@pytest.mark.parametrize("alpha", [0.1, 0.6])
def test_all_exponents_move_by_the_logarithm_of_one_minus_alpha(alpha):
    # theory, oracle 12: where the data are the free trajectory, nothing but the factor changes.
    cell, x, h0 = randomised(PLRNNCell(2, 4), scale=0.2), normal(2, 9, 2), normal(2, 4)
    with torch.no_grad():
        cell.A.uniform_(0.7, 0.9)  # so that no exponent drowns in the rounding of the largest
    free = kpops.linearize(cell, x, h0=h0)
    data = free.trajectory.previous
    forced = kpops.linearize(TeacherForced(cell, alpha), torch.cat([x, data], -1), h0=h0)
    assert relative(forced.states.values, free.states.values) < 1e-14

    def exponents(lin):  # finite-time, from step 1 to step 9: eight factors A
        block = lin.P.to_dense().reshape(2, 9, 4, 2, 9, 4)
        return np.array([np.linalg.svd(block[b, 8, :, b, 0])[1] for b in range(2)])

    moved = np.log(exponents(forced)) / 8 - np.log(exponents(free)) / 8
    np.testing.assert_allclose(moved, np.log(1 - alpha), rtol=0, atol=1e-12)


def test_full_forcing_leaves_no_memory():
    model = TeacherForced(randomised(ShallowPLRNNCell(2, 4, 6)), 1.0)
    lin = kpops.linearize(model, normal(3, 5, 6))
    np.testing.assert_array_equal(lin.P.to_dense(), np.eye(60))


def test_without_forcing_the_data_do_not_matter():
    cell, x = randomised(PLRNNCell(2, 4)), normal(3, 5, 2)
    lin = kpops.linearize(TeacherForced(cell, 0.0), torch.cat([x, 100 * normal(3, 5, 4)], -1))
    assert relative(lin.flow.to_dense(), kpops.linearize(cell, x).flow.to_dense()) < 1e-13


def test_a_readout_sees_the_units_of_the_cell():
    model, readout = randomised(TeacherForced(nn.GRUCell(2, 4), 0.3)), nn.Linear(4, 2).double()
    x = normal(3, 5, 6)
    lin = kpops.linearize(model, x, readout=readout)
    states = unrolled(model, x, torch.zeros(3, 4, dtype=torch.float64)).states
    assert relative(lin.outputs.values, readout(states).detach()) < 1e-14


class Sizeless(nn.Module):
    def forward(self, x, h):
        return h


class Pair(Sizeless):
    state_size, input_size = (2, 2), 2


@pytest.mark.parametrize(
    ("cell", "alpha", "error", "told"),
    [
        (nn.GRUCell(2, 4), 1.5, ValueError, r"alpha=1.5: .* in \[0, 1\]"),
        (nn.GRUCell(2, 4), -0.1, ValueError, r"alpha=-0.1: .* in \[0, 1\]"),
        (nn.GRU(2, 4), 0.1, TypeError, "GRU is no cell whose state is one tensor"),
        (nn.LSTMCell(2, 4), 0.1, TypeError, "LSTMCell is no cell whose state is one tensor"),
        (Pair(), 0.1, TypeError, "Pair is no cell whose state is one tensor"),
        (LearnedStart(nn.GRUCell(2, 4)), 0.1, TypeError, "put other wrappers around the forced"),
        (Sizeless(), 0.1, ValueError, "sizes of Sizeless are unknown: give it attributes"),
    ],
    ids=range(7),
)
def test_wrong_use_is_refused(cell, alpha, error, told):
    with pytest.raises(error, match=told):
        TeacherForced(cell, alpha)


def test_inputs_without_the_data_are_refused():
    with pytest.raises(ValueError, match=r"inputs has shape .*, the model takes 6 features"):
        kpops.linearize(TeacherForced(nn.GRUCell(2, 4), 0.1), torch.zeros(3, 5, 2))
