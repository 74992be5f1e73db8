"""Recurrent weights that flow on the orthogonal group: W stays there, and P keeps lengths."""

import itertools
import math

import pytest
import torch
from cell_contract import assert_contract, normal, unrolled
from dense import relative
from torch.nn import functional as F

import kpops
from kpops.models import OrthogonalFlow

D = 4


def cell(**options):
    return OrthogonalFlow(2, D, rng=0, **options).double()


def between_units(lin):
    """Blocks P[t, s] from the units h to h, for t >= s."""
    n_steps, size = lin.space.shape[1:]
    P = torch.from_numpy(lin.P.to_dense()).reshape(n_steps, size, n_steps, size)
    h = P[:, :D, :, :D].permute(0, 2, 1, 3)
    return h[torch.tril(torch.ones(n_steps, n_steps, dtype=torch.bool))]


def weights(lin):
    flat = torch.from_numpy(lin.states.values[..., D:])
    return flat.unflatten(-1, (D, D))


@pytest.mark.parametrize("activation", ["identity", "abs"])
def test_all_singular_values_of_P_are_one(activation):
    x, h0 = normal(1, 40, 2), normal(1, D)
    lin = kpops.linearize(cell(activation=activation, dt=0.7), x, h0=h0)
    assert (torch.linalg.svdvals(between_units(lin)) - 1).abs().max() < 1e-12


def test_those_under_tanh_are_at_most_one():
    lin = kpops.linearize(cell(activation="tanh"), normal(1, 20, 2), h0=normal(1, D))
    values = torch.linalg.svdvals(between_units(lin))
    assert values.max() < 1 + 1e-12
    assert values.min() < 0.1


def test_the_weight_stays_orthogonal_for_a_thousand_steps():
    W = weights(kpops.linearize(cell(dt=2.0), normal(2, 1000, 2), engine="autodiff"))
    assert (W.mT @ W - torch.eye(D)).abs().max() < 1e-12
    assert (torch.linalg.det(W) - 1).abs().max() < 1e-12


def test_the_weight_follows_its_flow_at_second_order():
    # Without inputs dW/dt = W S with a constant S, so that W(1) = exp(S).
    errors = []
    for n_steps in (10, 20, 40):
        model = OrthogonalFlow(0, D, dt=1 / n_steps, rng=1).double()
        S = torch.zeros(D, D, dtype=torch.float64)
        rows, columns = torch.tril_indices(D, D, -1)
        S[rows, columns] = model.flow_bias.detach()
        S = S - S.T
        W = weights(kpops.linearize(model, torch.zeros(1, n_steps, 0, dtype=torch.float64)))
        errors.append(float((W[0, -1] - torch.linalg.matrix_exp(S)).norm()))
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert orders == pytest.approx([2, 2], abs=0.05)


def test_a_step_is_its_formula():
    model, x, h = cell(activation="tanh", dt=0.3), normal(3, 2), normal(3, D + D * D)
    W = h[:, D:].unflatten(-1, (D, D)) @ model.rotation(x)
    u = torch.tanh((W @ h[:, :D, None])[..., 0]) + F.linear(x, model.weight_ih)
    assert relative(model(x, h).detach(), torch.cat([u, W.flatten(1)], 1).detach()) < 1e-14


@pytest.mark.parametrize("activation", ["identity", "tanh"])
def test_the_operators_are_those_of_autograd(activation):
    model = OrthogonalFlow(2, 2, activation=activation, dt=0.5, rng=0).double()
    x, h0 = normal(2, 4, 2), normal(2, 6)
    assert_contract(model, x, unrolled(model, x, h0), h0=h0)


def test_the_weight_starts_at_one_and_a_readout_sees_the_units():
    model, x, h0 = cell(), normal(3, 5, 2), normal(3, D)
    short = kpops.linearize(model, x, h0=h0, readout=torch.nn.Linear(D, 2).double())
    one = torch.eye(D, dtype=torch.float64).flatten().expand(3, -1)
    full = kpops.linearize(model, x, h0=torch.cat([h0, one], 1))
    assert relative(short.states.values, full.states.values) < 1e-14
    assert short.outputs.shape == (3, 5, 2)
    assert full.states["variable"].values.tolist() == ["h"] * D + ["W"] * D * D
    assert full.states["row"].values[[0, D, D + 1, -1]].tolist() == [0, 0, 0, D - 1]
    assert full.states["column"].values[[0, D, D + 1, -1]].tolist() == [-1, 0, 1, D - 1]


def test_the_same_seed_gives_the_same_cell():
    once, again = (OrthogonalFlow(2, 3, rng=5).state_dict() for _ in range(2))
    assert all(torch.equal(once[key], again[key]) for key in once)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"input_size": -1}, "input_size=-1: pass an int, 0 or more"),
        ({"hidden_size": 0}, "hidden_size=0: pass an int, 1 or more"),
        ({"dt": 0.0}, "dt=0.0: pass the length of a step, above 0"),
        ({"activation": "relu"}, "activation='relu': choose from"),
    ],
)
def test_wrong_options_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        OrthogonalFlow(**{"input_size": 2, "hidden_size": 3, **options})


def test_a_start_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"h0 has shape \(1, 7\), expected .* \(1, 20\)"):
        kpops.linearize(cell(), normal(1, 3, 2), h0=normal(1, 7))
