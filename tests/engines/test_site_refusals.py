"""Networks and arguments that have no operators over sites are refused, with the remedy."""

import types

import pytest
import torch
import xarray as xr
from test_site_networks import Net, two
from torch import nn
from torch.nn import functional as F

import kpops


class Wrong(torch.autograd.Function):
    """The square, whose backward pass is not its derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        return 3 * gradient * ctx.saved_tensors[0]


class Tail(nn.Module):
    """Returns a view of what it is given."""

    def forward(self, x):
        return x[:, 1:]


class Gives(nn.Module):
    def __init__(self, give):
        super().__init__()
        self.inner, self.give = nn.Linear(3, 4), give

    def forward(self, x):
        return self.give(self.inner(x))


def rolled(s, x):
    h = s.a(x)
    return s.b(torch.cat([h[:1], h[:-1]]))


def written(s, x):
    h = s.a(x)
    s.tail(h).mul_(2)
    return s.b(h)


def in_chunks(s, x):
    return torch.stack([s.b(s.a(row)) for row in x])


def with_gradient(s, x):
    slope = torch.func.grad(lambda v: s.a(v).square().sum())(x)
    return s.b(torch.cat([slope, slope[:, :1]], 1))


def caching(s, x):
    if s.kept is None:
        s.kept = torch.tanh(s.b.weight)
    return F.linear(s.a(x), s.kept)


def kept():
    net = two(caching)
    net.kept = None
    return net


def gives(give):
    run = lambda s, x: s.b(s.a(x).to(torch.float64))  # noqa: E731
    return Net(run, a=Gives(give), b=nn.Linear(4, 2)).double()


def closing_over(what):
    net = two(lambda s, x: s.b(s.a(x)))
    scale = nn.Parameter(torch.ones(()))
    if what == "hook":
        net.a.register_forward_hook(lambda part, read, made: made * scale)
    else:
        net.forward = lambda x: net.b(net.a(x))
    return net


NETWORKS = {
    "random after the last site": (two(lambda s, x: F.dropout(s.b(s.a(x)))), "it is random"),
    "mixing in the outputs": (two(lambda s, x: s.b(s.a(x)).softmax(0)), "mixes trials"),
    "mixing that spares the first": (two(lambda s, x: s.b(s.a(x).cumsum(0))), "mixes trials"),
    "mixing of neighbours": (
        two(lambda s, x: s.b(torch.cat([s.a(x)[:1], s.a(x)[1:-1].flip(0), s.a(x)[1:][-1:]]))),
        "mixes trials",
    ),
    "rolled": (two(rolled), "mixes trials"),
    "batch statistics": (
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double(),
        "batch normalisation in training mode",
    ),
    "untrue after the last site": (
        two(lambda s, x: Wrong.apply(s.b(s.a(x)))),
        "by its state, a.weight, .* is not the derivative",
    ),
    "detached after the last site": (two(lambda s, x: s.b(s.a(x)).detach()), "detached"),
    "weights that are kept": (kept(), "keeps kept, made in an earlier call of b.weight"),
    "a view that is written": (
        Net(written, a=nn.Linear(3, 4), tail=Tail(), b=nn.Linear(4, 2)).double(),
        "change no view of an output in place",
    ),
    "a gradient in forward": (two(with_gradient), "a gradient that forward takes"),
    "calls for each trial": (two(in_chunks), "depends on the inputs: let every run"),
    "not finite": (two(lambda s, x: s.b(s.a(x)).sub(99).log()), "outputs of Net are not finite"),
    "no numbers": (two(lambda s, x: s.b(s.a(x))[:, :0]), "no numbers"),
    "float32 inside": (gives(lambda h: h.float()), "site 'a' is torch.float32, the model torch.f"),
    "integers": (gives(lambda h: h.long()), "differentiates real numbers"),
    "a dict": (gives(lambda h: {"h": h}), "a returns a dict of 1, no tensor: choose"),
    "a hook that closes over a weight": (
        closing_over("hook"),
        "<lambda> of the model refers to sc",
    ),
    "a forward that closes over itself": (closing_over("net"), "in the place of its forward"),
    "packed sequences": (
        Net(
            lambda s, x: s.g(nn.utils.rnn.pack_sequence(list(x)))[1][0],
            g=nn.GRU(3, 4, batch_first=True),
        ).double(),
        "pad sequences to one length",
    ),
    "time first": (
        Net(lambda s, x: s.g(s.a(x))[0], a=nn.Linear(3, 4), g=nn.GRU(4, 2)).double(),
        "mixes trials.*batch_first",
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_is_refused(name):
    network, message = NETWORKS[name]
    torch.manual_seed(0)
    shape = (4, 3, 3) if hasattr(network, "g") else (4, 3)
    sites = {"a view that is written": ["a", "tail", "b"], "weights that are kept": ["a"]}
    with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
        kpops.linearize(network, torch.randn(shape).double(), sites=sites.get(name, "auto"))


@pytest.mark.parametrize("kind", ["padding_idx", "scale_grad_by_freq", "max_norm", "PReLU"])
def test_modules_of_torch_without_a_true_derivative_are_refused(kind):
    options = {
        "padding_idx": {kind: 1},
        "scale_grad_by_freq": {kind: True},
        "max_norm": {kind: 1.0},
    }
    first, inputs = (
        nn.Embedding(5, 4, **options.get(kind, {})),
        torch.tensor([[1], [1]]),
    )
    if kind == "PReLU":  # has two derivatives at 0, where it is
        first, inputs = nn.Sequential(nn.Linear(3, 4, bias=False), nn.PReLU()), torch.zeros(2, 3)
    network = nn.Sequential(first, nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"is not the derivative|disagree|cannot be taken"):
        kpops.linearize(network, inputs, sites="auto")


def plain():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


X = torch.randn(3, 3).double()
MASKED = xr.DataArray(X, dims=("trial", "x"), coords={"mask": ("trial", [True, True, False])})
HEAD = nn.Linear(2, 2).double()
ARGUMENTS = {
    "engine": ({"engine": "gated"}, "'engine'.* is given with sites=.*: leave it out"),
    "gates": ({"gates": "stored"}, "'gates'.* is given with sites="),
    "device": ({"device": "cuda:99"}, "device='cuda:99': pass 'cpu'"),
    "dtype": ({"dtype": torch.int32}, "torch.int32 is not supported"),
    "no readout": ({"readout": 3}, "readout is the number 3, expected a function"),
    "a readout that learns": ({"readout": HEAD}, "make it a part of the network"),
    "a readout around one": ({"readout": lambda y: HEAD(y)}, "the readout refers to HEAD"),
    "a random readout": ({"readout": lambda y: y * torch.rand(())}, "it is random"),
    "a readout of all trials": ({"readout": lambda y: y - y.mean(0)}, "mixes trials"),
    "a detaching readout": ({"readout": lambda y: y.detach()}, "detached"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_argument_is_refused(name):
    options, message = ARGUMENTS[name]
    with pytest.raises((ValueError, TypeError), match=message):
        kpops.linearize(plain(), X, sites="auto", **options)


def test_a_mask_with_the_inputs_is_refused():
    with pytest.raises(ValueError, match="brings a mask, which sites do not read"):
        kpops.linearize(plain(), MASKED)
    dropped = kpops.linearize(plain(), MASKED.drop_vars("mask"))
    assert dropped.space.sizes["trial"] == 3


def test_a_method_in_the_place_of_forward_is_followed():
    gru = nn.GRU(3, 4, batch_first=True)
    gru.forward = types.MethodType(lambda self, x: 2 * nn.GRU.forward(self, x)[0], gru)
    net = Net(lambda s, x: s.g(x), g=gru).double()
    x = torch.randn(2, 3, 3).double()
    lin = kpops.linearize(net, x, sites="auto")
    torch.testing.assert_close(torch.from_numpy(lin.outputs.values), net(x).detach())


@pytest.mark.parametrize("options", [{"trials": -1}, {"vectors": 3}])
def test_memory_estimates_refuse_what_those_of_recurrences_refuse(options):
    lin = kpops.linearize(plain(), X)
    with pytest.raises(ValueError, match=next(iter(options))):
        lin.memory_estimate(**options)


@pytest.mark.parametrize(
    "use",
    [
        lambda lin: kpops.linearize_at(lin, torch.zeros(2, 6).double(), 3),
        lambda lin: kpops.stationary_response(lin, torch.zeros(2, 6).double()),
        lambda lin: kpops.lyapunov_spectrum(lin),
        lambda lin: kpops.fixed_points(lin, 3),
        lambda lin: kpops.rank_bounds(lin),
    ],
)
def test_what_needs_steps_in_time_says_so(use):
    with pytest.raises(ValueError, match="without steps in time"):
        use(kpops.linearize(plain(), X))
