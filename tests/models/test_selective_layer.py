"""Selective layers with outputs: the quadratic form of Mamba, and attention with gates."""

import pytest
import torch
from cell_contract import assert_contract, jacobian, normal, randomised, unrolled
from dense import relative
from torch.nn import functional as F

import kpops
from kpops.models import SelectiveLayer


def by_pairs(layer, x):
    """Outputs as sums over all pairs of steps, channel by channel; nothing is recurrent."""
    ssm = layer.ssm
    delta = F.softplus(x @ ssm.step_weight.T + ssm.step_bias)  # (trial, time, channel)
    B, C = x @ ssm.drive_weight.T, x @ layer.query_weight.T  # (trial, time, state)
    logs = -(delta[..., None] * ssm.log_rate.exp()).cumsum(1)  # (trial, time, channel, state)
    passed = (logs[:, :, None] - logs[:, None]).exp()
    scores = torch.einsum("btn,bsn,btscn->bcts", C, B, passed).tril()
    return torch.einsum("bcts,bsc->btc", scores, delta * x)


def build():
    return randomised(SelectiveLayer(2, 3), scale=0.5)


def test_outputs_are_those_of_the_quadratic_form():
    layer, x = build(), normal(2, 20, 2)
    lin = kpops.linearize(layer, x, readout=layer.readout)
    assert relative(lin.outputs.values, by_pairs(layer, x).detach()) < 1e-12


def test_derivatives_of_outputs_are_those_of_the_quadratic_form():
    layer, x = build(), normal(2, 4, 2)
    lin = kpops.linearize(layer, x, readout=layer.readout)
    D = jacobian(by_pairs(layer, x), list(layer.parameters()))
    assert relative(lin.output_ntk.to_dense(), D @ D.T) < 1e-12


def test_the_operators_are_those_of_autograd():
    layer, x = build(), normal(2, 4, 2)
    h0 = normal(2, layer.state_size)
    assert_contract(layer, x, unrolled(layer, x, h0), engine="scan", h0=h0)


def test_units_are_labelled_by_state_and_channel():
    states = kpops.linearize(build(), normal(1, 4, 2)).states
    assert states["variable"].values.tolist() == ["memory"] * 6 + ["query"] * 3
    assert states["key"].values.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2]
    assert states["value"].values.tolist() == [0, 0, 0, 1, 1, 1, -1, -1, -1]


def test_the_same_seed_gives_the_same_layer():
    once, again = (SelectiveLayer(2, 3, rng=5).state_dict() for _ in range(2))
    assert all(torch.equal(once[key], again[key]) for key in once)
    assert not torch.equal(once["query_weight"], once["ssm.drive_weight"])


def test_a_size_that_is_no_count_is_refused():
    with pytest.raises(ValueError, match="n_states=0: pass an int"):
        SelectiveLayer(2, 0)
