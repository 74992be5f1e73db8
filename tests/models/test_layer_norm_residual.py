"""Layer norm and residual steps, by the engines for any module."""

import pytest
import torch
from cell_contract import assert_contract, normal, randomised, unrolled
from torch import nn

import kpops


class NormedCell(nn.Module):
    """Layer norm of the drive: each unit sees the others through mean and variance."""

    input_size, hidden_size = 2, 4

    def __init__(self):
        super().__init__()
        self.drive = nn.Linear(6, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x, h):
        return torch.tanh(self.norm(self.drive(torch.cat([x, h], -1))))


class ResidualCell(nn.Module):
    """h' = h + f(h, x), with f a network of two layers after a norm."""

    input_size, hidden_size = 2, 4

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.inner = nn.Sequential(nn.Linear(6, 7), nn.GELU(), nn.Linear(7, 4))

    def forward(self, x, h):
        return h + 0.3 * self.inner(torch.cat([x, self.norm(h)], -1))


@pytest.mark.parametrize("cell", [NormedCell, ResidualCell])
def test_the_operators_are_those_of_autograd(cell):
    model, x, h0 = randomised(cell()), normal(3, 4, 2), normal(3, 4)
    assert_contract(model, x, unrolled(model, x, h0), h0=h0)


def test_layer_norm_leaves_no_perturbation_along_its_null_directions():
    # The norm does not see a shift of all of its arguments alike: A maps the drive's common mode,
    # pulled back by pseudo-inverse, to zero.
    model = randomised(NormedCell())
    with torch.no_grad():
        model.drive.weight[:, 2:].copy_(torch.eye(4))
    lin = kpops.linearize(model, normal(3, 4, 2), h0=normal(3, 4))
    A = lin.engine.step_jacobians(2)
    assert float((A @ torch.ones(4, dtype=torch.float64)).abs().max()) < 1e-14 * float(A.norm())


def test_a_residual_step_is_near_the_identity_for_a_small_inner_map():
    model = randomised(ResidualCell(), scale=1e-4)
    lin = kpops.linearize(model, normal(3, 4, 2))
    assert float((lin.engine.step_jacobians(1) - torch.eye(4)).abs().max()) < 1e-7
