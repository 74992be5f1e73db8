"""Piecewise-linear networks: their steps, their pieces, their kinks."""

import numpy as np
import pytest
import torch
from cell_contract import assert_contract, normal, randomised, unrolled
from dense import relative

import kpops
from kpops.models import Masked, PLRNNCell, ShallowPLRNNCell

CELLS = {
    "plrnn": (lambda: PLRNNCell(2, 4), "gated_numba"),
    "al_rnn": (lambda: PLRNNCell(2, 4, rectified=1), "gated_numba"),
    "linear": (lambda: PLRNNCell(2, 4, rectified=0), "gated_numba"),
    "shallow": (lambda: ShallowPLRNNCell(2, 4, 6), "jacobian"),
    "clipped": (lambda: ShallowPLRNNCell(2, 4, 6, clipped=True), "jacobian"),
}


def formula(cell, x, h):
    if isinstance(cell, PLRNNCell):
        linear = cell.hidden_size - cell.rectified
        phi = torch.where(torch.arange(cell.hidden_size) < linear, h, h.clamp_min(0))
        return cell.A * h + phi @ cell.W.T + x @ cell.C.T + cell.b
    bent = (h @ cell.W2.T + cell.b2).clamp_min(0)
    if cell.clipped:
        bent = bent - (h @ cell.W2.T).clamp_min(0)
    return cell.A * h + bent @ cell.W1.T + cell.b1 + x @ cell.C.T


@pytest.mark.parametrize("name", CELLS)
def test_the_steps_are_their_formulas(name):
    cell = randomised(CELLS[name][0]())
    x, h = normal(7, cell.input_size), normal(7, 4)
    assert relative(cell(x, h).detach(), formula(cell, x, h).detach()) < 1e-14


@pytest.mark.parametrize("name", CELLS)
def test_the_operators_are_those_of_autograd(name):
    build, engine = CELLS[name]
    cell = randomised(build(), scale=0.5)
    x, h0 = normal(3, 4, cell.input_size), normal(3, 4)
    assert_contract(cell, x, unrolled(cell, x, h0), engine=engine, h0=h0)


def test_the_jacobian_is_that_of_the_linear_piece():
    cell, x, h0 = randomised(PLRNNCell(2, 4, rectified=3)), normal(5, 6, 2), normal(5, 4)
    lin = kpops.linearize(cell, x, h0=h0)
    for t in range(6):
        h = lin.trajectory.previous[:, t]
        open_ = torch.cat([torch.ones(5, 1, dtype=torch.float64), (h[:, 1:] > 0).double()], 1)
        piece = torch.diag(cell.A.detach()) + cell.W.detach() * open_[:, None]
        assert relative(lin.engine.step_jacobians(t), piece) < 1e-15


@pytest.mark.parametrize("engine", ["autodiff", "jacobian", "gated", "gated_numba"])
def test_at_a_kink_the_unit_is_silent(engine):
    cell = randomised(PLRNNCell(2, 4))
    zero = torch.zeros(1, 4, dtype=torch.float64)
    with torch.no_grad():
        cell.b.zero_()
    lin = kpops.linearize(cell, torch.zeros(1, 2, 2, dtype=torch.float64), h0=zero, engine=engine)
    assert relative(lin.engine.step_jacobians(1)[0], torch.diag(cell.A.detach())) < 1e-15


def test_without_rectified_units_the_cell_is_linear():
    # theory: h' = M h, so that the block of P from step s to step t is M^(t - s)
    cell = randomised(PLRNNCell(2, 4, rectified=0), scale=0.4)
    lin = kpops.linearize(cell, normal(1, 6, 2))
    P = lin.P.to_dense().reshape(6, 4, 6, 4)
    M = (torch.diag(cell.A) + cell.W).detach().numpy()
    for lag in range(6):
        assert relative(P[5, :, 5 - lag], np.linalg.matrix_power(M, lag)) < 1e-14


def test_clipped_states_stay_bounded():
    # |relu(u + b2) - relu(u)| <= |b2|, so that |h| <= (|W1| |b2| + |b1|) / (1 - max |A|)
    torch.manual_seed(0)
    cell = randomised(ShallowPLRNNCell(1, 3, 8, clipped=True), scale=3)
    with torch.no_grad():
        cell.A.uniform_(-0.9, 0.9)
    gain = torch.linalg.matrix_norm(cell.W1, ord=2) * cell.b2.norm() + cell.b1.norm()
    bound = float((gain / (1 - cell.A.abs().max())).detach())
    lin = kpops.linearize(cell, torch.zeros(1, 500, 1, dtype=torch.float64))
    largest = float(lin.trajectory.states.norm(dim=-1).max())
    assert bound / 100 < largest < bound


def test_with_fixed_decay_K_falls_into_blocks_of_units():
    cell, x = randomised(PLRNNCell(2, 4)), normal(3, 5, 2)
    lin = kpops.linearize(cell, x, parameters=["W", "C", "b"])
    blocks = lin.engine.unit_blocks(tuple(lin.parameters))
    expected = torch.linalg.eigvalsh(torch.from_numpy(lin.K.to_dense()))
    found = blocks.eigenvalues().flatten().sort().values
    assert relative(found, expected[-len(found) :]) < 1e-12
    assert kpops.linearize(cell, x).engine.unit_blocks(tuple(cell.state_dict())) is None


def test_durstewitzs_diagonal_of_W_is_a_mask():
    cell = randomised(PLRNNCell(2, 4))
    mask = 1 - torch.eye(4, dtype=torch.int8)
    torch.nn.utils.parametrize.register_parametrization(cell, "W", Masked(mask))
    x, h0 = normal(3, 4, 2), normal(3, 4)
    assert float(cell.W.detach().diagonal().abs().max()) == 0
    assert_contract(cell, x, unrolled(cell, x, h0), engine="gated_numba", h0=h0)


def test_thresholds_are_a_shift_of_the_state():
    # Durstewitz (2017): z' = A z + W relu(z - theta) + C x, with h = z - theta
    cell, x, theta, h = randomised(PLRNNCell(2, 4)), normal(7, 2), normal(4, seed=3), normal(7, 4)
    with torch.no_grad():
        cell.b.copy_((cell.A - 1) * theta)
        z = h + theta
        expected = cell.A * z + (z - theta).clamp_min(0) @ cell.W.T + x @ cell.C.T
        assert relative(cell(x, h) + theta, expected) < 1e-15


def test_parameters_start_where_they_are_said_to():
    torch.manual_seed(0)
    for cell in (PLRNNCell(2, 100), ShallowPLRNNCell(2, 100, 30)):
        cell.requires_grad_(False)
        assert 0.5 <= float(cell.A.min()) < 0.55
        assert 0.85 < float(cell.A.max()) <= 0.9
        others = torch.cat([p.flatten() for n, p in cell.named_parameters() if n != "A"])
        assert 0.099 < float(others.abs().max()) <= 0.1


@pytest.mark.parametrize("rectified", [-1, 5])
def test_a_number_of_relus_out_of_range_is_refused(rectified):
    with pytest.raises(ValueError, match=rf"rectified={rectified}: choose from 0 to hidden_size=4"):
        PLRNNCell(2, 4, rectified=rectified)


def test_the_shallow_cell_is_not_taken_for_a_gated_one():
    with pytest.raises(ValueError, match="ShallowPLRNNCell is not known as a gated cell"):
        kpops.linearize(ShallowPLRNNCell(2, 4, 6), torch.zeros(3, 5, 2), engine="gated")


def test_a_cell_of_another_forward_is_taken_as_it_is():
    class Doubled(PLRNNCell):
        def forward(self, x, h):
            return super().forward(2 * x, h)

    cell, x, h0 = randomised(Doubled(2, 4)), normal(3, 4, 2), normal(3, 4)
    assert_contract(cell, x, unrolled(cell, x, h0), h0=h0)
