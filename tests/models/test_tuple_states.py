"""Cells of the user whose state is a tuple of tensors."""

import pytest
import torch
from cell_contract import assert_contract, normal, randomised
from cell_contract import unrolled as unroll
from dense import relative
from torch import nn

import kpops
from kpops.models import LearnedStart


class PairCell(nn.Module):
    """A cell of an activity and a slower trace of another size."""

    def __init__(self, hidden=3, slow=2):
        super().__init__()
        self.W = nn.Linear(2 + hidden + slow, hidden)
        self.V = nn.Linear(hidden, slow)

    def forward(self, x, state):
        h, s = state
        s = 0.8 * s + torch.sigmoid(self.V(h))
        return torch.tanh(self.W(torch.cat([x, h, s], -1))), s


class DeclaredCell(PairCell):
    input_size, state_size, variables = 2, (3, 2), ("rate", "trace")


def unrolled(model, inputs, state):
    def step(x, h):
        return torch.cat(model(x, h.split((3, 2), -1)), -1)

    return unroll(step, inputs, torch.cat(state, -1))


def start():
    return normal(3, 3, seed=2), normal(3, 2, seed=3)


@pytest.mark.parametrize("cell", [PairCell, DeclaredCell])
def test_the_operators_are_those_of_autograd(cell):
    model, x = randomised(cell()), normal(3, 4, 2)
    assert_contract(model, x, unrolled(model, x, start()), h0=start())


def test_a_declared_cell_starts_from_zero_and_names_its_variables():
    model, x = randomised(DeclaredCell()), normal(3, 4, 2)
    zero = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64)
    lin = kpops.linearize(model, x)
    assert relative(lin.states.values, unrolled(model, x, zero).states.detach()) < 1e-15
    assert lin.states["variable"].values.tolist() == ["rate"] * 3 + ["trace"] * 2
    assert lin.states.sel(unit=lin.states["variable"] == "trace").sizes["unit"] == 2


def test_without_names_the_variables_are_numbered():
    lin = kpops.linearize(randomised(PairCell()), normal(3, 4, 2), h0=start())
    assert lin.states["variable"].values.tolist() == ["s0"] * 3 + ["s1"] * 2


def test_a_readout_sees_the_first_tensor():
    model, x, readout = randomised(DeclaredCell()), normal(3, 4, 2), nn.Linear(3, 2).double()
    lin = kpops.linearize(model, x, readout=readout, h0=start())
    states = unrolled(model, x, start()).states
    assert relative(lin.outputs.values, readout(states[..., :3]).detach()) < 1e-14


def test_parts_of_the_start_may_be_the_same_in_all_trials_or_one_vector():
    model, x, (h, s) = randomised(DeclaredCell()), normal(3, 4, 2), start()
    same = kpops.linearize(model, x, h0=(h[0], s))
    spread = kpops.linearize(model, x, h0=torch.cat([h[:1].expand(3, -1), s], -1))
    assert relative(same.states.values, spread.states.values) < 1e-15


def test_the_cell_of_pytorch_gives_the_same_as_a_user_who_wraps_it():
    class Wrapped(nn.Module):
        state_size = (4, 4)

        def __init__(self):
            super().__init__()
            self.cell = nn.LSTMCell(2, 4)

        def forward(self, x, state):
            return self.cell(x, state)

    wrapped, x = randomised(Wrapped()), normal(3, 4, 2)
    # The fused cell has no forward mode: two reverse passes take its place.
    ours, known = kpops.linearize(wrapped, x), kpops.linearize(wrapped.cell, x)
    assert relative(ours.flow.to_dense(), known.flow.to_dense()) < 1e-12


def test_a_learned_start_of_several_tensors_is_split():
    h0 = normal(5)
    model, x = LearnedStart(randomised(DeclaredCell()), h0), normal(3, 2, 2)
    lin = kpops.linearize(model, x)
    first = model(x[:, 0])
    second = model(x[:, 1], first)
    expected = torch.stack([torch.cat(first, -1), torch.cat(second, -1)], 1)
    assert relative(lin.states.values, expected.detach()) < 1e-15


class Lists(DeclaredCell):
    def forward(self, x, state):
        return list(super().forward(x, state))


class Reversed(DeclaredCell):
    def forward(self, x, state):
        return super().forward(x, state)[::-1]


class InPlace(DeclaredCell):
    def forward(self, x, state):
        state[1].mul_(0.5)
        return super().forward(x, state)


X = torch.zeros(3, 4, 2)


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: (Lists(), {}), "returned list, expected the next state alone"),
        (lambda: (Reversed(), {}), r"returned \[\(3, 2\), \(3, 3\)\], .* \[\(3, 3\), \(3, 2\)\]"),
        (lambda: (InPlace(), {"h0": (torch.ones(3), torch.ones(2))}), "changes h in place"),
        (
            lambda: (DeclaredCell(), {"h0": (torch.zeros(3, 2), torch.zeros(3, 3))}),
            r"parts of shape \[\(3, 2\), \(3, 3\)\], expected .*\[\(3, 3\), \(3, 2\)\]",
        ),
        (lambda: (PairCell(), {"h0": (torch.zeros(2, 3), torch.zeros(3, 2))}), "parts of shape"),
        (lambda: (DeclaredCell(), {"h0": torch.zeros(3, 4)}), r"h0 has shape \(3, 4\)"),
        (lambda: (PairCell(), {}), "state size of PairCell is unknown"),
        # A tensor of three rows does not unpack into two.
        (lambda: (PairCell(), {"h0": torch.zeros(3, 5)}), "PairCell cannot take a step with"),
    ],
)
def test_wrong_use_is_refused(build, told):
    model, options = build()
    with pytest.raises(ValueError, match=told):
        kpops.linearize(model, X, **options)
    with pytest.raises(ValueError, match=r"state_size must be the tuple of its sizes"):
        kpops.linearize(Plain(), X)


class Plain(nn.Module):
    """Declares one tensor, and returns two."""

    hidden_size = 3

    def __init__(self):
        super().__init__()
        self.W = nn.Linear(2, 3)

    def forward(self, x, h):
        return self.W(x), h
