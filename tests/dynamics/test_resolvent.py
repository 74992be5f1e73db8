"""P = (I - A)^-1 of implicit layers, by factors and by GMRES."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian
from torch.func import functional_call

import kpops
from kpops.dynamics import resolvent
from kpops.linalg.gmres import gmres
from kpops.models import Unrolled
from kpops.testing import check_linearization

SHAPE, TRIALS = (2, 3), 3


class Implicit(nn.Module):
    """The block of a deep equilibrium model, a contraction in h."""

    def __init__(self):
        super().__init__()
        self.channels, self.positions = nn.Linear(3, 3), nn.Linear(2, 2, bias=False)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.4)

    def forward(self, x, h):
        return torch.tanh(self.positions(self.channels(h).mT).mT + x)


def rest(block, weights, x):
    """The fixed point for every x, by iteration."""
    h = torch.zeros_like(x)
    for _ in range(300):
        h = functional_call(block, weights, (x, h))
    return h


@pytest.fixture
def layer():
    """Block, its weights, inputs (trial, *SHAPE) and fixed points."""
    torch.manual_seed(0)
    block = Implicit().double()
    weights = {n: p.detach() for n, p in block.named_parameters()}
    x = torch.randn(TRIALS, *SHAPE).double()
    return block, weights, x, rest(block, weights, x)


@pytest.fixture(params=["factors", "gmres"])
def solver(request, monkeypatch):
    """Both ways to solve, whatever the size."""
    monkeypatch.setattr(resolvent, "is_cheap", lambda size: request.param == "factors")
    return request.param


def at_rest(layer, n_steps=None, **options):
    block, _, x, h = layer
    stack = Unrolled(block, SHAPE, SHAPE)
    return kpops.linearize_at(stack, h.flatten(1), n_steps, input=x.flatten(1), **options)


def implicit(layer):
    """(I - A)^-1 and df/dtheta as dense matrices, by reverse mode."""
    block, weights, x, h = layer
    n = h.numel()
    A = jacobian(lambda h: functional_call(block, weights, (x, h)), h).reshape(n, n)
    names = list(weights)

    def step(*values):
        return functional_call(block, dict(zip(names, values, strict=True)), (x, h))

    parts = jacobian(step, tuple(weights.values()))
    return torch.linalg.inv(torch.eye(n) - A), torch.cat([g.reshape(n, -1) for g in parts], 1)


def close(a, b, tol=1e-10):
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    assert (a - b).norm() <= tol * b.norm()


def test_operators_equal_implicit_differentiation(layer, solver):
    lin = at_rest(layer)
    assert (lin.P.factors is None) == (solver == "gmres")
    P, J = implicit(layer)
    for op, matrix in (
        (lin.P, P),
        (lin.P.H, P.T),
        (lin.P_inv, torch.linalg.inv(P)),
        (lin.J, J),
        (lin.K, J @ J.T),
        (lin.sensitivity, P @ J),
        (lin.flow, P @ J @ J.T @ P.T),
    ):
        close(op.to_dense(), matrix)


def test_contract(layer, solver):
    check_linearization(at_rest(layer))
    check_linearization(at_rest(layer, measure="mean", readout=nn.Linear(6, 2).double()))


def test_response_is_the_difference_of_fixed_points_found_anew(layer, solver):
    block, weights, x, _ = layer
    response = at_rest(layer).sensitivity
    step = torch.from_numpy(np.random.default_rng(0).standard_normal(response.shape[1]))
    parts = dict(zip(weights, step.split([w.numel() for w in weights.values()]), strict=True))

    def moved(by):
        changed = {n: w + by * parts[n].view_as(w) for n, w in weights.items()}
        return rest(block, changed, x).flatten()

    near, far = ((moved(k * 1e-3) - moved(-k * 1e-3)) / (2e-3 * k) for k in (1, 2))
    close(response @ step, (4 * near - far) / 3)


def test_it_is_the_limit_of_many_steps(layer):
    lin, fixed = at_rest(layer, 150), at_rest(layer)
    of_last = lin.sensitivity.to_dense().reshape(TRIALS, 150, 6, -1)[:, -1]
    close(of_last.reshape(18, -1), fixed.sensitivity.to_dense(), 1e-12)
    q = torch.randn(TRIALS, 1, 6, generator=torch.Generator().manual_seed(0)).double()
    close((lin.P @ q.expand(-1, 150, -1).contiguous())[:, -1:], fixed.P @ q, 1e-12)
    again = kpops.linearize_at(fixed, lin.trajectory.previous[:, 0], 3, input=layer[2].flatten(1))
    close(again.P.to_dense(), at_rest(layer, 3).P.to_dense(), 1e-14)


def test_at_the_points_of_a_search():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double()
    stack = Unrolled(block, (2, 3))
    points = kpops.fixed_points(stack, torch.randn(4, 6).double())
    lin = kpops.linearize_at(stack, points)
    slope = 1 - lin.states.values.reshape(-1, 1) ** 2
    A = slope * np.kron(np.eye(2), block[0].weight.detach())
    assert points.sizes["point"] == 1 and lin.space.coords["channel"].values[5] == 2
    close(lin.P.to_dense(), np.linalg.inv(np.eye(6) - A))


def test_interference_of_points(layer, solver):
    lin = at_rest(layer)
    P, J = implicit(layer)
    found = kpops.interference_operator(lin, "b", "a", by=["a", "b", "a"]).to_dense()
    a, b = np.r_[0:6, 12:18], np.r_[6:12]
    sensitivity = (P @ J).numpy()
    close(found, sensitivity[b] @ sensitivity[a].T)


def test_many_units_take_no_matrix():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 40)).double()
    stack = Unrolled(Added(block), (30, 40), (30, 40))
    x = torch.randn(2, 30, 40).double()
    h = rest(stack.block, {}, x).detach()
    lin = kpops.linearize_at(stack, h.flatten(1), input=x.flatten(1))
    error = torch.randn(2, 1, 1200).double()
    gradient = torch.autograd.grad(
        (rest(stack.block, {}, x).flatten(1) * error[:, 0]).sum(), list(block.parameters())
    )
    close(lin.sensitivity.H @ error, torch.cat([g.flatten() for g in gradient]))
    close(lin.P_inv @ (lin.P @ error), error, 1e-13)
    assert lin.P.factors is None and "jacobians" not in vars(lin.engine)


class Added(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, h):
        return self.block(h) + x


def test_a_step_of_gradient_descent_is_that_of_implicit_differentiation(layer, solver):
    block, weights, x, _ = layer
    torch.manual_seed(1)
    readout, targets = nn.Linear(6, 2).double(), torch.randn(TRIALS, 1, 2).double()
    lin = at_rest(layer, readout=readout)
    found = kpops.gradient_flow(lin, targets)
    for weight in weights.values():
        weight.requires_grad_()
    error = readout(rest(block, weights, x).flatten(1)) - targets[:, 0]
    gradients = torch.autograd.grad(error.square().mean(), list(weights.values()))
    close(found.parameter_step.values, -torch.cat([g.flatten() for g in gradients]))
    np.testing.assert_allclose(lin.outputs[:, 0], (error + targets[:, 0]).detach(), atol=1e-13)


def test_gmres_equals_factors_to_its_tolerance(monkeypatch):
    torch.manual_seed(0)
    for dtype in (torch.float64, torch.float32):
        cell = nn.RNNCell(2, 150).to(dtype)
        with torch.no_grad():
            cell.weight_hh.mul_(1.4)  # of spectral radius 0.8
        h = torch.zeros(2, 150, dtype=dtype)
        for _ in range(300):
            h = cell(torch.zeros(2, 2, dtype=dtype), h).detach()
        exact = kpops.linearize_at(cell, h).P
        monkeypatch.setattr(resolvent, "is_cheap", lambda size: False)
        ours = kpops.linearize_at(cell, h).P
        monkeypatch.undo()
        A = torch.eye(300) - torch.linalg.inv(exact.dense_tensor())
        bound = 64 * torch.finfo(dtype).eps * float(torch.linalg.cond(torch.eye(300) - A))
        q = torch.randn(4, 2, 1, 150, dtype=dtype)
        for a, b in ((ours.apply(q), exact.apply(q)), (ours.H.apply(q), exact.H.apply(q))):
            assert ((a - b).norm(dim=-1) <= bound * b.norm(dim=-1)).all()


def test_gmres_of_many_systems_at_once():
    rng = torch.Generator().manual_seed(0)
    values = torch.tensor([[1.0, 2, 4], [1, 1, 5]]).double()[:, torch.arange(40) % 3]
    Q = torch.linalg.qr(torch.randn(40, 40, generator=rng).double())[0]
    matrices = Q @ torch.diag_embed(values) @ Q.T
    b = torch.randn(5, 2, 40, generator=rng).double()
    b[0] = 0
    calls = []

    def matvec(v):
        calls.append(1)
        return torch.einsum("sij,ksj->ksi", matrices, v)

    x, error = gmres(matvec, b, 1e-13)
    np.testing.assert_allclose(matvec(x), b, atol=1e-12)
    assert len(calls) == 10 and not x[0].any()  # three eigenvalues: the first cycle solves it
    assert (error <= 1e-13).all()


def test_what_gmres_cannot_solve_is_refused(monkeypatch):
    """I - A moves every unit to the next: GMRES sees nothing of it but after a whole turn."""
    torch.manual_seed(0)
    cell = nn.RNNCell(1, 200, nonlinearity="relu", bias=False).double()
    h = torch.ones(1, 200).double()
    with torch.no_grad():
        cell.weight_ih.copy_(h.T)
        cell.weight_hh.copy_(torch.eye(200) - torch.eye(200).roll(1, 0))
    q = torch.randn(1, 1, 200).double()
    by_factors = kpops.linearize_at(cell, h, input=[1.0])
    np.testing.assert_allclose(by_factors.P @ q, q.roll(-1, 2), atol=1e-13)
    monkeypatch.setattr(resolvent, "is_cheap", lambda size: False)
    with pytest.raises(ValueError, match=r"GMRES has not solved .* at point 0 .*leave the point"):
        kpops.linearize_at(cell, h, input=[1.0])


def test_points_that_are_not_fixed_or_have_no_response_are_refused(layer, solver):
    block, _, x, h = layer
    stack = Unrolled(block, SHAPE, SHAPE)
    moving = torch.stack([h[0], h[1] + 0.1])
    with pytest.raises(ValueError, match=r"point 1 moves by .* in a step"):
        kpops.linearize_at(stack, moving.flatten(1), input=x[:2].flatten(1))
    with pytest.raises(ValueError, match=r"input has shape \(2, 6\) for 3 points"):
        kpops.linearize_at(stack, h.flatten(1), input=x[:2].flatten(1))
    cell = nn.RNNCell(1, 2, nonlinearity="relu", bias=False).double()
    with torch.no_grad():
        cell.weight_hh.copy_(torch.diag(torch.tensor([0.5, 1])))
    with pytest.raises(ValueError, match=r"(eigenvalue of 1, to rounding,|GMRES .*) at point 1"):
        kpops.linearize_at(cell, torch.tensor([[0.0, 0], [0, 1]]).double())


def test_points_of_an_ode_move_alike_under_kicks_and_rates():
    torch.manual_seed(0)
    net = nn.Linear(2, 2).double()

    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, t, h):
            return torch.tanh(self.net(h)) - 2 * h

    h = torch.zeros(1, 2).double()
    for _ in range(300):
        h = torch.tanh(net(h)).detach() / 2
    found = []
    for forcing in ("state", "rate"):
        ode = kpops.models.NeuralODE(Field(), dt=0.1, forcing=forcing)
        found.append(kpops.stationary_response(ode, h, input=[0.0]).to_dense())
    # Of the field: -(d field/dh)^-1 d field/dtheta, whatever the step.
    slope = 1 - torch.tanh(net(h)).square()[0].detach()
    D = torch.diag(slope) @ net.weight.detach() - 2 * torch.eye(2)
    by_theta = slope[:, None] * torch.cat([torch.kron(torch.eye(2), h), torch.eye(2)], 1)
    expected = -torch.linalg.solve(D, by_theta)
    for response in found:
        close(response, expected)
