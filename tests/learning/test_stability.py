"""The thresholds of gradient descent and of SGD, against real runs on both sides of them."""

import copy
import json
from itertools import combinations

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import kpops


class Linear(nn.Module):
    """One linear output of one step: a model whose loss is a quadratic of its weights."""

    def __init__(self, n_features, n_outputs=1):
        super().__init__()
        self.input_size, self.hidden_size = n_features, n_outputs
        self.linear = nn.Linear(n_features, n_outputs, bias=False)

    def forward(self, x, h):
        return self.linear(x) + 0 * h


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def model_of(theta):
    model = Linear(len(theta)).double()
    with torch.no_grad():
        model.linear.weight.copy_(theta[None])
    return model


def lengths_of_run(features, theta, eta, batches):
    """||theta|| at every step of torch's SGD, for targets that theta = 0 fits."""
    model = model_of(theta)
    optimizer = torch.optim.SGD(model.parameters(), lr=eta)
    lengths = [float(theta.norm())]
    for batch in batches:
        optimizer.zero_grad()
        model(features[batch], torch.zeros(())).square().mean().backward()
        optimizer.step()
        lengths.append(float(model.linear.weight.detach().norm()))
    return np.array(lengths)


def of_features(features, **options):
    """Stability at the minimum of the same quadratic."""
    n_samples, n_features = features.shape
    lin = kpops.linearize(model_of(torch.zeros(n_features).double()), features[:, None])
    targets = torch.zeros(n_samples, 1, 1, dtype=torch.float64)
    return kpops.stability(lin, targets, **{"eta": 0.1, **options})


# Gradient descent


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_gradient_descent_on_a_quadratic_diverges_exactly_beyond_two_over_eta(curvature):
    features = torch.tensor([[1.0, 0.3], [-0.4, 0.8]], dtype=torch.float64)
    values, vectors = np.linalg.eigh((features.T @ features).numpy())  # mean of 2 x x^T
    critical = 2 / values[-1]
    start = torch.from_numpy(vectors[:, -1].copy())
    for factor, stable in ((0.99, True), (1.01, False)):
        result = of_features(features, eta=factor * critical, curvature=curvature)
        assert bool(result.stable) is stable
        assert float(result.sharpness) == pytest.approx(values[-1], rel=1e-10)
        assert float(result.trace) == pytest.approx(values.sum(), rel=1e-10)
        assert float(result.threshold) == pytest.approx(values[-1] / factor, rel=1e-12)
        run = lengths_of_run(features, start, factor * critical, [[0, 1]] * 100)
        np.testing.assert_allclose(run[1:] / run[:-1], abs(1 - 2 * factor), rtol=1e-8)
    run = lengths_of_run(features, start, critical, [[0, 1]] * 100)
    np.testing.assert_allclose(run, 1, rtol=1e-10)


# SGD


def drawn(n_samples, batch_size, n_steps):
    rng = np.random.default_rng(1)
    return [rng.choice(n_samples, batch_size, replace=False) for _ in range(n_steps)]


@pytest.mark.parametrize(
    ("batch_size", "features"),
    [
        (1, nn.functional.normalize(normal(7, 3), dim=1)),  # of one length, in any directions
        (2, torch.linalg.qr(normal(6, 6))[0]),  # orthogonal
        (3, torch.linalg.qr(normal(6, 6))[0]),
    ],
)
def test_sgd_diverges_exactly_beyond_its_threshold(batch_size, features):
    level = float(of_features(features, batch_size=batch_size).sgd_sharpness)
    n_samples, n_features = features.shape
    batches = drawn(n_samples, batch_size, 300)
    start = normal(n_features, seed=2)
    # A step at the threshold reflects theta, so that no length changes in any run.
    steady = lengths_of_run(features, start, 2 / level, batches)
    np.testing.assert_allclose(steady, steady[0], rtol=1e-10)
    for factor, stable in ((0.95, True), (1.05, False)):
        eta = factor * 2 / level
        result = of_features(features, eta=eta, batch_size=batch_size)
        assert bool(result.sgd_stable) is stable
        assert bool(result.stable)  # full-batch gradient descent bears this rate, and more
        run = lengths_of_run(features, start, eta, batches)
        assert run[-1] < 1e-3 * run[0] if stable else run[-1] > 1e3 * run[0]


def test_with_one_sample_of_one_length_the_level_is_the_trace():
    features = 1.7 * nn.functional.normalize(normal(9, 4), dim=1)
    result = of_features(features, batch_size=1)
    assert float(result.sgd_sharpness) == pytest.approx(float(result.trace), rel=1e-12)
    longer = features * torch.linspace(0.5, 2, 9)[:, None].double()
    result = of_features(longer, batch_size=1)
    assert float(result.sgd_sharpness) > 1.2 * float(result.trace)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 5])
@pytest.mark.parametrize("n_outputs", [1, 2])
def test_the_level_is_the_growth_of_the_second_moment_over_all_batches(batch_size, n_outputs):
    n_samples, n_features, eta = 5, 3, 0.3
    features = normal(n_samples, n_features)
    model = Linear(n_features, n_outputs).double()
    lin = kpops.linearize(model, features[:, None])
    result = kpops.stability(lin, lin.states, eta=eta, batch_size=batch_size, curvature="ggn")
    n = n_features * n_outputs
    moved = []
    for batch in combinations(range(n_samples), batch_size):
        for unit in torch.eye(n).double():  # a real step from each direction around the minimum
            stepped = copy.deepcopy(model)
            with torch.no_grad():
                stepped.linear.weight += unit.view(n_outputs, n_features)
            optimizer = torch.optim.SGD(stepped.parameters(), lr=eta)
            x = features[list(batch)]
            (stepped.linear(x) - model.linear(x).detach()).square().mean().backward()
            optimizer.step()
            change = (stepped.linear.weight - model.linear.weight).detach()
            moved.append(float(change.square().sum()))
    growth = eta * (eta * float(result.sgd_sharpness) - 2) * float(result.trace)
    assert n * np.mean(moved) - n == pytest.approx(growth, rel=1e-11)


def test_estimates_for_many_trials_agree_with_the_matrix():
    torch.manual_seed(0)
    network = kpops.Network(nn.GRU(3, 16, batch_first=True), nn.Linear(16, 2)).double()
    lin = kpops.linearize(network, normal(30, 20, 3))
    targets = normal(30, 20, 2, seed=1)
    result = kpops.stability(lin, targets, eta=0.1, batch_size=4, num_probes=4, rng=0)
    operator = lin.ggn(targets)
    root = operator.root.to_dense()
    whole = root.T @ root
    own = [np.linalg.norm(whole[i : i + 40, i : i + 40]) ** 2 for i in range(0, 1200, 40)]
    c = (30 - 4) / (4 * 29)
    expected = c * 30 * sum(own) + (1 - c) * np.linalg.norm(whole) ** 2
    expected /= np.trace(whole)
    error = abs(float(result.sgd_sharpness) - expected)
    assert 0 < float(result.sgd_sharpness_stderr) < 0.2 * expected
    assert error < 4 * float(result.sgd_sharpness_stderr)


# Results


@pytest.fixture
def problem():
    torch.manual_seed(0)
    network = kpops.Network(nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 4))
    return kpops.linearize(network, torch.randn(6, 7, 3)), torch.randint(4, (6, 7))


def test_both_curvatures_are_those_of_their_operators(problem):
    lin, labels = problem
    for name, operator in (
        ("hessian", lin.hessian(labels, "cross_entropy")),
        ("ggn", lin.ggn(labels, "cross_entropy")),
    ):
        values = np.linalg.eigvalsh(operator.to_dense().astype(float))
        result = kpops.stability(lin, labels, "cross_entropy", eta=1.0, curvature=name)
        assert float(result.sharpness) == pytest.approx(values[-1], rel=1e-4)
        assert float(result.trace) == pytest.approx(values.sum(), rel=1e-4)


def test_results_are_labelled_keep_the_dtype_and_can_be_saved(problem, tmp_path):
    lin, labels = problem
    result = kpops.stability(lin, labels, "cross_entropy", eta=0.5, batch_size=2)
    numbers = [v for v in result.data_vars.values() if v.dtype != bool]
    assert all(v.dtype == np.float32 for v in numbers)
    assert all("long_name" in v.attrs for v in result.data_vars.values())
    settings = json.loads(result.attrs["configuration"])
    assert (settings["eta"], settings["batch_size"], settings["loss"]) == (0.5, 2, "cross_entropy")
    result.to_netcdf(tmp_path / "stability.nc", engine="h5netcdf")
    xr.testing.assert_equal(xr.load_dataset(tmp_path / "stability.nc", engine="h5netcdf"), result)


def test_it_is_a_measure_over_training():
    gru = nn.GRU(2, 3, batch_first=True)
    checkpoints = [(step, copy.deepcopy(gru.state_dict())) for step in (0, 5)]
    result = kpops.over_training(
        gru,
        checkpoints,
        torch.randn(3, 4, 2),
        lambda lin: kpops.stability(lin, torch.zeros(3, 4, 3), eta=0.1, batch_size=1, rng=0),
    )
    assert result.sgd_sharpness.dims == ("step",)


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"eta": 0.0}, ValueError, "eta=0.0: choose a learning rate above 0"),
        ({"eta": "fast"}, TypeError, "eta is the string 'fast': pass a real number"),
        ({"batch_size": 7}, ValueError, "batch_size=7: choose an int from 1 to 6"),
        ({"curvature": "fisher"}, ValueError, "curvature='fisher': choose 'hessian' or 'ggn'"),
        ({"loss": lambda y, t: y.square().sum(), "batch_size": 2}, ValueError, "loss is a callab"),
    ],
)
def test_wrong_use_is_refused(problem, options, error, told):
    lin, labels = problem
    with pytest.raises(error, match=told):
        kpops.stability(lin, labels, **{"loss": "cross_entropy", "eta": 0.1, **options})
    with pytest.raises(TypeError, match=r"lin is a model .* pass kpops.linearize\(model, inputs\)"):
        kpops.stability(lin.recurrence.module, labels, eta=0.1)
