"""What forcing does to exponents and gradients: laws of theory.md, oracle 12."""

import itertools

import numpy as np
import pytest
import torch
from dense import relative
from random_cells import normal, randomised
from torch import nn

import kpops
from kpops.models import PLRNNCell, ShallowPLRNNCell, TeacherForced
from kpops.reconstruction.teacher_forcing import Forced


def free_states(cell, h0, n_steps):
    """States before each step of the free cell, (trial, time, unit)."""
    states = [h0]
    with torch.no_grad():
        for _ in range(n_steps - 1):
            states.append(cell(h0.new_zeros(len(h0), cell.input_size), states[-1]))
    return torch.stack(states, dim=1)


def rotation(scale):
    """A linear cell whose eigenvalues have the moduli `scale` and 0.8 `scale`."""
    cell = PLRNNCell(0, 4, rectified=0).double()
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    with torch.no_grad():
        cell.A.zero_()
        cell.b.zero_()
        cell.W.copy_(torch.block_diag(scale * turn, 0.8 * scale * turn))
    return cell


CELLS = {
    "linear and unstable": lambda: rotation(1.03),
    "piecewise linear": lambda: randomised(PLRNNCell(0, 4, rectified=2), scale=0.4),
    "bounded and piecewise linear": lambda: randomised(
        ShallowPLRNNCell(0, 4, 12, clipped=True), scale=0.5
    ),
}


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", CELLS)
def test_generalised_forcing_moves_all_exponents_by_the_logarithm_of_one_minus_alpha(name, alpha):
    cell, h0 = CELLS[name](), 0.1 * normal(3, 4)
    if "linear and" not in name:
        with torch.no_grad():  # so that no exponent drowns in the rounding of the largest
            cell.A.copy_(torch.linspace(0.6, 0.9, 4))
    data = free_states(cell, h0, 200)
    free = kpops.lyapunov_spectrum(cell, h0=h0, n_steps=200, rng=0)
    forced = kpops.lyapunov_spectrum(TeacherForced(cell, alpha), h0=h0, inputs=data, rng=0)
    np.testing.assert_allclose(
        forced.exponent - free.exponent, np.log(1 - alpha), rtol=0, atol=1e-10
    )


def largest_gain(cell):
    """Largest singular value of the Jacobians of all linear pieces."""
    linear = cell.hidden_size - cell.rectified
    A, W = cell.A.detach(), cell.W.detach()
    patterns = itertools.product([0.0, 1.0], repeat=cell.rectified)
    pieces = [torch.diag(A) + W * torch.tensor([1.0] * linear + [*p]).double() for p in patterns]
    return max(float(torch.linalg.matrix_norm(piece, 2)) for piece in pieces)


def test_strong_forcing_bounds_all_products_of_jacobians_by_one():
    cell = randomised(PLRNNCell(0, 4, rectified=3), scale=0.7)
    gain = largest_gain(cell)
    assert gain > 1.5
    data = normal(2, 12, 4, seed=3)

    def products(alpha):
        lin = kpops.linearize(TeacherForced(cell, alpha), data)
        blocks = lin.P.to_dense().reshape(2, 12, 4, 2, 12, 4)
        return np.array(
            [np.linalg.norm(blocks[b, t, :, b, 0], 2) for b in range(2) for t in range(12)]
        )

    assert products(1 - 1 / gain).max() < 1 + 1e-12
    assert products(0.0).max() > 2


def test_strong_forcing_bounds_the_gradients_of_training():
    # Of the last prediction by the first state that the data do not replace.
    cell = randomised(PLRNNCell(0, 4, rectified=3), scale=0.7)
    gain, data = largest_gain(cell), normal(1, 30, 4, seed=3)

    def gradient(alpha):
        push = torch.zeros(4, dtype=torch.float64, requires_grad=True)

        class Pushed(nn.Module):
            input_size, state_size = 0, 4
            step = 0

            def forward(self, x, h):
                self.step += 1
                return cell(x, h) + (push if self.step == 1 else 0)

        predicted = Forced(Pushed(), 4, alpha, 1, 0.0, None)(data)[0, -1]
        rows = [torch.autograd.grad(y, push, retain_graph=True)[0] for y in predicted]
        return float(torch.linalg.matrix_norm(torch.stack(rows), 2))

    assert gradient(1 - 1 / gain) < 1 + 1e-12
    assert gradient(1e-3) > 10


@pytest.mark.parametrize(("alpha", "interval"), [(1.0, 5), (0.3, 1), (0.7, 4)])
@pytest.mark.parametrize("observed", [2, 4])
def test_training_takes_the_steps_of_the_forced_cell(alpha, interval, observed):
    cell, data = randomised(PLRNNCell(0, 4, rectified=2), scale=0.5), normal(3, 14, observed)
    strength = torch.zeros(3, 14, 1, dtype=torch.float64)
    strength[:, ::interval] = alpha
    strength[:, 0] = 1  # the first observation is the start
    forced = TeacherForced(cell, None, observed=observed)
    lin = kpops.linearize(forced, torch.cat([data, strength], dim=-1))
    predicted = Forced(cell, observed, alpha, interval, 0.0, None)(data)
    assert relative(lin.states.values[..., :observed], predicted.detach().numpy()) < 1e-14


def test_sparse_forcing_cuts_the_gradient_of_observed_units_and_keeps_that_of_the_others():
    cell, data = randomised(PLRNNCell(0, 4, rectified=2), scale=0.5), normal(1, 6, 2)
    strength = torch.tensor([1.0, 0, 0, 1, 0, 0]).double()[None, :, None]
    forced = TeacherForced(cell, None, observed=2)
    lin = kpops.linearize(forced, torch.cat([data, strength], dim=-1))
    block = lin.P.to_dense().reshape(6, 4, 6, 4)[5, :, 2]  # from the state that is forced next
    assert abs(block[:, :2]).max() == 0
    assert abs(block[:, 2:]).max() > 0.01


@pytest.mark.parametrize("observed", [0, 5, 2.0])
def test_a_number_of_observed_units_that_the_cell_does_not_have_is_refused(observed):
    with pytest.raises(ValueError, match=r"observed=.*: choose an int from 1 to 4"):
        TeacherForced(PLRNNCell(0, 4), 0.5, observed=observed)


def test_the_repr_tells_the_strength_and_the_observed_units():
    assert "alpha=None, observed=2" in repr(TeacherForced(PLRNNCell(0, 4), None, observed=2))
