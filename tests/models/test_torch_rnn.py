"""PyTorch's layers beyond the shared cases: deep, tied, without bias, packed."""

import pytest
import torch
from cases import Case
from cell_contract import assert_contract, jacobian, normal, randomised, unrolled
from dense import relative
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import kpops


def tied_layers():
    model = nn.GRU(4, 4, num_layers=2)
    model.weight_ih_l1, model.weight_hh_l1 = model.weight_ih_l0, model.weight_hh_l0
    return model


def tied_maps():
    model = nn.RNN(4, 4, batch_first=True)
    model.weight_ih_l0, model.bias_ih_l0 = model.weight_hh_l0, model.bias_hh_l0
    return model


MODELS = {
    "three_layers": (lambda: nn.RNN(2, 4, num_layers=3, nonlinearity="relu", bias=False), 3, 1),
    "lstm_without_bias": (lambda: nn.LSTM(2, 4, batch_first=True, bias=False), 1, 2),
    "tied_layers": (tied_layers, 2, 1),
    "tied_maps": (tied_maps, 1, 1),
    "dropout_in_eval": (lambda: nn.GRU(2, 4, num_layers=2, dropout=0.5).eval(), 2, 1),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_operators_are_those_of_autograd(name):
    build, layers, variables = MODELS[name]
    model, case = randomised(build(), scale=0.5), Case(name, None, layers=layers)
    x, h0 = normal(2, 3, model.input_size), normal(2, 4 * layers * variables)
    run = unrolled(lambda x, h: case.own_step(model, x, h), x, h0)
    assert_contract(model, case.as_module_takes(model, x), run, engine="gated_numba", h0=h0)


@pytest.mark.parametrize("engine", ["gated_numba", "gated", "jacobian", "autodiff"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_a_packed_stack_is_that_of_the_modules_own_run(batch_first, engine):
    model = randomised(nn.LSTM(2, 4, num_layers=2, batch_first=batch_first))
    packed = pack_sequence([normal(n, 2, seed=n) for n in (3, 4, 2)], enforce_sorted=False)
    start = normal(2, 3, 4), normal(2, 3, 4, seed=2)
    own, _ = pad_packed_sequence(model(packed, start)[0], batch_first=True)
    lin = kpops.linearize(model, packed, h0=start, engine=engine)
    top = ((lin.states.layer == 1) & (lin.states["variable"] == "h")).values
    assert relative(lin.states.values[..., top], own.detach()) < 1e-14
    D = jacobian(own, list(model.parameters()))
    ours = torch.from_numpy(lin.sensitivity.to_dense()).unflatten(0, lin.states.shape)
    assert relative(ours[:, :, top].flatten(0, 2), D) < 1e-12


def test_a_forward_of_one_object_is_refused():
    model = nn.GRU(2, 4, batch_first=True)
    own = model.forward
    model.forward = lambda x, h=None: own(2 * x, h)
    with pytest.raises(ValueError, match="GRU overrides the forward of GRU, so its step is unkn"):
        kpops.linearize(model, torch.zeros(3, 5, 2))
