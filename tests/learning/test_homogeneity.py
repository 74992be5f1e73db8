"""Euler's identity, and gradients along the weights, against autograd."""

import numpy as np
import pytest
import torch
from one_step import OneStep, deep_linear
from torch import nn

import kpops
from kpops.training import homogeneity, naive_loss_minimization


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_deep_linear_network_has_degree_one_in_each_of_its_matrices(depth):
    net = deep_linear(*[normal(3, 3, seed=i) for i in range(depth)])
    lin = kpops.linearize(net, normal(5, 1, 3, seed=9))
    result = homogeneity(lin)
    assert float(result.degree) == pytest.approx(depth, rel=1e-12)
    np.testing.assert_allclose(result.degree_by_parameter, np.ones(depth), rtol=1e-12)
    assert float(result.residual) < 1e-13
    assert result.residual_by_parameter.max() < 1e-13


def test_rectified_layers_and_a_readout_add_their_degrees():
    torch.manual_seed(0)
    relu = nn.RNN(3, 8, 2, nonlinearity="relu", bias=False, batch_first=True).double()
    readout = nn.Linear(8, 2, bias=False).double()
    result = homogeneity(kpops.linearize(relu, normal(5, 1, 3), readout=readout))
    assert float(result.degree) == pytest.approx(3, rel=1e-12)
    degrees = dict(zip(result.parameter.values, result.degree_by_parameter.values, strict=True))
    one = ["weight_ih_l0", "weight_ih_l1", "readout.weight"]
    assert [degrees[name] for name in one] == pytest.approx([1, 1, 1], rel=1e-12)
    assert degrees["weight_hh_l0"] == degrees["weight_hh_l1"] == 0  # it starts from zero
    frozen = readout.requires_grad_(False)
    result = homogeneity(kpops.linearize(relu, normal(5, 1, 3), readout=frozen))
    assert float(result.degree) == pytest.approx(2, rel=1e-12)


def test_powers_have_their_degree_and_sums_of_powers_have_none():
    square = OneStep(lambda net, x: x * net.u**2, 3, u=normal(3))
    mixed = OneStep(lambda net, x: x * (net.u**2 + net.u), 3, u=normal(3))
    x = normal(4, 1, 3, seed=1)
    assert float(homogeneity(kpops.linearize(square, x)).degree) == pytest.approx(2, rel=1e-13)
    u, h = normal(3), normal(3) ** 2 + normal(3)
    f, g = (x * h).flatten(), (x * (2 * u**2 + u)).flatten()
    degree = f @ g / (f @ f)
    result = homogeneity(kpops.linearize(mixed, x))
    assert float(result.degree) == pytest.approx(float(degree), rel=1e-12)
    rest = (g - degree * f).norm() / f.norm()
    assert float(result.residual) == pytest.approx(float(rest), rel=1e-12)


def test_outputs_of_zero_have_no_degree():
    lin = kpops.linearize(deep_linear(torch.zeros(2, 3)), normal(4, 1, 3))
    assert np.isnan(homogeneity(lin).degree)


@pytest.mark.parametrize("masked", [False, True])
def test_the_cosine_is_that_of_the_gradient_of_autograd(masked):
    torch.manual_seed(0)
    network = kpops.Network(nn.GRU(3, 5), nn.Linear(5, 4)).double()
    x, labels = normal(6, 7, 3), torch.randint(4, (6, 7))
    mask = torch.arange(7) < (torch.arange(6)[:, None] + 2 if masked else 7)
    mask = mask.expand(6, 7)
    result = naive_loss_minimization(kpops.linearize(network, x, mask=mask), labels)
    nn.functional.cross_entropy(network(x)[mask], labels[mask]).backward()
    pairs = {n.removeprefix("recurrent."): (p, p.grad) for n, p in network.named_parameters()}
    assert list(result.parameter.values) == list(pairs)
    for name, (p, g) in pairs.items():
        expected = -torch.cosine_similarity(p.flatten(), g.flatten(), 0).item()
        here = result.sel(parameter=name)
        assert float(here.cosine_by_parameter) == pytest.approx(expected, rel=1e-10)
        assert float(here.gradient_norm) == pytest.approx(g.norm().item(), rel=1e-10)
        assert float(here.weight_norm) == pytest.approx(p.norm().item(), rel=1e-12)
    p, g = (torch.cat([pair[i].flatten() for pair in pairs.values()]) for i in (0, 1))
    whole = -torch.cosine_similarity(p, g, 0).item()
    assert float(result.cosine) == pytest.approx(whole, rel=1e-10)


def test_the_component_along_the_weights_is_that_of_eulers_identity():
    """-<theta, dL/dtheta> = -L <f, dL/df>."""
    net, labels = deep_linear(*[normal(4, 4, seed=i) for i in range(3)]), torch.arange(8) % 4
    x = normal(8, 1, 4, seed=5)
    result = naive_loss_minimization(kpops.linearize(net, x), labels[:, None])
    f = net(x[:, 0], torch.zeros(8, 4, dtype=torch.float64)).detach().requires_grad_()
    (slope,) = torch.autograd.grad(nn.functional.cross_entropy(f, labels), f)
    along = result.cosine * np.sqrt((result.gradient_norm**2).sum() * (result.weight_norm**2).sum())
    assert float(along) == pytest.approx(-3 * float((f.detach() * slope).sum()), rel=1e-12)


def test_once_all_is_correct_descent_of_the_cross_entropy_scales_the_weights():
    """A linear softmax that is right by a wide margin, with weights that maximise it."""
    W, x = 6 * np.eye(3) - 3, np.eye(3) - 1 / 3
    lin = kpops.linearize(deep_linear(torch.from_numpy(W)), torch.from_numpy(x)[:, None])
    result = naive_loss_minimization(lin, torch.arange(3)[:, None])
    p = np.exp(x @ W.T) / np.exp(x @ W.T).sum(1, keepdims=True)
    g = (p - np.eye(3)).T @ x / 3
    expected = -(g * W).sum() / np.linalg.norm(g) / np.linalg.norm(W)
    assert float(result.cosine) == pytest.approx(expected, rel=1e-12)
    assert expected > 0.8


def test_each_is_a_measure_over_training(tmp_path):
    torch.manual_seed(0)
    network = kpops.Network(nn.GRU(3, 6), nn.Linear(6, 3))
    task = kpops.tasks.memory_pro(10, rng=0)
    options = {"max_steps": 2, "batch_size": 5, "checkpoint_every": 1, "rng": 0}
    kpops.training.train(network, task, folder=tmp_path, **options)

    def along(lin):
        return naive_loss_minimization(lin, task.targets, "mse")

    for measure in (homogeneity, along):
        result = kpops.over_training(network, tmp_path, task.inputs, measure)
        last = measure(kpops.linearize(network, task.inputs))
        for name, values in last.items():
            np.testing.assert_array_equal(result[name].isel(step=-1), values)
