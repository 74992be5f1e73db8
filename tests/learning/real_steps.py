"""Learning rules as a user writes them, and how the trajectories move by a small step."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import kpops

TRIALS, STEPS, INPUTS, UNITS, OUTPUTS = 3, 6, 2, 4, 2
ETAS = np.array([1e-1, 1e-2, 1e-3, 1e-4])


def problem(kind=nn.RNN, seed=0):
    """A network larger than PyTorch's default, inputs and targets."""
    torch.manual_seed(seed)
    network = kpops.Network(kind(INPUTS, UNITS, batch_first=True), nn.Linear(UNITS, OUTPUTS))
    network = network.double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.6)
    inputs = torch.randn(TRIALS, STEPS, INPUTS, dtype=torch.float64)
    targets = torch.randn(TRIALS, STEPS, OUTPUTS, dtype=torch.float64)
    return network, inputs, targets


def loss_of(network, inputs, targets):
    return nn.functional.mse_loss(network(inputs), targets)


def moved_along(network, inputs, direction):
    """The change of the states by a step ``-eta direction``, over eta, as a function of eta."""
    recurrent = network.recurrent
    before = nn.utils.parameters_to_vector(recurrent.parameters()).detach().clone()
    states = recurrent(inputs)[0].detach()

    def move(eta):
        with torch.no_grad():
            nn.utils.vector_to_parameters(before - eta * direction, recurrent.parameters())
            moved = (recurrent(inputs)[0] - states) / eta
            nn.utils.vector_to_parameters(before, recurrent.parameters())
        return moved

    return move


def assert_falls_linearly(move, predicted, etas=ETAS):
    """||dh / eta - predicted|| is proportional to eta over three decades."""
    predicted = torch.as_tensor(np.asarray(predicted))
    errors = np.array([float((move(eta) - predicted).norm()) for eta in etas])
    slopes = np.diff(np.log10(errors)) / np.diff(np.log10(etas))
    np.testing.assert_allclose(slopes[1:], 1, atol=0.02)
    np.testing.assert_allclose(slopes[0], 1, atol=0.4)  # from a step that is not small yet
    assert errors[-1] < 1e-2 * float(predicted.norm())


class Feedback(torch.autograd.Function):
    """A linear map whose backward pass uses weights of its own."""

    @staticmethod
    def forward(ctx, x, weight, feedback):
        ctx.save_for_backward(x, feedback)
        return x @ weight.T

    @staticmethod
    def backward(ctx, gradient):
        x, feedback = ctx.saved_tensors
        return gradient @ feedback, gradient.flatten(0, -2).T @ x.flatten(0, -2), None


def forward_with(network, inputs, recurrent_feedback, output_feedback):
    """The network's outputs, by steps of its own cell with random feedback."""
    part, readout = network.recurrent, network.readout
    W, U = part.weight_hh_l0, part.weight_ih_l0
    h = inputs.new_zeros(len(inputs), UNITS)
    outputs = []
    for x in inputs.unbind(1):
        from_h = Feedback.apply(h, W, recurrent_feedback) + part.bias_hh_l0
        from_x = x @ U.T + part.bias_ih_l0
        if isinstance(part, nn.RNN):
            h = torch.tanh(from_h + from_x)
        else:
            (r, z, n), (rh, zh, nh) = from_x.chunk(3, -1), from_h.chunk(3, -1)
            r, z = torch.sigmoid(r + rh), torch.sigmoid(z + zh)
            h = (1 - z) * torch.tanh(n + r * nh) + z * h
        outputs.append(Feedback.apply(h, readout.weight, output_feedback) + readout.bias)
    return torch.stack(outputs, 1)


def gradient_of(loss, network):
    gradients = torch.autograd.grad(loss, list(network.recurrent.parameters()))
    return torch.cat([g.flatten() for g in gradients])
