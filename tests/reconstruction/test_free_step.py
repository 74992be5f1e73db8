"""The step of a cell in few operations is the step of the cell."""

import pytest
import torch
from dense import relative
from random_cells import normal, randomised
from torch import nn

from kpops.models import Masked, PLRNNCell, ShallowPLRNNCell
from kpops.reconstruction.free_step import free_step

CELLS = {
    "plrnn": lambda: PLRNNCell(2, 5),
    "almost linear": lambda: PLRNNCell(0, 5, rectified=2),
    "linear": lambda: PLRNNCell(2, 5, rectified=0),
    "shallow": lambda: ShallowPLRNNCell(0, 5, 7),
    "clipped": lambda: ShallowPLRNNCell(2, 5, 7, clipped=True),
    "gru": lambda: nn.GRUCell(2, 5),
}


@pytest.mark.parametrize("name", CELLS)
def test_the_form_without_inputs_has_the_values_and_gradients_of_the_cell(name):
    cell, h = randomised(CELLS[name](), 0.7), normal(6, 5).requires_grad_()
    n_features = 0 if name in ("almost linear", "shallow") else 2
    mine = free_step(cell, n_features, h)(h)
    theirs = cell(torch.zeros(6, n_features, dtype=torch.float64), h)
    assert relative(mine.detach(), theirs.detach()) < 1e-14
    weights = [h, *cell.parameters()]
    error = normal(6, 5, seed=2)
    for a, b in zip(
        torch.autograd.grad(mine, weights, error, allow_unused=True),
        torch.autograd.grad(theirs, weights, error, allow_unused=True),
        strict=True,
    ):
        a, b = (torch.zeros(1) if g is None else g for g in (a, b))
        assert float((a - b).abs().sum()) < 1e-12


def test_a_masked_cell_keeps_its_mask():
    cell = randomised(PLRNNCell(0, 4), 0.7)
    nn.utils.parametrize.register_parametrization(cell, "W", Masked(1 - torch.eye(4)))
    h = normal(3, 4)
    x = torch.zeros(3, 0, dtype=torch.float64)
    assert relative(free_step(cell, 0, h)(h).detach(), cell(x, h).detach()) < 1e-14


class Doubled(PLRNNCell):
    def forward(self, x, h):
        return 2 * super().forward(x, h)


class Bent(PLRNNCell):
    def phi(self, h):
        return torch.tanh(h)


def hooked():
    cell = PLRNNCell(0, 4)
    cell.register_forward_hook(lambda module, args, output: output + 1)
    return cell


@pytest.mark.parametrize("make", [lambda: Doubled(0, 4), lambda: Bent(0, 4), hooked])
def test_a_changed_cell_takes_its_own_step(make):
    cell, h = make().double(), normal(3, 4)
    x = torch.zeros(3, 0, dtype=torch.float64)
    assert torch.equal(free_step(cell, 0, h)(h), cell(x, h))
