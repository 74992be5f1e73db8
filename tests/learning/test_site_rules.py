"""Learning rules of a network with sites against its real steps."""

import copy

import numpy as np
import pytest
import torch
from real_steps import ETAS, assert_falls_linearly
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, Adam

import kpops

LABELS = torch.tensor([0, 2, 1, 1, 0])


def trained(make):
    """Network, inputs and optimizer after ten steps, with the gradients of the next."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    net, x = net.double(), torch.randn(5, 3).double()
    optimizer = make(net.parameters())
    for step in range(11):
        optimizer.zero_grad()
        F.cross_entropy(net(x), LABELS).backward()
        if step < 10:
            optimizer.step()
    return net, x, optimizer


def states(net, x):
    h = [x]
    for part in net:
        h.append(part(h[-1]))
    return torch.cat([h[1], h[3], h[5]], 1).detach()


def mover(net, x, optimizer):
    def move(eta):
        other, own = copy.deepcopy((net, optimizer))
        for group in own.param_groups:
            group["lr"] = eta
        F.cross_entropy(other(x), LABELS).backward()  # a copy has no gradients
        own.step()
        return (states(other, x) - states(net, x)) / eta

    return move


@pytest.mark.parametrize("make", [lambda p: SGD(p, 0.05, momentum=0.9), lambda p: Adam(p, 0.01)])
def test_the_next_step_of_an_optimizer(make):
    net, x, optimizer = trained(make)
    lin = kpops.linearize(net, x)
    R = kpops.learning_rule(lin, "optimizer", optimizer=optimizer, model=net)
    error = kpops.gradient_flow(lin, LABELS, "cross_entropy").error.values
    etas = ETAS if isinstance(optimizer, SGD) else ETAS / 10
    assert_falls_linearly(mover(net, x, optimizer), -(R @ error + R.drift.values), etas)


def test_gradient_descent_and_gauss_newton():
    net, x, optimizer = trained(lambda p: SGD(p, 0.05))
    lin = kpops.linearize(net, x)
    flow = kpops.gradient_flow(lin, LABELS, "cross_entropy")
    R = kpops.learning_rule(lin, "gradient descent")
    assert_falls_linearly(mover(net, x, optimizer), -(R @ flow.error.values))
    R = kpops.learning_rule(lin, "gauss-newton", damping=0.1, error="output")
    D, S = lin.output_sensitivity.to_dense(), lin.sensitivity.to_dense()
    dense = S @ D.T @ np.linalg.inv(D @ D.T + 0.1 * np.eye(len(D)))
    np.testing.assert_allclose(R.to_dense(), dense, atol=1e-11)


def test_an_optimizer_of_nested_parts_with_names_that_end_alike():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 3)).double()
    x, optimizer = torch.randn(5, 3).double(), Adam(net.parameters())
    F.cross_entropy(net(x), LABELS).backward()
    lin = kpops.linearize(net, x)
    R = kpops.learning_rule(lin, "optimizer", optimizer=optimizer, model=net)
    g = torch.cat([p.grad.flatten() for p in net.parameters()]).numpy()
    step = np.sign(g) / (1 + 1e-8 / abs(g))  # the first step of Adam
    flow = kpops.gradient_flow(lin, LABELS, "cross_entropy")
    np.testing.assert_allclose(np.ravel(R @ flow.error), lin.sensitivity @ step, atol=1e-12)
    moved = nn.Sequential(net[1], net[0])  # its "0.weight" is that of another part
    with pytest.raises(ValueError, match=r"0\.weight has changed"):
        kpops.learning_rule(lin, "optimizer", optimizer=optimizer, model=moved)


class Residual(nn.Module):
    """With a way past the part ``branch``."""

    def __init__(self):
        super().__init__()
        self.into, self.branch, self.out = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = torch.tanh(self.into(x))
        y = self.out(h + torch.tanh(self.branch(h)))
        return torch.cat([y, -y], 1)


def test_errors_of_the_sites_must_hold_all_that_moves_them():
    torch.manual_seed(0)
    net, x, y = Residual().double(), torch.randn(5, 3).double(), torch.randn(5, 6).double()
    saved = [(0, net.state_dict()), (1, Residual().double().state_dict())]
    told = "add the parts that make the outputs to sites"
    lin = kpops.linearize(net, x, sites=["branch"])
    with pytest.raises(ValueError, match=told):
        kpops.learning_rule(lin, "gradient descent")
    with pytest.raises(kpops.MeasureError, match=told):
        kpops.telescope(net, saved, x, y, learning_rate=0.1, options={"sites": ["branch"]})
    for sites in (["into"], ["branch", "out"]):  # the parts that follow do not move "into"
        lin = kpops.linearize(net, x, sites=sites)
        flow = kpops.gradient_flow(lin, y)
        R = kpops.learning_rule(lin, "gradient descent")
        np.testing.assert_allclose(-(R @ flow.error), flow.state_change, atol=1e-14)


def test_output_feedback_wants_one_dimension_of_outputs():
    lin = kpops.linearize(nn.Sequential(nn.Conv1d(1, 2, 3)), torch.randn(4, 1, 6))
    with pytest.raises(
        ValueError, match=r"\('trial', 'position', 'output'\), and feedback weights"
    ):
        kpops.learning_rule(lin, "output feedback", rng=0)


def test_rules_about_time_and_outputs_beside_the_sites_are_refused():
    net, x, _ = trained(lambda p: SGD(p, 0.05))
    with pytest.raises(ValueError, match=r"this rule is about time"):
        kpops.learning_rule(kpops.linearize(net, x), "truncated bptt", steps=1)
    with pytest.raises(ValueError, match="without steps in time"):
        kpops.learning_rule(kpops.linearize(net, x), "feedback alignment", rng=0)
    lin = kpops.linearize(net, x, sites=["0", "2"])
    with pytest.raises(ValueError, match="add the parts that make the outputs to sites"):
        kpops.learning_rule(lin, "gauss-newton", damping=0.1, error="output")
