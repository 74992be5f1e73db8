"""Weights that parametrisations make: J through them, as by automatic differentiation."""

import pytest
import torch
from dense import relative
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import kpops
from kpops.engines.gated import weights
from kpops.engines.rowwise import Rowwise

ENGINES = ["gated", "gated_numba"]
STEPS, HIDDEN = 6, 5
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's


class Masked(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.register_buffer("mask", torch.rand(shape) < 0.6)

    def forward(self, weight):
        return weight * self.mask


class LowRank(nn.Module):
    """A square weight from two thin factors, side by side."""

    def forward(self, factors):
        left, right = factors.chunk(2, dim=1)
        return left @ right.mT

    def right_inverse(self, weight):
        return weight[:, :4].clone()


class Signs(nn.Module):
    """Dale's law: columns of one sign."""

    def forward(self, weight):
        return weight.abs() * torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0], dtype=weight.dtype)


def parametrized(model, name, parametrization):
    if isinstance(parametrization, nn.Module):
        parametrize.register_parametrization(model, name, parametrization)
        return model
    return parametrization(model, name)


def rnn():
    return nn.RNN(3, HIDDEN, batch_first=True)


def two_layers():
    model = nn.GRU(3, HIDDEN, 2, batch_first=True)
    for name in ("weight_hh_l0", "weight_hh_l1", "weight_ih_l1"):
        parametrized(model, name, Masked((3 * HIDDEN, HIDDEN)))
    return model


def inside():
    """A weight of a module in the module."""
    model = WithLinear()
    parametrized(model.W, "weight", LowRank())
    return model


class WithLinear(nn.Module):
    def __init__(self, gain=False):
        super().__init__()
        self.W, self.U = nn.Linear(HIDDEN, HIDDEN, bias=False), nn.Linear(3, HIDDEN)
        self.gain = gain


class LinearRecurrence(kpops.models.GatedRecurrence):
    def __init__(self, module):
        maps = kpops.models.Affine("W.weight", input="U.weight", input_bias="U.bias")
        super().__init__(module, [maps])

    def gates(self, from_x, from_h, state):
        gain = self.module.W.weight.diagonal() if self.module.gain else 1.0
        return (torch.tanh(from_x[0] + from_h[0]) * gain,)


@kpops.models.as_recurrence.register
def _(model: WithLinear) -> kpops.models.Recurrence:
    return LinearRecurrence(model)


MODELS = {
    "masked": lambda: parametrized(rnn(), "weight_hh_l0", Masked((HIDDEN, HIDDEN))),
    "low rank": lambda: parametrized(rnn(), "weight_hh_l0", LowRank()),
    "dale": lambda: parametrized(rnn(), "weight_hh_l0", Signs()),
    "orthogonal": lambda: parametrized(rnn(), "weight_hh_l0", parametrizations.orthogonal),
    "weight norm": lambda: parametrized(rnn(), "weight_ih_l0", parametrizations.weight_norm),
    "spectral": lambda: parametrized(rnn(), "weight_hh_l0", parametrizations.spectral_norm).eval(),
    "bias": lambda: parametrized(rnn(), "bias_hh_l0", Masked((HIDDEN,))),
    "lstm": lambda: parametrized(
        nn.LSTM(3, HIDDEN, batch_first=True), "weight_hh_l0", Masked((4 * HIDDEN, HIDDEN))
    ),
    "two layers": two_layers,
    "inside": inside,
}


def linearized(model, engine, **options):
    torch.manual_seed(0)
    inputs = torch.randn(4, STEPS, 3, dtype=torch.float64)
    if options.pop("mask", False):
        options["mask"] = torch.arange(STEPS) < torch.tensor([[6], [4], [2], [1]])
    return kpops.linearize(model.double(), inputs, engine=engine, **options)


def assert_same(lin, reference):
    for symbol in ("J", "K", "flow", "sensitivity"):
        here, there = getattr(lin, symbol), getattr(reference, symbol)
        for ours, theirs in ((here, there), (here.H, there.H)):
            q = torch.randn(3, *ours.domain.shape, dtype=torch.float64)
            assert relative(ours.apply(q), theirs.apply(q)) < 1e-12


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("as_matrix", [False, True])
def test_J_and_K_equal_automatic_differentiation(name, engine, as_matrix, monkeypatch):
    monkeypatch.setattr(weights, "_DENSE", 2**20 if as_matrix else 0)
    torch.manual_seed(0)
    model = MODELS[name]()
    for mask in (False, True):
        lin, reference = (linearized(model, e, mask=mask) for e in (engine, "autodiff"))
        assert_same(lin, reference)
        learned = lin.engine._learned(tuple(lin.parameters))
        assert (learned._matrix is not None) == as_matrix


@pytest.mark.parametrize("name", MODELS)
def test_no_row_of_the_trajectory_is_differentiated_automatically(name, monkeypatch):
    torch.manual_seed(0)
    lin, rows, made = linearized(MODELS[name](), "gated"), set(), Rowwise._of_parameters
    monkeypatch.setattr(
        Rowwise, "_of_parameters", lambda self, theta: rows.add(len(self.h)) or made(self, theta)
    )
    lin.flow.apply(torch.ones(2, *lin.space.shape, dtype=torch.float64))
    assert rows == {1}  # the weights alone


def test_a_part_of_what_a_weight_is_made_of_may_learn():
    torch.manual_seed(0)
    model = MODELS["weight norm"]()
    for names in (["parametrizations.weight_ih_l0.original1"], ["bias_hh_l0"]):
        lin, reference = (linearized(model, e, parameters=names) for e in ("gated", "autodiff"))
        assert_same(lin, reference)


@pytest.mark.parametrize("kind", ["tied", "in a gate"])
def test_what_enters_elsewhere_too_is_by_automatic_differentiation(kind):
    torch.manual_seed(0)
    if kind == "tied":
        model = nn.RNN(3, HIDDEN, num_layers=2, batch_first=True)
        parametrized(model, "weight_hh_l0", Signs())
        model.weight_ih_l1 = model.parametrizations.weight_hh_l0.original
    else:
        model = WithLinear(gain=True)
        parametrized(model.W, "weight", Signs())
    lin = linearized(model, "gated")
    assert_same(lin, linearized(model, "autodiff"))
    assert lin.engine._learned(tuple(lin.parameters)) is None
