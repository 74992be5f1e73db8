"""Networks that users bring, at sites: values and derivatives against plain autograd."""

import collections
import copy
import pickle

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import kpops
from kpops.testing import check_linearization


class Net(nn.Module):
    """Parts by name, and a forward that is a function of the network and its inputs."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args, **kwargs):
        return self.run(self, *args, **kwargs)


def two(run, middle=4):
    torch.manual_seed(0)
    return Net(run, a=nn.Linear(3, 4), b=nn.Linear(middle, 2)).double()


Pair = collections.namedtuple("Pair", "first second")


class Several(nn.Module):
    """Returns a named tuple."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 4)

    def forward(self, x):
        h = self.inner(x)
        return Pair(torch.tanh(h), 2 * h)


class Scalar(nn.Module):
    """Returns a number of each trial."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 1)

    def forward(self, x):
        return self.inner(x)[:, 0]


def named_tuple():
    run = lambda s, x: s.b(s.a(x).first + s.a(x).second)  # noqa: E731
    return Net(run, a=Several(), b=nn.Linear(4, 2))


def per_trial():
    return Net(lambda s, x: s.b(torch.tanh(s.a(x))[:, None]), a=Scalar(), b=nn.Linear(1, 2))


def stepless():
    gru = nn.GRU(3, 4, batch_first=True)
    gru.step = 7  # a user's own attribute
    return Net(lambda s, x: s.b(s.g(x)[0]), g=gru, b=nn.Linear(4, 2))


def listed():
    weights = nn.ParameterList([torch.randn(3, 4)])
    return Net(lambda s, x: s.b(torch.tanh(x @ s.w[0])), w=weights, b=nn.Linear(4, 2))


def residual_in_place(s, x):
    h = s.a(x)
    h[:, 0] *= 2
    h += 1
    return s.b(torch.relu_(h))


CASES = {
    "a named tuple": (named_tuple, (2, 3)),
    "a number of each trial": (per_trial, (2, 3)),
    "a layer with a user's step": (stepless, (2, 3, 3)),
    "parts that are never called": (listed, (2, 3)),
    "changed in place": (lambda: two(residual_in_place), (2, 3)),
    "a wrapper": (lambda: nn.DataParallel(two(lambda s, x: s.b(torch.tanh(s.a(x))))), (2, 3)),
    "compiled": (
        lambda: torch.compile(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), backend="eager"),
        (2, 3),
    ),
    "bidirectional": (
        lambda: Net(
            lambda s, x: s.b(s.g(x)[0]),
            g=nn.LSTM(3, 2, batch_first=True, bidirectional=True),
            b=nn.Linear(4, 2),
        ),
        (2, 3, 3),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_output_follows_the_parameters_as_in_training(name):
    make, shape = CASES[name]
    torch.manual_seed(0)
    net, x = make().double(), torch.randn(shape, dtype=torch.float64)
    lin = kpops.linearize(net, x, sites="auto")
    inner = getattr(net, "module", getattr(net, "_orig_mod", net))
    y = inner(x)
    rows = [
        torch.cat(
            [g.flatten() for g in torch.autograd.grad(v, [*net.parameters()], retain_graph=1)]
        )
        for v in y.flatten()
    ]
    dense = torch.stack(rows)
    gap = torch.from_numpy(lin.output_sensitivity.to_dense()) - dense
    assert gap.norm() <= 1e-12 * dense.norm()
    np.testing.assert_allclose(lin.outputs, y.detach(), rtol=1e-12)
    check_linearization(lin)


def test_names_of_a_wrapped_network_are_understood_with_and_without_the_wrapper():
    net, x = two(lambda s, x: s.b(torch.tanh(s.a(x)))), torch.randn(2, 3).double()
    plain = kpops.linearize(net, x, sites=["b"], parameters=["a.weight"])
    wrapped = kpops.linearize(
        nn.DataParallel(net), x, sites=["module.b"], parameters=["module.a.weight"]
    )
    np.testing.assert_array_equal(wrapped.flow.to_dense(), plain.flow.to_dense())


def test_by_default_sites_are_the_parts_that_are_called():
    torch.manual_seed(0)
    lin = kpops.linearize(listed(), torch.randn(2, 3), sites="auto")
    assert set(lin.space.coords["site"].values) == {"b"}


def test_a_mapping_that_is_no_dict_gives_the_arguments_by_name():
    net = two(lambda s, x, y: s.b(s.a(x) * s.a(y)))
    x, y = torch.randn(2, 2, 3).double()
    lin = kpops.linearize(net, collections.UserDict(x=x, y=y), sites="auto")
    np.testing.assert_allclose(lin.outputs, net(x, y).detach(), rtol=1e-12)


def state_of(net):
    hooks = [[*m._forward_hooks, *m._forward_pre_hooks] for m in net.modules()]
    parameters = {n: (p.clone(), p.requires_grad, p._version) for n, p in net.named_parameters()}
    modes = [(n, id(m), m.training, *vars(m)) for n, m in net.named_modules()]
    return (
        parameters,
        hooks,
        modes,
        torch.get_rng_state(),
        torch.backends.mha.get_fastpath_enabled(),
    )


def test_nothing_of_the_user_or_of_torch_is_changed_also_by_a_refusal():
    net = two(lambda s, x: nn.functional.dropout(s.b(s.a(x))))
    net.g = nn.GRU(2, 3).double()
    before = state_of(net)
    with pytest.raises(ValueError, match="it is random"):
        kpops.linearize(net, torch.randn(3, 3, generator=torch.Generator()).double(), sites=["a"])
    after = state_of(net)
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert after[1:3] == before[1:3] and after[4] == before[4]
    assert torch.equal(after[3], before[3])


def test_results_do_not_follow_the_network_or_its_inputs():
    net, x = two(lambda s, x: s.b(torch.tanh(s.a(x)))), torch.randn(2, 3).double()
    expected = kpops.linearize(copy.deepcopy(net), x.clone(), sites="auto").output_ntk.to_dense()
    lin = kpops.linearize(net, x, sites="auto")
    with torch.no_grad():
        for tensor in (x, *net.parameters()):
            tensor.add_(1)
    np.testing.assert_array_equal(lin.output_ntk.to_dense(), expected)


def test_operators_on_sites_pickle_although_the_readout_does_not():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    lin = kpops.linearize(net, torch.randn(2, 3), readout=lambda y: 2 * y)
    for op in (lin.flow, lin.P_inv, lin.J, lin.K):
        again = pickle.loads(pickle.dumps(op))
        np.testing.assert_array_equal(again.to_dense(), op.to_dense())


def test_linearizations_are_shown_in_notebooks():
    lin = kpops.linearize(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(2, 3))
    assert "sites: runs that are pushed and cut" in lin._repr_html_()


def test_gradient_flow_in_inference_mode_equals_that_outside():
    net, x = two(lambda s, x: s.b(torch.tanh(s.a(x)))), torch.randn(2, 3).double()
    lin, targets = kpops.linearize(net, x, sites="auto"), np.zeros((2, 2))
    expected = kpops.gradient_flow(lin, targets)
    with torch.inference_mode():
        xr.testing.assert_identical(kpops.gradient_flow(lin, targets), expected)
