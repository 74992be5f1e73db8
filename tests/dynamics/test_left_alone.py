"""Nothing of the model, of what is given, or of the random state of the process is changed."""

import copy

import numpy as np
import pytest
import torch
from systems import normal
from torch import nn

import kpops

CALLS = {
    "lyapunov_spectrum": lambda model, x, h: kpops.lyapunov_spectrum(model, inputs=x, h0=h, rng=0),
    "without inputs": lambda model, x, h: kpops.lyapunov_spectrum(model, h0=h, n_steps=9, rng=0),
    "covariant": lambda model, x, h: kpops.covariant_lyapunov_vectors(model, inputs=x, h0=h, rng=0),
    "fixed_points": lambda model, x, h: kpops.fixed_points(model, h, jitter=0.1, rng=0),
    "linearize_at": lambda model, x, h: kpops.linearize_at(model, h, 3).flow.to_dense(),
    "stationary_response": lambda model, x, h: kpops.stationary_response(
        model, kpops.fixed_points(model, h)
    ).to_dense(),
    "continuation": lambda model, x, h: kpops.continuation(
        model,
        kpops.fixed_points(model, h).isel(point=[0]),
        lambda g: {"bias_hh_l0": g * torch.ones(12, dtype=h.dtype) + model.bias_hh_l0},
        (0, 0.1),
        step=0.5,
    ),
}


@pytest.mark.filterwarnings("ignore::kpops.ConvergenceWarning")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("train", [True, False])
def test_model_arguments_and_random_states_are_left_alone(call, train):
    torch.manual_seed(0)
    model = nn.LSTM(2, 3, batch_first=True).double().train(train)
    inputs, states = normal(2, 20, 2), normal(2, 6, seed=1)
    model(inputs)[0].square().sum().backward()
    model.bias_hh_l0.requires_grad_(False)
    model.note = "mine"
    given = inputs.clone(), states.clone()
    before = [(p.detach().clone(), p.grad.clone(), p.requires_grad) for p in model.parameters()]
    objects = [id(p) for p in model.parameters()], [id(p.grad) for p in model.parameters()]
    random = torch.random.get_rng_state(), np.random.get_state()[1].copy()

    CALLS[call](model, inputs, states)

    assert model.training is train and model.note == "mine"
    assert objects == (
        [id(p) for p in model.parameters()],
        [id(p.grad) for p in model.parameters()],
    )
    for parameter, (value, grad, learns) in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, value) and torch.equal(parameter.grad, grad)
        assert parameter.requires_grad is learns
    assert torch.equal(inputs, given[0]) and torch.equal(states, given[1])
    assert torch.equal(random[0], torch.random.get_rng_state())
    assert (random[1] == np.random.get_state()[1]).all()
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_a_linearization_is_left_alone():
    lin = kpops.linearize(nn.GRU(2, 4, batch_first=True), normal(3, 12, 2, dtype=torch.float32))
    before = copy.deepcopy(lin.trajectory)
    kpops.lyapunov_spectrum(lin, rng=0)
    kpops.covariant_lyapunov_vectors(lin, rng=0)
    kpops.linearize_at(lin, kpops.fixed_points(lin, 5, rng=0), 3).P.to_dense()
    for name in ("inputs", "previous", "states"):
        assert torch.equal(getattr(lin.trajectory, name), getattr(before, name))
    assert all(not p.requires_grad for p in lin.parameters.values())
    assert lin.space.sizes == {"trial": 3, "time": 12, "unit": 4}
