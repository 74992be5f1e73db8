"""Rules of torch's optimizers and of momentum against their real steps, after ten others."""

import copy

import numpy as np
import pytest
import torch
from real_steps import ETAS, STEPS, TRIALS, UNITS, assert_falls_linearly, loss_of, problem
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop

import kpops
from kpops.testing import check_operator


def after_ten_steps(make, kind=nn.RNN):
    """Network and optimizer, with the gradients of the eleventh step."""
    network, inputs, targets = problem(kind)
    optimizer = make(network.parameters())
    for _ in range(10):
        optimizer.zero_grad()
        loss_of(network, inputs, targets).backward()
        optimizer.step()
    optimizer.zero_grad()
    loss_of(network, inputs, targets).backward()
    return network, optimizer, inputs, targets


def mover(network, optimizer, inputs, targets, steps=1):
    """The change of the states by real steps, over eta; and what the last network was."""
    states = network.recurrent(inputs)[0].detach()
    last = []

    def move(eta):
        other, own = copy.deepcopy((network, optimizer))
        for group in own.param_groups:
            group["lr"] = eta
        for _ in range(steps):
            own.zero_grad()
            loss_of(other, inputs, targets).backward()
            own.step()
        last[:] = [own, other]
        return (other.recurrent(inputs)[0].detach() - states) / eta

    return move, last


@pytest.mark.parametrize(
    "make",
    [
        lambda p: SGD(p, 0.05),
        lambda p: SGD(p, 0.05, momentum=0.9),
        lambda p: SGD(p, 0.05, momentum=0.8, dampening=0.3),
        lambda p: SGD(p, 0.05, momentum=0.8, nesterov=True),
        lambda p: Adam(p, 0.01),
        lambda p: Adam(p, 0.01, betas=(0.0, 0.99), eps=1e-3),
        lambda p: AdamW(p, 0.01, weight_decay=0),
        lambda p: RMSprop(p, 0.01),
        lambda p: RMSprop(p, 0.01, centered=True, momentum=0.5, alpha=0.9),
        lambda p: Adagrad(p, 0.01, lr_decay=0.1),
    ],
    ids=[
        *("SGD", "momentum", "dampening", "Nesterov", "Adam", "Adam without momentum", "AdamW"),
        *("RMSprop", "centred RMSprop", "Adagrad"),
    ],
)
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU])
def test_the_next_step_of_an_optimizer(kind, make):
    network, optimizer, inputs, targets = after_ten_steps(make, kind)
    lin = kpops.linearize(network, inputs)
    flow = kpops.gradient_flow(lin, targets)
    R = kpops.learning_rule(lin, "optimizer", optimizer=optimizer, model=network)
    assert R.positive
    predicted = -(R @ flow.error.values + R.drift.values)
    # Steps of those that divide by gradients are larger.
    etas = ETAS if isinstance(optimizer, SGD) else ETAS / 10
    assert_falls_linearly(mover(network, optimizer, inputs, targets)[0], predicted, etas)


@pytest.mark.parametrize("make", [lambda p: SGD(p, 0.05, momentum=0.9, dampening=0.5), Adam])
def test_the_first_step_of_an_optimizer(make):
    network, inputs, targets = problem()
    optimizer = make(network.parameters())
    loss_of(network, inputs, targets).backward()
    lin = kpops.linearize(network, inputs)
    R = kpops.learning_rule(lin, "optimizer", optimizer=optimizer, model=network)
    assert not R.drift.any()
    predicted = -(R @ kpops.gradient_flow(lin, targets).error.values)
    assert_falls_linearly(mover(network, optimizer, inputs, targets)[0], predicted)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("settings", [{}, {"dampening": 0.4}, {"nesterov": True}])
def test_momentum_in_the_augmented_state(settings, steps):
    settings = {"momentum": 0.8, **settings}
    network, optimizer, inputs, targets = after_ten_steps(lambda p: SGD(p, 0.05, **settings))
    lin = kpops.linearize(network, inputs)
    flow = kpops.gradient_flow(lin, targets)

    def velocity(optimizer, network):
        buffers = [
            optimizer.state[p]["momentum_buffer"].flatten() for p in network.recurrent.parameters()
        ]
        return (lin.sensitivity @ torch.cat(buffers)).view(TRIALS, STEPS, UNITS)

    R = kpops.learning_rule(lin, "momentum", steps=steps, **settings)
    check_operator(R)
    assert dict(R.domain.sizes) == {"part": 2, "trial": TRIALS, "time": STEPS, "unit": UNITS}
    pair = torch.stack([torch.from_numpy(flow.error.values), velocity(optimizer, network)])
    change, after = R @ pair
    move, last = mover(network, optimizer, inputs, targets, steps)
    assert_falls_linearly(move, -change)
    distances = []
    for eta in (1e-3, 1e-4):
        move(eta)
        distances.append(float((velocity(*last) - after).norm()))
    if steps == 1:  # the gradient is that of the linearization
        assert max(distances) < 1e-13
    else:
        assert distances[1] / distances[0] == pytest.approx(0.1, rel=0.05)


def test_without_momentum_nothing_is_dampened():
    network, optimizer, inputs, targets = after_ten_steps(lambda p: SGD(p, 0.05, dampening=0.4))
    lin = kpops.linearize(network, inputs)
    error = kpops.gradient_flow(lin, targets).error.values
    R = kpops.learning_rule(lin, "momentum", momentum=0, dampening=0.4)
    change = (R @ np.stack([error, np.zeros_like(error)]))[0]
    assert_falls_linearly(mover(network, optimizer, inputs, targets)[0], torch.from_numpy(-change))


def test_wrong_use_is_refused():
    network, optimizer, inputs, _ = after_ten_steps(lambda p: SGD(p, 0.05, momentum=0.9))
    lin = kpops.linearize(network, inputs)

    def refused(error, told, **changed):
        options = {"optimizer": optimizer, "model": network, **changed}
        with pytest.raises(error, match=told):
            kpops.learning_rule(lin, "optimizer", **options)

    refused(TypeError, "optimizer is the string 'adam'", optimizer="adam")
    other = torch.optim.LBFGS(network.parameters())
    refused(ValueError, r"a LBFGS, known are \['SGD', 'Adam'", optimizer=other)
    only = SGD(network.readout.parameters(), 0.1)
    refused(ValueError, "does not train weight_ih_l0", optimizer=only)
    decaying = SGD(network.parameters(), 0.1, weight_decay=0.1)
    refused(ValueError, "weight_decay=0.1", optimizer=decaying)
    rates = [{"params": [p], "lr": 0.1 * i} for i, p in enumerate(network.parameters())]
    refused(ValueError, "the learning rates", optimizer=SGD(rates, 0.1))
    refused(ValueError, "0 parameters of the model have the name", model=network.readout)
    twice = nn.ModuleList([network, copy.deepcopy(network)])
    refused(ValueError, "2 parameters of the model have the name", model=twice)
    optimizer.step()
    refused(ValueError, "has changed since the model was linearised")
    optimizer.zero_grad()
    lin = kpops.linearize(network, inputs)
    refused(ValueError, "has no gradient")


def test_nothing_of_the_optimizer_changes():
    network, optimizer, inputs, _ = after_ten_steps(lambda p: Adam(p, 0.01))
    before = copy.deepcopy((optimizer.state_dict(), network.state_dict()))
    gradients = [p.grad.clone() for p in network.parameters()]
    lin = kpops.linearize(network, inputs)
    kpops.learning_rule(lin, "optimizer", optimizer=optimizer, model=network)
    for state, was in zip(optimizer.state.values(), before[0]["state"].values(), strict=True):
        assert all(torch.equal(state[name], was[name]) for name in was)
    for (name, value), p in zip(before[1].items(), network.parameters(), strict=True):
        assert torch.equal(value, p), name
    same = zip(gradients, network.parameters(), strict=True)
    assert all(np.array_equal(g, p.grad) for g, p in same)
