"""Losses of a network with sites: gradients, curvature and interference against dense autograd."""

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import kpops


class Skipping(nn.Module):
    """Parameters that the outputs depend on beside the sites."""

    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.into(x)))


LABELS = torch.tensor([0, 2, 1, 1, 0])
LOSSES = {
    "mse": (torch.randn(5, 3, dtype=torch.float64), F.mse_loss),
    "cross_entropy": (LABELS, F.cross_entropy),
    "cubed": (LABELS, lambda y, labels: (y[range(5), labels] ** 3).sum()),
}


@pytest.fixture(params=[("into", "out"), ("into",)], ids="-".join)
def case(request):
    """Linearization at some sites, and the outputs as a function of flat parameters."""
    torch.manual_seed(0)
    net, x = Skipping().double(), torch.randn(5, 3).double()
    theta = {n: p.detach() for n, p in net.named_parameters()}
    flat = torch.cat([p.flatten() for p in theta.values()])

    def outputs(t):
        parts = t.split([p.numel() for p in theta.values()])
        swapped = {n: q.view_as(p) for (n, p), q in zip(theta.items(), parts, strict=True)}
        return functional_call(net, swapped, (x,))

    return kpops.linearize(net, x, sites=request.param), outputs, flat


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_gauss_newton_and_hessian_equal_autograd(case, name):
    lin, outputs, flat = case
    targets, function = LOSSES[name]
    loss = name if name in ("mse", "cross_entropy") else function
    gradient = torch.func.grad(lambda t: function(outputs(t), targets))(flat)
    flow = kpops.gradient_flow(lin, targets, loss)
    np.testing.assert_allclose(flow.parameter_step, -gradient, rtol=1e-10, atol=1e-14)
    hessian_of = torch.autograd.functional.hessian
    hessian = hessian_of(lambda t: function(outputs(t), targets), flat)
    np.testing.assert_allclose(lin.hessian(targets, loss).to_dense(), hessian, atol=1e-13)
    J = torch.func.jacrev(outputs)(flat).reshape(15, -1)
    H = hessian_of(lambda y: function(y, targets), outputs(flat)).reshape(15, 15)
    np.testing.assert_allclose(lin.ggn(targets, loss).to_dense(), J.T @ H @ J, atol=1e-13)


def test_the_trace_of_gauss_newton_is_that_of_the_ntk(case):
    lin, *_ = case
    ggn = kpops.trace(lin.ggn(LOSSES["mse"][0])).estimate
    ntk = kpops.trace(lin.output_ntk).estimate
    assert float(ggn) == pytest.approx(2 / 15 * float(ntk), rel=1e-12)


def test_interference_of_classes():
    torch.manual_seed(0)
    net, x = Skipping().double(), torch.randn(5, 3).double()
    lin = kpops.linearize(net, x)
    result = kpops.interference(
        lin, ["a", "a", "b", "b", "b"], targets=LABELS, loss="cross_entropy"
    )

    def gradient(some):
        loss = F.cross_entropy(net(x), LABELS, reduction="none")[some].sum() / 5
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])

    a, b = gradient([0, 1]), gradient([2, 3, 4])
    found = float(result.loss_change.sel(task="a", task_in="b"))
    assert found == pytest.approx(-float(a @ b), rel=1e-10)


def test_what_needs_every_gradient_at_the_sites_refuses_outputs_beside_them():
    net, x = Skipping().double(), torch.randn(5, 3).double()
    lin = kpops.linearize(net, x, sites=["into"])
    y = torch.zeros(5, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="the outputs depend on parameters beside the sites"):
        kpops.interference(lin, [0, 0, 1, 1, 1], targets=y)
    with pytest.raises(ValueError, match="the outputs depend on parameters beside the sites"):
        kpops.truncated_flow(lin, y, 2)


def test_outputs_beside_the_sites_are_found_where_they_add_up_to_nothing():
    class Opposite(Skipping):
        def forward(self, x):
            y = super().forward(x)
            return torch.cat([y, -y], 1)

    net, x = Opposite().double(), torch.randn(5, 3).double()
    with pytest.raises(ValueError, match="the outputs depend on parameters beside the sites"):
        kpops.linearize(net, x, sites=["into"]).J_C  # noqa: B018
    assert kpops.linearize(net, x).J_C is None


def test_classes_and_positions_of_one_number_are_told_apart():
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double(), torch.randn(5, 2, 3).double()
    lin, labels = kpops.linearize(net, x, sites="auto"), torch.ones(5, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"2 positions and as many classes.*dims=.*movedim"):
        kpops.gradient_flow(lin, labels, "cross_entropy")
    named = xr.DataArray(labels, dims=("trial", "position"))
    loss = F.cross_entropy(net(x).flatten(0, 1), labels.flatten())
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])
    step = kpops.gradient_flow(lin, named, "cross_entropy").parameter_step
    np.testing.assert_allclose(step, -gradient, rtol=1e-10, atol=1e-14)
