"""Curvature at fixed points against autograd through many steps of a contraction."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import kpops

STEPS = 200


class Block(nn.Module):
    input_size, state_size = 2, 3

    def __init__(self):
        super().__init__()
        self.own, self.into = nn.Linear(3, 3), nn.Linear(2, 3)

    def forward(self, x, h):
        return torch.tanh(self.own(h) + self.into(x))


@pytest.mark.parametrize("with_readout", [False, True])
def test_gauss_newton_and_hessian_at_fixed_points(with_readout):
    torch.manual_seed(0)
    block, readout = Block().double(), nn.Linear(3, 2).double().requires_grad_(False)
    nn.init.orthogonal_(block.own.weight, 0.5)
    x = torch.randn(2, dtype=torch.float64)
    theta = {n: p.detach() for n, p in block.named_parameters()}
    flat = torch.cat([p.flatten() for p in theta.values()])
    targets = torch.randn(1, 1, 2 if with_readout else 3, dtype=torch.float64)

    def outputs(t):
        parts = t.split([p.numel() for p in theta.values()])
        swapped = {n: q.view_as(p) for (n, p), q in zip(theta.items(), parts, strict=True)}
        h = torch.zeros(1, 3, dtype=torch.float64)
        for _ in range(STEPS):
            h = functional_call(block, swapped, (x[None], h))
        return readout(h) if with_readout else h

    h = torch.zeros(1, 3, dtype=torch.float64)
    for _ in range(STEPS):
        h = block(x[None], h).detach()
    lin = kpops.linearize_at(block, h, input=x, readout=readout if with_readout else None)
    exact = torch.autograd.functional.hessian(lambda t: F.mse_loss(outputs(t), targets[:, 0]), flat)
    np.testing.assert_allclose(lin.hessian(targets).to_dense(), exact, atol=1e-12)
    J = torch.autograd.functional.jacobian(outputs, flat).reshape(-1, len(flat))
    ggn = 2 / targets.numel() * J.T @ J
    np.testing.assert_allclose(lin.ggn(targets).to_dense(), ggn, atol=1e-12)
