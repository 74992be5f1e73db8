"""Operators over the sites of any network against dense Jacobians of plain hooked runs."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import kpops
from kpops.testing import check_linearization


class Residual(nn.Module):
    """Blocks with a skip connection, one of which is called three times."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.block = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.Tanh())
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        h = self.embed(x)
        for _ in range(3):
            h = h + self.block(h)
        return self.head(h)


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.deep = nn.Conv2d(2, 2, 2)
        self.group = nn.GroupNorm(1, 2)
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        h = F.relu_(self.norm(self.conv(x)))  # in place, after the site
        h = self.group(self.deep(h)).amax((2, 3))
        return self.head(h)


class Tied(nn.Module):
    """Attention over tokens, with positions first inside, and tied embeddings."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm = nn.LayerNorm(4)

    def forward(self, tokens, scale):
        h = self.embed(tokens) * scale[:, None]
        seen = h.transpose(0, 1)
        h = self.norm(h + self.attention(seen, seen, seen)[0].transpose(0, 1))
        return h @ self.embed.weight.T


class Between(nn.Module):
    """A recurrent layer between linear ones."""

    def __init__(self, layer):
        super().__init__()
        self.encoder, self.layer = nn.Linear(2, 3), layer
        self.decoder = nn.Linear(4, 2)

    def forward(self, x):
        return self.decoder(self.layer(torch.tanh(self.encoder(x)))[0])


def encoder():
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, norm_first=True)
    return nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 2)).eval()


def normed():
    net = Convolutional().eval()
    nn.init.uniform_(net.norm.running_var, 0.5, 2)
    return net


def mlp():
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))


ENCODER = ["0", "1.self_attn", "1.linear1", "1.norm2", "2"]
CASES = {
    "mlp": (mlp, torch.randn(3, 3), None, ["0", "2", "4"]),
    "positions": (mlp, torch.randn(2, 3, 3), ["0", "3", "4"], ["0", "3", "4"]),
    "residual": (Residual, torch.randn(2, 3), None, ["embed", "block.0", "block.1", "head"]),
    "tied blocks": (Residual, torch.randn(2, 3), ["block.1", "block", "head"], None),
    "conv": (normed, torch.randn(2, 1, 5, 5), None, ["conv", "norm", "deep", "group", "head"]),
    "encoder": (encoder, torch.randn(2, 3, 3), ENCODER, None),
    "tokens": (
        Tied,
        {"tokens": torch.tensor([[0, 2, 2], [4, 1, 0]]), "scale": torch.rand(2, 1)},
        None,
        ["embed", "attention", "norm"],
    ),
    "gru": (lambda: Between(nn.GRU(3, 4, batch_first=True)), torch.randn(2, 3, 2), None, None),
    "lstm": (
        lambda: Between(nn.LSTM(3, 4, num_layers=2, batch_first=True)),
        torch.randn(2, 3, 2),
        None,
        None,
    ),
}


def as_double(inputs):
    one = lambda x: x.double() if x.is_floating_point() else x  # noqa: E731
    return {k: one(v) for k, v in inputs.items()} if isinstance(inputs, dict) else one(inputs)


@pytest.fixture(params=CASES)
def case(request):
    """Network, inputs and paths of sites, in float64."""
    make, inputs, paths, _ = CASES[request.param]
    torch.manual_seed(0)
    net = make().double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    return net, as_double(inputs), paths


def run(net, inputs, sites, theta, change):
    """Values of the sites as rows of trials, and outputs; `change` gives (value, what follows)."""
    values, handles, names = [], [], [s for s, _ in sites]
    n = len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs)

    def hook(_, __, output):
        first = output[0] if isinstance(output, tuple) else output
        axis = 0 if len(first) == n else 1
        value, follows = change(len(values), first.movedim(axis, 0).flatten(1))
        values.append(value)
        new = follows.reshape(first.movedim(axis, 0).shape).movedim(0, axis)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    for path in dict.fromkeys(names):
        handles.append(net.get_submodule(path).register_forward_hook(hook))
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            if isinstance(inputs, dict):
                out = functional_call(net, theta, (), inputs)
            else:
                out = functional_call(net, theta, (inputs,))
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat(values, 1), out


def dense(net, inputs, sites):
    """P, J, dh/dtheta and dy/dtheta by reverse mode, entry by entry."""
    theta = {n: p.detach() for n, p in net.named_parameters()}
    sizes = [size for _, size in sites]
    h, _ = run(net, inputs, sites, theta, lambda i, v: (v, v.clone()))

    def split(flat):
        parts = flat.split([p.numel() for p in theta.values()])
        return {n: q.view_as(p) for (n, p), q in zip(theta.items(), parts, strict=True)}

    def pushed(d):
        parts = d.split(sizes, 1)
        add = lambda i, v: (v + parts[i], v + parts[i])  # noqa: E731
        return run(net, inputs, sites, theta, add)[0]

    stored = h.split(sizes, 1)
    flat = torch.cat([p.flatten() for p in theta.values()])
    jacobian = torch.autograd.functional.jacobian
    P = jacobian(pushed, torch.zeros_like(h)).reshape(h.numel(), -1)
    cut = lambda i, v: (v, stored[i].clone())  # noqa: E731
    J = jacobian(lambda t: run(net, inputs, sites, split(t), cut)[0], flat)
    plain = lambda i, v: (v, v.clone())  # noqa: E731
    dh = jacobian(lambda t: run(net, inputs, sites, split(t), plain)[0], flat)
    dy = jacobian(lambda t: run(net, inputs, sites, split(t), plain)[1], flat)
    shape = (-1, len(flat))
    return P, J.reshape(shape), dh.reshape(shape), dy.reshape(shape)


def sites_of(lin):
    """Paths and sizes of the sites in their order."""
    labels = lin.space.coords["site"].values
    calls = lin.space.coords.get("call", (None, np.ones(len(labels))))[1]
    pairs = list(zip(labels, calls, strict=True))
    return [(pair[0], pairs.count(pair)) for pair in dict.fromkeys(pairs)]


def close(a, b):
    a = torch.as_tensor(a)
    assert (a - b).norm() <= 1e-12 * b.norm()


def test_operators_equal_dense_jacobians(case):
    net, inputs, paths = case
    lin = kpops.linearize(net, inputs, sites=paths or "auto")
    P, J, dh, dy = dense(net, inputs, sites_of(lin))
    close(lin.P.to_dense(), P)
    close(lin.P_inv.to_dense(), torch.linalg.inv(P))
    close(lin.J.to_dense(), J)
    close(lin.sensitivity.to_dense(), dh)
    close(lin.K.to_dense(), J @ J.T)
    close(lin.flow.to_dense(), dh @ dh.T)
    close(lin.output_sensitivity.to_dense(), dy)
    close(lin.output_ntk.to_dense(), dy @ dy.T)


def test_contract(case):
    net, inputs, paths = case
    check_linearization(kpops.linearize(net, inputs, sites=paths or "auto"))


@pytest.mark.parametrize("name", [name for name, (*_, default) in CASES.items() if default])
def test_default_sites_are_the_children_with_parameters(name):
    make, inputs, paths, default = CASES[name]
    lin = kpops.linearize(make(), inputs, sites=paths or "auto")
    assert list(dict.fromkeys(lin.space.coords["site"].values)) == default


def test_the_kernel_of_the_outputs_is_that_of_its_factors():
    torch.manual_seed(0)
    lin = kpops.linearize(mlp().double(), torch.randn(4, 3).double())
    S = lin.output_sensitivity
    for n in 1, 5:
        q, before = torch.randn(n, *lin.output_space.shape).double(), S.num_matvecs
        got = lin.output_ntk @ q
        assert S.num_matvecs - before == 2 * n
        close(got, S.apply(S.apply_adjoint(q)))


def test_the_last_block_is_the_ntk_of_torch_func():
    torch.manual_seed(0)
    net, x = mlp().double(), torch.randn(4, 3).double()
    lin = kpops.linearize(net, x)
    theta = dict(net.named_parameters())
    rows = torch.func.jacrev(lambda p: functional_call(net, p, (x,)))(theta)
    J = torch.cat([rows[n].flatten(2) for n in theta], 2).flatten(0, 1)
    close(lin.flow.select(site="4").to_dense(), J @ J.T)
    close(lin.output_ntk.to_dense(), J @ J.T)


@pytest.mark.parametrize("layer", [nn.RNN, nn.GRU, nn.LSTM])
def test_a_recurrent_network_unrolled_as_sites_equals_the_recurrence(layer):
    torch.manual_seed(0)
    net = layer(2, 3, num_layers=2, batch_first=True).double()
    x = torch.randn(3, 4, 2).double()
    lin, sites = kpops.linearize(net, x), kpops.linearize(net, x, sites=["step"])
    assert list(dict.fromkeys(sites.space.coords["call"].values)) == [1, 2, 3, 4]
    for name in ("P", "P_inv", "J", "K", "flow", "sensitivity"):
        ours = torch.from_numpy(getattr(sites, name).to_dense())
        close(getattr(lin, name).to_dense(), ours)


def test_the_steps_of_a_layer_inside_a_network():
    torch.manual_seed(0)
    net = Between(nn.GRU(3, 4, batch_first=True)).double()
    x = torch.randn(2, 3, 2).double()
    lin = kpops.linearize(net, x, sites=["encoder", "layer.step", "decoder"])
    inner = kpops.linearize(net.layer, torch.tanh(net.encoder(x)).detach())
    close(lin.P.select(site="layer.step").to_dense(), torch.from_numpy(inner.P.to_dense()))
    whole = kpops.linearize(net, x, sites="auto")
    close(lin.output_ntk.to_dense(), torch.from_numpy(whole.output_ntk.to_dense()))


def test_P_is_lower_triangular_over_sites_and_K_block_diagonal():
    torch.manual_seed(0)
    lin = kpops.linearize(mlp().double(), torch.randn(3, 3).double())
    site = np.tile(lin.space.coords["site"].values.astype(int), 3)
    trial = np.repeat(np.arange(3), lin.space.sizes["unit"])
    later = (site[:, None] < site) | (trial[:, None] != trial)
    same = (site[:, None] == site) & (trial[:, None] == trial)
    P = lin.P.to_dense()
    assert not P[later].any()
    np.testing.assert_array_equal(P[same], np.eye(len(P))[same])
    assert not lin.K.to_dense()[site[:, None] != site].any()


def test_a_part_whose_backward_pass_has_no_derivative_is_linearised_in_forward_mode():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Hardsigmoid(), nn.Linear(4, 2)).double()
    x = torch.randn(3, 3).double()
    lin = kpops.linearize(net, x)
    P, _, dh, dy = dense(net, x, sites_of(lin))
    close(lin.P.to_dense(), P)
    close(lin.flow.to_dense(), dh @ dh.T)
    close(lin.output_ntk.to_dense(), dy @ dy.T)
