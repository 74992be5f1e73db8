"""Operators and trainings in subspaces of the parameters, against dense algebra."""

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.linalg import subspace_angles
from torch import nn

import kpops
from kpops.testing import check_operator
from kpops.training import InSubspace


@pytest.fixture
def lin():
    torch.manual_seed(0)
    gru = nn.GRU(2, 4, batch_first=True)
    return kpops.linearize(gru, torch.randn(3, 5, 2), dtype=torch.float64)


def projection(R):
    dense = R.to_dense()
    return dense @ dense.T


@pytest.mark.parametrize("basis", [7, "weight_hh_l0", ["bias_ih_l0", "weight_ih_l0"], "matrix"])
def test_operators_in_a_subspace_are_those_of_dense_algebra(lin, basis):
    if basis == "matrix":
        basis = np.random.default_rng(0).standard_normal((lin.parameter_space.size, 3))
    R = kpops.subspace(lin, basis, rng=0)
    dense = R.to_dense()
    np.testing.assert_allclose(dense.T @ dense, np.eye(R.shape[1]), atol=1e-14)
    J = lin.J @ R
    K, flow = J @ J.H, lin.P @ J @ J.H @ lin.P.H
    forces, PJ = lin.J.to_dense() @ dense, lin.sensitivity.to_dense() @ dense
    np.testing.assert_allclose(K.to_dense(), forces @ forces.T, atol=1e-13)
    np.testing.assert_allclose(flow.to_dense(), PJ @ PJ.T, atol=1e-13)
    assert K.positive and flow.positive
    assert flow.symbol == "P J R R* J* P*"
    check_operator(R, rng=0)
    check_operator(flow, rng=0)
    values = np.linalg.svd(PJ, compute_uv=False)[:3] ** 2
    np.testing.assert_allclose(kpops.eigsh(flow, 3, rng=0).eigenvalue, values, rtol=1e-9)


def test_a_parameter_and_the_whole_space_are_known_operators(lin):
    one, whole = (lin.J @ kpops.subspace(lin, b) for b in ("weight_hh_l0", [*lin.parameters]))
    expected = lin.K_by_parameter["weight_hh_l0"].to_dense()
    np.testing.assert_allclose((one @ one.H).to_dense(), expected, atol=1e-14)
    np.testing.assert_allclose((whole @ whole.H).to_dense(), lin.K.to_dense(), atol=1e-14)
    every = lin.J @ kpops.subspace(lin, lin.parameter_space.size, rng=0)
    np.testing.assert_allclose((every @ every.H).to_dense(), lin.K.to_dense(), atol=1e-13)


def test_a_subspace_is_that_of_the_seed_and_its_first_vectors_are_those_of_fewer(lin):
    five, again, other = (kpops.subspace(lin, 5, rng=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(five.to_dense(), again.to_dense())
    assert subspace_angles(five.to_dense(), other.to_dense()).max() > 1
    three = kpops.subspace(lin, 3, rng=0)
    np.testing.assert_allclose(projection(five) @ three.to_dense(), three.to_dense(), atol=1e-14)


def test_vectors_count_by_their_span_and_a_dataarray_by_its_names(lin):
    p = lin.parameter_space.size
    vectors = np.random.default_rng(0).standard_normal((p, 3)) * [1, 1e-9, 1e9]
    named = xr.DataArray(vectors.T, {"parameter": np.arange(p)}, ("mode", "parameter"))
    mixed = vectors / [1, 1e-9, 1e9] @ np.array([[1, 2, 0], [0, 1, 3], [1, 0, 1]])
    expected = projection(kpops.subspace(lin, vectors))
    for basis in (named, mixed, torch.from_numpy(vectors)):
        np.testing.assert_allclose(projection(kpops.subspace(lin, basis)), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("basis", "message"),
    [
        (0, "basis=0: choose an int from 1 to 96"),
        (97, "basis=97"),
        ("weight", r"no parameter \['weight'\]: choose from"),
        (np.ones((96, 2)), "basis has 2 columns of rank 1: leave dependent ones out"),
        (np.ones(96), r"shape \(96,\), expected \(parameter, d\)"),
        (np.full((96, 1), np.nan), "not finite"),
        (xr.DataArray(np.eye(96)[:3], dims=("mode", "entry")), "expected parameter and one other"),
        (
            xr.DataArray(np.eye(96)[:3], {"parameter": np.arange(1, 97)}, ("mode", "parameter")),
            r"disagree on the labels of \['parameter'\]",
        ),
    ],
)
def test_what_spans_no_subspace_is_refused(lin, basis, message):
    with pytest.raises(ValueError, match=message):
        kpops.subspace(lin, basis)


def test_a_training_moves_within_the_subspace_and_by_the_projected_gradient():
    torch.manual_seed(0)
    network = kpops.Network(nn.GRU(2, 4), nn.Linear(4, 1)).double()
    network.readout.bias.requires_grad_(False)
    x = torch.randn(3, 5, 2, dtype=torch.float64)
    few = InSubspace(network, 6, rng=0)
    assert [n for n, p in few.named_parameters() if p.requires_grad] == ["coordinates"]
    start = torch.cat([p.flatten() for p in network.parameters() if p.requires_grad])
    network(x).square().sum().backward()
    whole = torch.cat([p.grad.flatten() for p in network.parameters() if p.requires_grad])
    few(x).square().sum().backward()
    np.testing.assert_allclose(few.coordinates.grad, few.basis.T @ whole, atol=1e-13)
    torch.optim.SGD(few.parameters(), 0.1).step()
    moved = few.network()
    end = torch.cat([p.flatten() for p in moved.parameters() if p.requires_grad])
    expected = -0.1 * few.basis @ few.basis.T @ whole
    np.testing.assert_allclose((end - start).detach(), expected, atol=1e-14)
    np.testing.assert_allclose(moved(x).detach(), few(x).detach(), atol=1e-14)
    assert torch.equal(moved.readout.bias, network.readout.bias)


def test_the_derivative_by_the_coordinates_is_that_of_the_restricted_operator():
    torch.manual_seed(0)
    gru, x = nn.GRU(2, 4, batch_first=True).double(), torch.randn(3, 5, 2, dtype=torch.float64)
    few = InSubspace(gru, 6, rng=0)
    lin = kpops.linearize(gru, x)
    R = kpops.subspace(lin, 6, rng=0)

    def states(c):
        return torch.func.functional_call(few, {"coordinates": c}, (x,))[0].flatten()

    jacobian = torch.autograd.functional.jacobian(states, torch.zeros(6, dtype=torch.float64))
    np.testing.assert_allclose((lin.sensitivity @ R).to_dense(), jacobian, atol=1e-14)


class Constraints(nn.Module):
    """Ten sums, each of a hundred of a thousand parameters."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(10, 100, dtype=torch.float64))

    def forward(self, x):
        return self.theta.sum(1).expand(len(x), 1, 10)


def test_ten_constraints_on_a_thousand_parameters_have_the_intrinsic_dimension_ten(tmp_path):
    """The toy of Li et al. (2018), section 2: solutions form a subspace of 990 dimensions."""
    goal = np.arange(1.0, 11)
    task = xr.Dataset(
        {
            "inputs": (("trial", "time", "input"), np.zeros((1, 1, 1))),
            "targets": (("trial", "time", "output"), goal[None, None]),
            "mask": (("trial", "time"), np.ones((1, 1), bool)),
        }
    )
    performance = {}
    for d in (9, 10):  # each spans those of fewer dimensions
        model = InSubspace(Constraints(), d, rng=0)
        jacobian = np.kron(np.eye(10), np.ones(100)) @ model.basis.numpy()
        rate = 10 / np.linalg.norm(jacobian, 2) ** 2  # half the largest stable step
        history = kpops.training.train(
            model,
            task,
            folder=tmp_path / str(d),
            max_steps=4000,
            batch_size=1,
            learning_rate=rate,
            optimizer=lambda p, lr: torch.optim.SGD(p, lr, momentum=0.95),
            checkpoint_every=4000,
            stop_loss=1e-6,
            rng=0,
        )
        rest = goal - jacobian @ np.linalg.lstsq(jacobian, goal, rcond=None)[0]
        assert float(history.loss[-1]) == pytest.approx((rest**2).mean(), rel=1e-4, abs=2e-6)
        performance[d] = float(np.exp(-history.loss[-1]))
    assert min(d for d, reached in performance.items() if reached > 0.9) == 10


def test_a_subspace_training_resumes_and_its_checkpoints_are_networks(tmp_path):
    task = kpops.tasks.memory_pro(20, rng=0)

    def model():
        torch.manual_seed(0)
        return InSubspace(kpops.Network(nn.GRU(3, 6), nn.Linear(6, 3)), 15, rng=0)

    options = {"batch_size": 10, "rng": 0, "checkpoint_every": 2}
    whole, halves = model(), model()
    kpops.training.train(whole, task, folder=tmp_path / "whole", max_steps=4, **options)
    for steps in (2, 4):
        kpops.training.train(halves, task, folder=tmp_path / "halves", max_steps=steps, **options)
    assert torch.equal(whole.coordinates, halves.coordinates)
    final = kpops.over_training(
        model(),
        tmp_path / "whole",
        task.inputs,
        lambda lin: {"norm": float(abs(lin.states).max())},
        linearizer=lambda m, x: kpops.linearize(m.network(), x),
    ).norm[-1]
    expected = abs(kpops.linearize(whole.network(), task.inputs).states).max()
    assert float(final) == float(expected)


@pytest.mark.parametrize(
    ("model", "dimension", "error", "message"),
    [
        (3, 2, TypeError, "model is the number 3: pass the network"),
        (nn.Linear(2, 2).requires_grad_(False), 2, ValueError, "unfreeze some"),
        (nn.Linear(2, 2), 7, ValueError, "dimension=7: choose an int from 1 to 6"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()), 2, TypeError, "mixes"),
    ],
)
def test_models_without_a_subspace_are_refused(model, dimension, error, message):
    with pytest.raises(error, match=message):
        InSubspace(model, dimension)
