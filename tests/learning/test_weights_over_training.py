"""Weights over training: principal components, correlated modes, and exact linear dynamics."""

import copy

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import kpops
from kpops.training import correlated_modes, weight_pca, weight_trajectories


def saved(values, steps=None):
    """Checkpoints of two parameters from weights (step, parameter)."""
    steps = range(len(values)) if steps is None else steps
    return [
        (step, {"a": torch.tensor(row[:2]), "b": torch.tensor(row[2:])[None]})
        for step, row in zip(steps, np.asarray(values), strict=True)
    ]


def test_trajectories_are_the_entries_of_the_state_dicts(tmp_path):
    network = kpops.Network(nn.GRU(3, 4), nn.Linear(4, 3))
    task = kpops.tasks.memory_pro(10, rng=0)
    kpops.training.train(
        network, task, folder=tmp_path, max_steps=4, batch_size=5, checkpoint_every=2, rng=0
    )
    weights = weight_trajectories(tmp_path)
    assert weights.step.values.tolist() == [0, 2, 4]
    for name, value in network.state_dict().items():
        mine = weights.sel(step=4)[weights.parameter_name == name]
        np.testing.assert_array_equal(mine, value.flatten())
    chosen = weight_trajectories(tmp_path, lambda name: name.startswith("readout"))
    assert sorted(set(chosen.parameter_name.values)) == ["readout.bias", "readout.weight"]
    np.testing.assert_array_equal(chosen, weights[:, -15:])
    lin = kpops.linearize(network, task.inputs)
    of_recurrent = weight_trajectories(tmp_path, [f"recurrent.{n}" for n in lin.parameters])
    assert of_recurrent.sizes["parameter"] == lin.parameter_space.size


def test_checkpoints_come_in_the_order_of_their_steps_without_integers():
    weights = np.arange(8.0).reshape(2, 4)
    pairs = saved(weights, [20, 10])
    for _, state in pairs:
        state["count"] = torch.tensor(3)
    result = weight_trajectories(pairs)
    assert result.step.values.tolist() == [10, 20]
    np.testing.assert_array_equal(result, weights[::-1])


def test_components_are_those_of_the_svd_of_the_centred_weights():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((6, 40)) @ np.diag(np.linspace(3, 0.1, 40))
    result = weight_pca(saved(values, [0, 1, 2, 5, 10, 20]))
    centred = values - values.mean(0)
    u, s, vt = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(result.variance[:5], s[:5] ** 2 / 5, rtol=1e-12)
    np.testing.assert_allclose(abs(result.axis.values[:5] @ vt[:5].T), np.eye(5), atol=1e-12)
    np.testing.assert_allclose(abs(result.score[:, :5]), abs(u * s)[:, :5], atol=1e-12)
    assert result.score.step.values.tolist() == [0, 1, 2, 5, 10, 20]
    assert set(result.parameter_name.values) == {"a", "b"}


def test_a_random_walk_has_cosines_as_scores():
    """Antognini and Sohl-Dickstein (2018): component k of a walk holds 6 / (pi^2 k^2) of it."""
    rng = np.random.default_rng(0)
    walk = rng.standard_normal((100, 20_000)).cumsum(0)
    result = weight_pca(saved(walk))
    k = np.arange(1, 4)
    np.testing.assert_allclose(result.explained[:3], 6 / (np.pi * k) ** 2, rtol=0.02)
    cosine = np.cos(np.pi * (np.arange(100) + 0.5) / 100)
    assert abs(np.corrcoef(cosine, result.score[:, 0])[0, 1]) > 0.999


def test_weights_made_of_few_courses_are_decomposed_exactly():
    rng = np.random.default_rng(0)
    t = np.linspace(0, 1, 30)
    courses = np.stack([np.exp(-5 * t), t**2, np.sin(9 * t)])
    kind = np.repeat([0, 1, 2], [60, 30, 10])
    slope, offset = rng.normal(size=(2, 100)) + 0.1
    weights = slope * courses[kind].T + offset
    weights = np.concatenate([weights, np.full((30, 1), 0.3)], 1)  # and one that never changes
    result = correlated_modes(saved(weights), 3, rng=0)
    assert result.cluster.values.tolist() == [*(kind + 1), 0]
    assert result.n_weights.values.tolist() == [60, 30, 10]
    assert float(result.explained) == pytest.approx(1, abs=1e-12)
    fitted = result.course.values[:, np.append(kind, 0)] * result.slope.values
    np.testing.assert_allclose(fitted + result.offset.values, weights, atol=1e-12)
    np.testing.assert_allclose(result.course.mean("step"), 0, atol=1e-13)
    np.testing.assert_allclose((result.course**2).mean("step"), 1, rtol=1e-12)
    np.testing.assert_allclose(abs(result.correlation[:-1]), 1, rtol=1e-12)


def test_a_sample_finds_the_same_modes_and_pca_holds_at_least_as_much():
    rng = np.random.default_rng(1)
    t = np.linspace(0, 1, 20)
    courses = np.stack([t, np.cos(12 * t)])
    weights = courses[rng.integers(2, size=400)].T * rng.normal(size=400)
    weights = weights + 0.01 * rng.normal(size=(20, 400))
    whole, sampled = (correlated_modes(saved(weights), 2, sample=n, rng=0) for n in (400, 50))
    assert (whole.cluster == sampled.cluster).mean() > 0.98
    pca = weight_pca(saved(weights))
    for modes in (whole, sampled):
        assert 0.95 < float(modes.explained) <= float(pca.explained[:2].sum())


def test_gradient_descent_on_a_linear_model_has_dmd_eigenvalues_of_its_hessian(tmp_path):
    """theta - theta* is multiplied by 1 - eta H in each step, H the Hessian of the loss."""
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((12, 3)))[0]
    x = (Q * np.sqrt(12 * np.array([1.0, 0.6, 0.2]))).reshape(3, 4, 3)
    task = xr.Dataset(
        {
            "inputs": (("trial", "time", "input"), x),
            "targets": (("trial", "time", "output"), rng.standard_normal((3, 4, 1))),
            "mask": (("trial", "time"), np.ones((3, 4), bool)),
        }
    )
    torch.manual_seed(0)
    eta, model = 0.4, nn.Linear(3, 1, bias=False).double()
    kpops.training.train(
        model,
        task,
        folder=tmp_path,
        max_steps=12,
        batch_size=3,
        learning_rate=eta,
        optimizer="sgd",
        checkpoint_every=1,
        rng=0,
    )
    weights = weight_trajectories(tmp_path).values.T
    augmented = np.concatenate([weights, np.ones((1, 13))])  # the affine map as a linear one
    found = np.linalg.eigvals(augmented[:, 1:] @ np.linalg.pinv(augmented[:, :-1]))
    hessian = 2 * np.array([1.0, 0.6, 0.2])  # of the mean squared error, 2 x^T x / 12
    np.testing.assert_allclose(np.sort(found), np.sort([*(1 - eta * hessian), 1]), atol=1e-10)

    class Step(nn.Module):  # the same model as a step, whose kernel has the same spectrum
        def __init__(self):
            super().__init__()
            self.hidden_size, self.weight = 1, copy.deepcopy(model.weight)

        def forward(self, x, h):
            return x @ self.weight.mT + 0 * h

    lin = kpops.linearize(Step(), torch.from_numpy(x))
    kernel = kpops.eigsh(lin.K, 3, rng=0).eigenvalue.values
    np.testing.assert_allclose(np.sort(1 - eta * 2 * kernel / 12), np.sort(found)[:3], atol=1e-10)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: weight_trajectories([]), ValueError, "checkpoints is empty"),
        (lambda: weight_trajectories(saved(np.ones((2, 4))), ["c"]), ValueError, "no weights"),
        (
            lambda: weight_trajectories(saved(np.ones((2, 4))), lambda n: 0),
            ValueError,
            "chooses no",
        ),
        (lambda: weight_trajectories([(0, 3)]), TypeError, "expected a state dict"),
        (
            lambda: weight_trajectories([*saved(np.ones((1, 4))), (5, {"a": torch.ones(2)})]),
            ValueError,
            "step 5 have other names or sizes",
        ),
        (lambda: weight_pca(saved(np.ones((1, 4)))), ValueError, "those of one checkpoint"),
        (lambda: weight_pca(saved(np.full((2, 4), np.inf))), ValueError, "not finite"),
        (lambda: weight_pca(xr.DataArray(np.ones((2, 3)), dims=("a", "b"))), ValueError, "dims"),
        (lambda: correlated_modes(saved(np.ones((3, 4))), 1), ValueError, "0 weights change"),
        (lambda: correlated_modes(saved(np.eye(4)), 0), ValueError, "n_modes=0"),
        (lambda: correlated_modes(saved(np.eye(4)), 3, sample=2), ValueError, "sample=2"),
        (
            lambda: correlated_modes(saved(np.outer([1.0, 2, 4], np.ones(4))), 2),
            ValueError,
            "the courses form 1 clusters",
        ),
    ],
)
def test_what_has_no_modes_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
