"""Stacks of equal blocks as recurrences over depth, against sites and plain autograd."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian
from torch.func import functional_call

import kpops
from kpops.models import Unrolled
from kpops.testing import check_linearization

DEPTH, TRIALS = 4, 2


class Mixer(nn.Module):
    """A residual block that mixes positions and channels and reads an input at every depth."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(3)
        self.channels, self.positions = nn.Linear(3, 3), nn.Linear(2, 2, bias=False)

    def forward(self, x, h):
        return h + 0.5 * torch.tanh(self.positions(self.channels(self.norm(h)).mT).mT + x[:, None])


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x, h):
        return torch.tanh(self.conv(h) + x)


def attention():
    return nn.TransformerEncoderLayer(4, 2, 5, batch_first=True, norm_first=True).eval()


# Block, shape of the state, shape of the input, and whether channels come first.
CASES = {
    "mixer": (Mixer, (2, 3), (3,), False),
    "convolution": (Convolution, (2, 3, 2), (2, 3, 2), True),
    "attention": (attention, (3, 4), None, False),
    "vector": (lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh()), (3,), None, False),
}


class Loop(nn.Module):
    """The same network, written as one."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, h, x=None):
        for _ in range(DEPTH):
            h = self.block(h) if x is None else self.block(x, h)
        return h


@pytest.fixture(params=CASES)
def case(request):
    """The stack, its start (trial, *shape), and its input or None, in float64."""
    make, shape, input_shape, first = CASES[request.param]
    torch.manual_seed(0)
    block = make().double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    stack = Unrolled(block, shape, input_shape, channels_first=first)
    x = None if input_shape is None else torch.randn(TRIALS, *input_shape).double()
    return stack, torch.randn(TRIALS, *shape).double(), x


def linearized(stack, h0, x):
    return kpops.linearize(stack, stack.inputs(DEPTH, x, n_trials=TRIALS), h0=h0)


def close(a, b, tol):
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    assert (a - b).norm() <= tol * b.norm()


def test_the_recurrence_equals_the_sites_of_the_loop(case):
    stack, h0, x = case
    lin = linearized(stack, h0, x)
    inputs = {"h": h0} if x is None else {"h": h0, "x": x}
    sites = kpops.linearize(Loop(stack.block), inputs, sites=["block"])
    for name in ("P", "P_inv", "J", "K", "flow", "sensitivity"):
        close(getattr(lin, name).to_dense(), getattr(sites, name).to_dense(), 1e-12)
    if stack.channels_first:  # which a site knows of the parts of torch alone
        h = torch.arange(stack.state_size).reshape(stack.shape)
        at = [lin.space.coords[n].values for n in ("channel", "row", "column")]
        assert h[tuple(map(torch.from_numpy, at))].tolist() == list(range(stack.state_size))
        return
    for name in ("position", "channel")[-len(stack.shape) :]:
        values = np.tile(lin.space.coords[name].values, DEPTH)
        np.testing.assert_array_equal(values, sites.space.coords[name].values)


def test_operators_equal_dense_jacobians(case):
    stack, h0, x = case
    lin = linearized(stack, h0, x)
    theta = {n: p.detach() for n, p in stack.block.named_parameters()}
    sizes = [p.numel() for p in theta.values()]

    def states(flat, kicks):
        parts = zip(theta.items(), flat.split(sizes), strict=True)
        weights = {n: part.view_as(p) for (n, p), part in parts}
        h, every = h0, []
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            for kick in kicks.unbind(1):
                h = functional_call(stack.block, weights, (h,) if x is None else (x, h)) + kick
                every.append(h.flatten(1))
        return torch.stack(every, 1)

    flat = torch.cat([p.flatten() for p in theta.values()])
    none = torch.zeros(TRIALS, DEPTH, *stack.shape).double()
    dh, P = jacobian(states, (flat, none))
    np.testing.assert_allclose(lin.states, states(flat, none), atol=1e-14)
    dh, P = dh.reshape(-1, len(flat)), P.reshape(none.numel(), -1)
    close(lin.P.to_dense(), P, 1e-10)
    close(lin.sensitivity.to_dense(), dh, 1e-10)
    close(lin.J.to_dense(), torch.linalg.solve(P, dh), 1e-10)
    close(lin.flow.to_dense(), dh @ dh.T, 1e-10)


def test_contract(case):
    check_linearization(linearized(*case))


def test_units_are_positions_and_channels_and_starts_have_either_shape():
    stack = Unrolled(nn.Linear(4, 4).double(), (3, 4))
    h0 = torch.randn(5, 3, 4).double()
    lin = kpops.linearize(stack, stack.inputs(2, n_trials=5), h0=h0)
    part = lin.P.select(position=[0, 2]).domain
    assert part.sizes == {"trial": 5, "time": 2, "position": 2, "channel": 4}
    flat, one = (
        kpops.linearize(stack, stack.inputs(2, n_trials=5), h0=h) for h in (h0.flatten(1), h0[0])
    )
    assert flat.states.equals(lin.states)
    np.testing.assert_allclose(one.states[3], lin.states[0], atol=1e-14)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Unrolled(nn.ModuleList([nn.Linear(2, 2)]), (2,)), TypeError, "name them by sites"),
        (lambda: Unrolled([nn.Linear(2, 2)] * 2, (2,)), TypeError, "a list.*name them by sites"),
        (lambda: Unrolled(nn.Linear(2, 2), 2), ValueError, "shape=2: pass a tuple"),
        (lambda: Unrolled(nn.Linear(2, 2), (3, 0)), ValueError, r"shape\[1\]=0"),
        (lambda: Unrolled(nn.GRUCell(2, 2), (2,)).inputs(0), ValueError, "depth=0"),
        (lambda: Unrolled(Mixer(), (2, 3), (3,)).inputs(2), ValueError, "needs one as x"),
        (
            lambda: Unrolled(Mixer(), (2, 3), (3,)).inputs(2, torch.zeros(1, 2)),
            ValueError,
            r"x has shape \(1, 2\).*input_shape=\(3,\)",
        ),
        (
            lambda: Unrolled(nn.Linear(2, 2), (2,)).inputs(2, torch.zeros(1, 2)),
            ValueError,
            "takes none as x",
        ),
        (lambda: Unrolled(StateFirst(), (2,), (2,)), ValueError, "takes the state first"),
        (
            lambda: kpops.linearize(Unrolled(nn.Linear(2, 3), (2,)), torch.zeros(1, 2, 0)),
            ValueError,
            r"block returns \(1, 3\) for a state of shape \(1, 2\)",
        ),
        (
            lambda: kpops.linearize(Unrolled(attention().train(), (3, 4)), torch.zeros(1, 2, 0)),
            ValueError,
            r"call model.eval\(\)",
        ),
    ],
)
def test_wrong_uses_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


class StateFirst(nn.Module):
    def forward(self, h, x):
        return h + x
