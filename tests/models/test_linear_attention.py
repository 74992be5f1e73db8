"""Linear attention: the recurrence against attention by a causal mask, and P against autograd."""

import numpy as np
import pytest
import torch
from cell_contract import assert_contract, jacobian, normal, randomised, unrolled
from dense import relative
from torch.nn import functional as F

import kpops
from kpops.models import LinearAttention

LAYERS = {
    "plain": {},
    "normalised": {"normalised": True},
    "gated": {"gated": True},
    "gated_and_normalised": {"gated": True, "normalised": True},
}


def build(name, scale=0.7):
    return randomised(LinearAttention(2, 3, 2, **LAYERS[name]), scale=scale)


def attention(layer, x):
    """Outputs by the matrix of all pairs of tokens, (trial, time, time); nothing is recurrent."""
    q, k, v = (x @ w.T for w in (layer.query_weight, layer.key_weight, layer.value_weight))
    if layer.normalised:
        q, k = F.elu(q) + 1, F.elu(k) + 1
    logs = torch.zeros_like(k)
    if layer.gated:
        logs = F.logsigmoid(x @ layer.gate_weight.T + layer.gate_bias) / 16
    passed = (logs.cumsum(1)[:, :, None] - logs.cumsum(1)[:, None]).exp()  # from s + 1 to t
    scores = torch.einsum("btk,bsk,btsk->bts", q, k, passed).tril()
    if layer.normalised:
        scores = scores / scores.sum(-1, keepdim=True)
    return scores @ v


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_are_those_of_masked_attention(name):
    layer, x = build(name), normal(3, 40, 2)
    lin = kpops.linearize(layer, x, readout=layer.readout)
    assert relative(lin.outputs.values, attention(layer, x).detach()) < 1e-12


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives_of_outputs_are_those_of_masked_attention(name):
    layer, x = build(name), normal(2, 5, 2)
    lin = kpops.linearize(layer, x, readout=layer.readout)
    D = jacobian(attention(layer, x), list(layer.parameters()))
    assert relative(lin.output_ntk.to_dense(), D @ D.T) < 1e-12


@pytest.mark.parametrize("name", LAYERS)
def test_the_operators_are_those_of_autograd(name):
    layer, x = build(name), normal(2, 4, 2)
    h0 = normal(2, layer.state_size)
    assert_contract(layer, x, unrolled(layer, x, h0), engine="scan", h0=h0)


@pytest.mark.parametrize("name", LAYERS)
def test_P_is_that_of_autograd_to_twelve_digits(name):
    layer, x = build(name), normal(2, 5, 2)
    h0 = normal(2, layer.state_size)
    run = unrolled(layer, x, h0)
    P = kpops.linearize(layer, x, h0=h0).P.to_dense()
    assert relative(P, jacobian(run.states, [run.kicks])) < 1e-12


def test_P_of_plain_attention_sums_over_the_tokens_before():
    # theory, oracle 1: a = 1, whose singular values are known.
    layer, x = build("plain"), normal(1, 50, 2)
    lin = kpops.linearize(layer, x)
    memory = lin.P.select(unit=0).to_dense()
    np.testing.assert_array_equal(memory, np.tril(np.ones((50, 50))))
    found = np.linalg.svd(memory, compute_uv=False)
    expected = 1 / (2 * np.sin((2 * np.arange(1, 51) - 1) * np.pi / 202))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    query = lin.P.select(unit=layer.state_size - 1).to_dense()
    np.testing.assert_array_equal(query, np.eye(50))  # the next token forgets it


def test_a_normalised_output_is_an_average_of_the_values():
    layer, x = build("normalised"), normal(2, 30, 2)
    values = x @ layer.value_weight.T.detach()
    outputs = torch.from_numpy(kpops.linearize(layer, x, readout=layer.readout).outputs.values)
    assert (outputs <= values.cummax(1).values + 1e-12).all()
    assert (outputs >= values.cummin(1).values - 1e-12).all()


def test_open_gates_leave_attention_without_gates():
    gated, plain, x = build("gated"), build("plain"), normal(2, 30, 2)
    plain.load_state_dict(gated.state_dict(), strict=False)
    with torch.no_grad():
        gated.gate_bias.fill_(800)  # so that the sigmoid rounds to 1
    one, other = (kpops.linearize(m, x, readout=m.readout).outputs.values for m in (gated, plain))
    np.testing.assert_array_equal(one, other)


def test_units_are_labelled_by_their_place_in_the_memory():
    lin = kpops.linearize(build("normalised"), normal(1, 4, 2))
    labels = lin.states.unit.reset_coords()
    row = ["memory", "memory", "normaliser"]
    assert labels["variable"].values.tolist() == row * 3 + ["query"] * 3
    assert labels["key"].values.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 1, 2]
    assert labels["value"].values.tolist() == [0, 1, -1] * 3 + [-1] * 3


def test_the_same_seed_gives_the_same_layer():
    once, again = (LinearAttention(2, 3, 2, gated=True, rng=5).state_dict() for _ in range(2))
    assert all(torch.equal(once[key], again[key]) for key in once)
    assert all(tensor.abs().max() <= 2**-0.5 for tensor in once.values())


@pytest.mark.parametrize("name", ["input_size", "key_size", "value_size"])
def test_sizes_out_of_range_are_refused(name):
    sizes = {"input_size": 2, "key_size": 3, "value_size": 2, name: 0}
    with pytest.raises(ValueError, match=f"{name}=0: pass an int, 1 or more"):
        LinearAttention(**sizes)
