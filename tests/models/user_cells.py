"""Cells, readouts and parametrizations as users write them, of which one part is tested."""

import torch
from cell_contract import normal, randomised
from torch import nn

HIDDEN = 4


class Cell(nn.Module):
    """h' = tanh(part(W h) + U x): a user's cell, of which one part is what is tested."""

    input_size, hidden_size = 2, HIDDEN

    def __init__(self, part=lambda a: a):
        super().__init__()
        self.W = nn.Linear(HIDDEN, HIDDEN)
        self.U = nn.Linear(2, HIDDEN)
        self.part = part

    def forward(self, x, h):
        return torch.tanh(self.part(self.W(h)) + self.U(x))


class Apply(nn.Module):
    """A readout, or a parametrization, made of a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, a):
        return self.function(a)


class Surrogate(torch.autograd.Function):
    """A spike, whose backward pass is that of a fast sigmoid."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a):
        return (a > 0).to(a.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, gradient):
        return gradient / (1 + ctx.saved_tensors[0].abs()) ** 2


class OldStyle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return a.tanh()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (1 - ctx.saved_tensors[0].tanh() ** 2)


def without_grad(a):
    with torch.no_grad():
        b = a.sin()
    return a + b


def set_without_grad(a):
    with torch.set_grad_enabled(False):
        b = a.sin()
    return a + b


def in_inference(a):
    with torch.inference_mode():
        b = a.sin()
    return a + b


def hooked(change):
    def part(a):
        b = a * 1.0
        if b.requires_grad:
            b.register_hook(change)
        return b

    return part


UNTRUE = {
    "no_grad": without_grad,
    "set_grad_enabled": set_without_grad,
    "detach": lambda a: a + a.detach().sin(),
    "data": lambda a: a + a.data.sin(),
    "inference_mode": in_inference,
    "hook": hooked(lambda gradient: 0.1 * gradient),
    "surrogate": Surrogate.apply,
    "straight through": lambda a: a + (a.round() - a).detach(),
}
"""Parts whose gradient in training is not the derivative of their values."""


def gru(dtype=torch.float64):
    return randomised(nn.GRU(2, HIDDEN, batch_first=True)).to(dtype)


def inputs(dtype=torch.float64):
    return normal(3, 5, 2).to(dtype)


class Declared(Cell):
    surrogate_gradient = True


NOT_ITS_DERIVATIVE = "is not the derivative of its values: reverse mode and finite differences"
