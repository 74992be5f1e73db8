"""Network: a recurrent module and a readout as one."""

import copy

import pytest
import torch
from torch import nn

from kpops.models.network import Network

MODULES = [nn.RNN, nn.GRU, nn.LSTM]


def make(module, batch_first=False, layers=1):
    torch.manual_seed(0)
    return Network(module(3, 5, layers, batch_first=batch_first), nn.Linear(5, 2)).double()


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("module", MODULES)
def test_outputs_are_readout_of_the_modules_states(module, batch_first):
    network = make(module, batch_first)
    inputs = torch.randn(4, 7, 3, dtype=torch.float64)
    fed = inputs if batch_first else inputs.transpose(0, 1)
    states = network.recurrent(fed)[0]
    states = states if batch_first else states.transpose(0, 1)
    expected = states @ network.readout.weight.T + network.readout.bias
    torch.testing.assert_close(network(inputs), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("module", MODULES)
def test_batch_first_does_not_change_the_outputs(module):
    time_major, trial_major = make(module, False), make(module, True)
    inputs = torch.randn(4, 7, 3, dtype=torch.float64)
    torch.testing.assert_close(time_major(inputs), trial_major(inputs), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("module", MODULES)
def test_second_half_from_the_state_at_the_middle_is_the_second_half(module, batch_first):
    network = make(module, batch_first, layers=2)
    inputs = torch.randn(4, 8, 3, dtype=torch.float64)
    first = inputs[:, :5] if batch_first else inputs[:, :5].transpose(0, 1)
    middle = network.recurrent(first)[1]
    torch.testing.assert_close(network(inputs[:, 5:], middle), network(inputs)[:, 5:])


def test_every_parameter_is_reached_by_the_gradient():
    network = make(nn.GRU, layers=2)
    network(torch.randn(4, 7, 3, dtype=torch.float64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_state_dict_names_the_two_parts():
    names = {name.partition(".")[0] for name in make(nn.GRU).state_dict()}
    assert names == {"recurrent", "readout"}


@pytest.mark.parametrize("shape", [(7, 3), (4, 7, 2)])
def test_inputs_of_the_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(trial, time, 3\)"):
        make(nn.GRU)(torch.zeros(shape, dtype=torch.float64))


def test_module_without_layers_is_refused():
    with pytest.raises(TypeError, match="recurrent is a GRUCell"):
        Network(nn.GRUCell(3, 5), nn.Linear(5, 2))


def test_readout_of_the_wrong_size_is_refused():
    with pytest.raises(ValueError, match=r"use nn.Linear\(5, 2\)"):
        Network(nn.GRU(3, 5), nn.Linear(6, 2))


def test_copy_computes_the_same():
    network = make(nn.LSTM)
    inputs = torch.randn(2, 3, 3, dtype=torch.float64)
    assert torch.equal(copy.deepcopy(network)(inputs), network(inputs))
