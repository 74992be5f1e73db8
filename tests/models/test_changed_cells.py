"""Cells that are not quite those that kpops knows, and cells without inputs."""

import types

import numpy as np
import pytest
import torch
from cell_contract import assert_contract, jacobian, normal, randomised, unrolled
from dense import relative
from torch import nn
from torch.nn.utils import parametrize

import kpops
from kpops.models import (
    DiagonalSSM,
    LeakyCell,
    LowRankCell,
    Masked,
    MGUCell,
    MinGRUCell,
    PLRNNCell,
    ShallowPLRNNCell,
    TeacherForced,
    as_recurrence,
)


class Driven(LeakyCell):
    def driven(self, x):
        return super().driven(torch.sin(x))


class Mixing(LeakyCell):
    def moved(self, h, drive):
        return super().moved(h, drive) + 0.3 * h.roll(1, -1)


class Rates(LowRankCell):
    def rates(self, h):
        return super().rates(h.roll(1, -1))


class Product(LowRankCell):
    @property
    def weight_hh(self):
        return super().weight_hh / 2

    def forward(self, x, h):
        return self.moved(h, self.driven(x) + self.rates(h) @ self.weight_hh.T)


class Permuted(PLRNNCell):
    def phi(self, h):
        return super().phi(h.roll(1, -1))


class Gated(MinGRUCell):
    def mixed(self, gate, candidate, h):
        return super().mixed(gate, candidate, h) + 0.3 * h.roll(1, -1)


class Forced(TeacherForced):
    def forward(self, x, h):
        return torch.tanh(super().forward(x, h))


class Elsewhere(TeacherForced):
    def forced(self, x, h):
        inputs, state = super().forced(x, h)
        return inputs, torch.tanh(state)


CHANGED = {
    "driven": lambda: Driven(2, 4, alpha=0.3),
    "moved": lambda: Mixing(2, 4, alpha=0.3),
    "rates": lambda: Rates(2, 4, 2, alpha=0.3),
    "weight_hh": lambda: Product(2, 4, 2, alpha=0.3),
    "phi": lambda: Permuted(2, 4),
    "mixed": lambda: Gated(2, 4),
    "forward": lambda: Forced(nn.GRUCell(2, 4), 0.3),
    "forced": lambda: Elsewhere(nn.GRUCell(2, 4), 0.3),
}


@pytest.mark.parametrize("part", CHANGED)
def test_a_subclass_that_changes_a_part_of_the_step_is_taken_as_it_is(part):
    cell = randomised(CHANGED[part](), scale=0.5)
    x, h0 = normal(2, 3, cell.input_size), normal(2, 4)
    assert_contract(cell, x, unrolled(cell, x, h0), h0=h0)


@pytest.mark.parametrize(
    "build",
    [lambda: LeakyCell(2, 4, alpha=0.3), lambda: TeacherForced(nn.GRUCell(2, 4), 0.3)],
    ids=["leaky", "forced"],
)
def test_hooks_are_followed(build):
    cell = randomised(build())
    cell.register_forward_hook(lambda module, given, new: torch.sin(new))
    x, h0 = normal(2, 3, cell.input_size), normal(2, 4)
    assert_contract(cell, x, unrolled(cell, x, h0), h0=h0)


def test_a_subclass_with_another_start_of_its_weights_is_the_same_cell():
    class Silent(LeakyCell):
        def __init__(self):
            super().__init__(2, 4, alpha=0.3)
            nn.init.zeros_(self.weight_hh)

    assert kpops.linearize(Silent(), torch.zeros(3, 5, 2)).engine.name == "gated_numba"


def test_a_method_in_the_place_of_a_forward_is_followed():
    def doubled(self, x, h):
        return LeakyCell.forward(self, 2 * x, h)

    cell = randomised(LeakyCell(2, 4, alpha=0.3))
    cell.forward = types.MethodType(doubled, cell)
    x = normal(2, 3, 2)
    run = unrolled(cell, x, torch.zeros(2, 4, dtype=torch.float64))
    lin = kpops.linearize(cell, x)
    D = jacobian(run.states, list(cell.parameters()))
    assert lin.engine.name == "jacobian"
    assert relative(lin.sensitivity.to_dense(), D) < 1e-14


def test_a_function_in_the_place_of_a_forward_is_refused():
    # It sees the user's weights, not those of the snapshot: J would be zero.
    cell = LeakyCell(2, 4, alpha=0.3)
    own = cell.forward
    cell.forward = lambda x, h: own(2 * x, h)
    with pytest.raises(ValueError, match=r"the model \(LeakyCell\) has a function in the place"):
        kpops.linearize(cell, torch.zeros(3, 5, 2))
    with pytest.raises(ValueError, match=r"cell \(LeakyCell\) has a function in the place"):
        as_recurrence(nn.ModuleDict({"cell": cell}))


def test_a_cache_of_parametrized_weights_is_refused():
    cell = LeakyCell(2, 4, alpha=0.3)
    parametrize.register_parametrization(cell, "weight_hh", Masked(1 - torch.eye(4)))
    x, plain = torch.zeros(3, 5, 2), LeakyCell(2, 4, alpha=0.3)
    lin = kpops.linearize(cell, x)
    with parametrize.cached():
        with pytest.raises(RuntimeError, match="derivatives would be lost: leave it before using"):
            kpops.linearize(cell, x, engine="jacobian").flow.to_dense()
        with pytest.raises(RuntimeError, match=r"within torch.nn.utils.parametrize.cached\(\)"):
            lin.J @ np.ones(lin.J.shape[1], np.float32)
        assert kpops.linearize(plain, x).J.shape == (60, 28)


def test_sizes_may_be_numpys():
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.input_size, self.hidden_size = np.int64(2), np.int64(4)
            self.W = nn.Linear(2, 4)

        def forward(self, x, h):
            return torch.tanh(self.W(x) + h)

    assert kpops.linearize(Cell(), torch.zeros(3, 5, 2)).states.shape == (3, 5, 4)
    assert DiagonalSSM(np.int64(2), np.int64(3), rng=0).state_size == 6


AUTONOMOUS = {
    "leaky": (lambda: LeakyCell(0, 4, alpha=0.3), "gated_numba"),
    "low_rank": (lambda: LowRankCell(0, 4, 2, alpha=0.3, bias=False), "gated_numba"),
    "plrnn": (lambda: PLRNNCell(0, 4, rectified=2), "gated_numba"),
    "shallow": (lambda: ShallowPLRNNCell(0, 4, 6), "jacobian"),
    "mgu": (lambda: MGUCell(0, 4), "jacobian"),
    "forced": (lambda: TeacherForced(PLRNNCell(0, 4), 0.3), "jacobian"),
}


@pytest.mark.parametrize("name", AUTONOMOUS)
def test_a_cell_without_inputs_runs_from_its_start(name):
    build, engine = AUTONOMOUS[name]
    cell = randomised(build(), scale=0.5)
    x, h0 = normal(2, 3, cell.input_size), normal(2, 4)
    assert_contract(cell, x, unrolled(cell, x, h0), engine=engine, h0=h0)


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: LeakyCell(3, 0, alpha=0.2), "hidden_size=0: pass an int, 1 or more"),
        (lambda: LeakyCell(-1, 3, alpha=0.2), "input_size=-1: pass an int, 0 or more"),
        (lambda: LeakyCell(2, 3, alpha=torch.rand(3)), r"alpha=tensor.*one number in \(0, 1\]"),
        (lambda: LowRankCell(2, 4, 1.5, alpha=0.2), "rank=1.5: choose from 1 to hidden_size=4"),
        (lambda: MinGRUCell(3, 0), "hidden_size=0: pass an int, 1 or more"),
        (lambda: MGUCell(3, 2.0), r"hidden_size=2\.0: pass an int"),
        (lambda: PLRNNCell(3, 0), "hidden_size=0: pass an int"),
        (lambda: PLRNNCell(3, 4, rectified=1.5), r"rectified=1\.5: choose from 0"),
        (lambda: ShallowPLRNNCell(3, 4, 0), "expansion=0: pass an int, 1 or more"),
    ],
)
def test_wrong_sizes_are_refused_by_name(build, told):
    with pytest.raises(ValueError, match=told):
        build()
