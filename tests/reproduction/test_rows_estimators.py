"""What the rows on estimators and bifurcations compute, against dense and closed forms."""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

sys.path.insert(0, str(Path(__file__).parents[2]))

import kpops
from reproduction.rows import (
    bifurcation_bound,
    bifurcation_collapse,
    bifurcation_networks,
    bifurcation_toy,
    ntk_models,
    ntk_norm_rank_alignment,
    ntk_speed,
    ntk_trace_one_sided,
)

# PyTorch's own, at the first use of forward mode
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def jacobian(function, parameters):
    """Dense derivative of outputs (n,) by all parameters, by autograd."""
    rows = [torch.autograd.grad(y, parameters, retain_graph=True) for y in function()]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def test_the_kernel_of_the_gru_is_that_of_its_own_forward():
    kernel = ntk_models.gru(3, [4, 2, 3])
    torch.manual_seed(3)
    x = torch.randn(4, 2, 10)
    module = torch.nn.GRU(10, 3)
    D = jacobian(lambda: module(x)[0].transpose(0, 1).flatten(), list(module.parameters()))
    assert kernel.shape == tuple(D.shape)
    assert kernel.exact_trace() == pytest.approx(float(D.square().sum()), rel=1e-5)
    z = torch.randn(2, len(D))
    torch.testing.assert_close(kernel.both(z), z @ D @ D.T, rtol=1e-4, atol=1e-4)


def test_the_kernel_of_the_mlp_has_the_trace_of_its_own_forward():
    kernel = ntk_models.mlp(1, [2, 3, 4])
    torch.manual_seed(1)
    x = torch.randn(2, 100)
    first, *others = (torch.nn.Linear(n, 4) for n in (100, 4, 4))

    def outputs():
        h = first(x)
        for layer in others:
            h = layer(h.relu())
        return h.relu().flatten()

    D = jacobian(outputs, [p for layer in (first, *others) for p in layer.parameters()])
    assert kernel.exact_trace() == pytest.approx(float(D.square().sum()), rel=1e-5)


@pytest.mark.parametrize("products", [12, 30])
def test_estimators_are_unbiased_and_their_spread_is_that_of_the_theory(products):
    rng = torch.Generator().manual_seed(0)
    A = torch.randn(20, 14, generator=rng, dtype=torch.float64)
    trace = float(A.square().sum())
    one = [ntk_models.one_sided(lambda w: w @ A.T, 14, products, rng, A.dtype) for _ in range(1500)]
    two = [
        ntk_models.hutch_plus_plus(lambda w: w @ A @ A.T, 20, products // 2, rng, A.dtype)
        for _ in range(1500)
    ]
    for found in (one, two):
        assert abs(np.mean(found) - trace) < 4 * np.std(found) / np.sqrt(len(found))
    assert np.std(one) < 0.5 * trace


def test_estimators_are_exact_where_their_sketch_holds_all():
    rng = torch.Generator().manual_seed(0)
    A = torch.randn(20, 2, generator=rng, dtype=torch.float64)
    found = ntk_models.hutch_plus_plus(lambda w: w @ A @ A.T, 20, 9, rng, A.dtype)
    assert found == pytest.approx(float(A.square().sum()))


def test_hutch_plus_plus_takes_the_stated_matvecs_and_one_sided_the_stated_products():
    counts = []

    def act(rows):
        counts.append(len(rows))
        return rows

    for matvecs in (6, 12, 45):
        counts.clear()
        ntk_models.hutch_plus_plus(act, 50, matvecs, torch.Generator(), torch.float64)
        assert sum(counts) == matvecs
        counts.clear()
        ntk_models.one_sided(act, 50, matvecs, torch.Generator(), torch.float64)
        assert sum(counts) == matvecs


def test_slopes_and_sides_of_the_trace_are_those_of_made_up_errors():
    products = np.array([12, 24, 48])
    error = np.ones((2, 1, 6, 3, 2)) / np.sqrt(products)[:, None]
    error[:, :, 0] /= 2  # FHutch
    found = xr.Dataset(
        {"error": (("seed", "network", "estimator", "products", "repeat"), error)},
        coords={
            "network": ["GRU"],
            "products": products,
            "estimator": [*ntk_trace_one_sided.PAPERS, *ntk_trace_one_sided.OURS],
        },
    )
    rms = ntk_trace_one_sided.root_mean_square(found.error.sel(network="GRU", estimator="FHutch"))
    assert ntk_trace_one_sided.slope(rms) == pytest.approx(-0.5)
    assert ntk_trace_one_sided.sided(found)["GRU"] == pytest.approx(0.5)


def test_the_closed_form_of_the_ntk_is_that_of_autograd():
    torch.manual_seed(0)
    widths = [5, 7, 6, 3]
    linear = [torch.nn.Linear(a, b) for a, b in pairwise(widths)]
    net = torch.nn.Sequential(
        linear[0], torch.nn.ReLU(), linear[1], torch.nn.ReLU(), linear[2]
    ).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    D = jacobian(lambda: net(x).flatten(), list(net.parameters()))
    found = ntk_norm_rank_alignment.closed_form(net, x)
    torch.testing.assert_close(found, D @ D.T)


def test_exact_norm_alignment_and_rank_are_those_of_eigenvalues():
    rng = np.random.default_rng(0)
    first, last = (torch.from_numpy(B @ B.T) for B in rng.normal(size=(2, 6, 4)))
    found = ntk_norm_rank_alignment.exact_values(first, last)
    a, b = first.numpy(), last.numpy()
    values = np.linalg.eigvalsh(b)
    assert found["norm"][1] == pytest.approx((values**2).sum())
    assert found["effective rank"][1] == pytest.approx(values.sum() ** 2 / (values**2).sum())
    cosine = np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)
    assert found["alignment"][1] == pytest.approx(cosine)


def test_the_time_to_an_error_is_interpolated_to_the_first_point_below_it():
    seconds, errors = [1.0, 3.0, 4.0], [0.04, 0.02, 0.03]
    assert ntk_speed.time_to(seconds, errors, 1.0, 0.03) == pytest.approx(2.0)
    assert ntk_speed.time_to(seconds, errors, 1.04, 0.54) == pytest.approx(0.5)
    assert np.isnan(ntk_speed.time_to(seconds, errors, 1.0, 0.01))


@pytest.mark.parametrize("family", bifurcation_networks.FAMILIES)
def test_planted_points_are_fixed_and_have_their_eigenvalue(family):
    d = 0.01
    cell, point = bifurcation_networks.at_distance(family, 0, 12, d)
    with torch.no_grad():
        after = cell(torch.zeros(1, 1).double(), torch.from_numpy(point)[None])[0].numpy()
    np.testing.assert_allclose(after, point, atol=1e-12)
    assert np.linalg.norm(point) > 0.1
    values = np.linalg.eigvals((1 - point**2)[:, None] * cell.weight_hh.detach().numpy())
    nearest = values[abs(values - 1).argmin()]
    assert nearest.real == pytest.approx(1 - d, abs=1e-12 if family == "fold" else 0.1 * d)
    assert (abs(np.delete(values, abs(values - 1).argmin())) < 0.9).all()


@pytest.mark.parametrize("family", bifurcation_networks.FAMILIES)
def test_the_leading_term_is_the_eigenvalue_of_the_critical_channel(family):
    cell, point = bifurcation_networks.at_distance(family, 1, 10, 0.02)
    channel = kpops.critical_channel(kpops.linearize_at(cell, point[None]))
    largest = np.linalg.eigvalsh(channel.to_dense())[-1]
    assert bifurcation_collapse.leading_term(cell, point) == pytest.approx(largest)


def test_the_split_of_a_response_is_that_of_its_definition():
    mu, others = np.eye(4)[0], np.eye(4)[1:]
    response = np.outer([3.0, 4.0], mu) + np.array([[0, 1, 0, 0], [0, 0, 2, 0]])
    found = bifurcation_bound.ratios(response, np.outer([5.0, 0.0], mu))
    assert found[3:] == pytest.approx([5, 2])
    assert found[:2] == pytest.approx([2 / 5, np.sqrt(5) / 5])
    rest = response - np.outer([5.0, 0.0], mu)
    assert found[2] == pytest.approx(np.linalg.norm(rest, 2) / 5)
    assert np.linalg.norm(response @ others.T, 2) == pytest.approx(found[4])


@pytest.mark.parametrize("diagonal", [False, True])
def test_the_rank_of_the_toy_is_that_of_autograd(diagonal):
    starts = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 2)))
    student = bifurcation_toy.cell((0.8, 0.7), 0.5, diagonal)
    D = jacobian(lambda: bifurcation_toy.states(student, starts, 4).flatten(), [student.W])
    values = np.linalg.svd(D.numpy())[1] ** 2
    rank, direction = bifurcation_toy.kernel(student, starts, 4)
    assert rank == pytest.approx(values.sum() ** 2 / (values**2).sum())
    assert abs(direction @ np.linalg.svd(D.numpy())[2][0]) == pytest.approx(1)


def test_the_direction_of_an_eigenvalue_is_its_gradient():
    W = np.array([[0.9, 0.2], [0.1, 0.5]])
    values, direction = bifurcation_toy.leading(W)
    h = 1e-6
    gradient = [
        (np.linalg.eigvals(W + h * e.reshape(2, 2)).max() - values[0]) / h for e in np.eye(4)
    ]
    np.testing.assert_allclose(direction, gradient / np.linalg.norm(gradient), atol=1e-4)
    assert values[0] > values[1]


def test_dips_are_found_near_the_crossings():
    steps = np.arange(0, 101, 10)
    first, second = 0.5 + steps / 60, 0.2 + steps / 100
    rank = np.array([3.0, 2.5, 2, 1.1, 2, 2.2, 2.1, 2.0, 1.3, 2, 2])
    one = xr.Dataset(
        {
            "effective_rank": ("step", rank),
            "cosine": ("step", rank / 10),
            "eigenvalue": (("step", "number"), np.stack([first, second], 1)),
        },
        coords={"step": steps, "number": [0, 1]},
    )
    found = bifurcation_toy.dips(one)
    assert found["first"] == pytest.approx(30)
    assert found["second"] == pytest.approx(80)
    assert (found["first rank"], found["second rank"], found["peak"]) == (1.1, 1.3, 2.2)
    assert found["cosine"] == pytest.approx(0.11)
    assert np.isnan(bifurcation_toy.crossing(steps, second / 2))
