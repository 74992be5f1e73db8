"""Distances between networks: invariance, nulls, agreement with dsa-metric."""

import koopman_systems as systems
import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import kpops
from kpops.koopman.similarity import angle, dynamical_angle, procrustes_angle

pytest.importorskip("pydmd", exc_type=ImportError)

METHODS = ["dsa", "koopman", "cka", "procrustes"]


class Turned(nn.Module):
    """A cell, whose units are rotated: h' = Q cell(x, Q^T h)."""

    def __init__(self, cell, Q):
        super().__init__()
        self.cell, self.Q = cell, Q
        self.hidden_size, self.input_size = cell.hidden_size, cell.input_size

    def forward(self, x, h):
        return self.cell(x, h @ self.Q) @ self.Q.T


@pytest.fixture(scope="module")
def networks():
    """A trained cell, the same with rotated units, and its untrained twin."""
    torch.manual_seed(0)
    task = kpops.tasks.memory_pro(200, steps=(4, 8, 6), noise=0.1, rng=0)
    inputs = torch.from_numpy(task.inputs.values).double()
    targets = torch.from_numpy(task.targets.values).double()
    cell, readout = nn.GRUCell(3, 12).double(), nn.Linear(12, 3).double()
    untrained = nn.GRUCell(3, 12).double()
    untrained.load_state_dict(cell.state_dict())
    optimizer = torch.optim.Adam([*cell.parameters(), *readout.parameters()], 0.02)
    for _ in range(100):
        h, outputs = torch.zeros(200, 12).double(), []
        for x_t in inputs.unbind(1):
            h = cell(x_t, h)
            outputs.append(readout(h))
        loss = (torch.stack(outputs, 1) - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.03
    Q = torch.from_numpy(systems.orthogonal(12, np.random.default_rng(0)))
    models = {"trained": cell, "turned": Turned(cell, Q), "untrained": untrained}
    return {name: kpops.linearize(model, inputs) for name, model in models.items()}


@pytest.mark.parametrize("method", METHODS)
def test_a_rotation_of_the_units_changes_nothing(networks, method):
    found = kpops.compare(networks, method, rng=0).distance
    twins = found.sel(network="trained", network2="turned").item()
    assert twins < (1e-7 if method == "cka" else 1e-10)  # an arc cosine near one
    assert found.sel(network="trained", network2="untrained") > 1e-2
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(np.diag(found), 0)


def test_the_alignment_of_rotated_networks_is_one(networks):
    found = kpops.compare(networks, "cka").similarity
    assert found.sel(network="trained", network2="turned") == pytest.approx(1, abs=1e-12)
    assert found.sel(network="trained", network2="untrained") < 0.99


@pytest.mark.parametrize(("method", "n"), [("dsa", 3), ("koopman", 40)])
def test_training_moves_the_dynamics_by_more_than_the_null(networks, method, n):
    found = kpops.compare(networks, method, rank=6, n_permutations=n, rng=0)
    apart = found.sel(network="trained", network2="untrained")
    assert apart.distance > apart.null_mean + 10 * apart.null_std
    assert apart.p_value == pytest.approx(1 / (2 * n + 1))
    twins = found.sel(network="trained", network2="turned")
    assert twins.p_value == 1


@pytest.mark.parametrize("method", ["cka", "procrustes"])
def test_networks_of_the_same_trials_are_nearer_than_those_of_permuted_ones(networks, method):
    found = kpops.compare(networks, method, n_permutations=50, rng=0)
    twins = found.sel(network="trained", network2="turned")
    assert twins.p_value == pytest.approx(1 / 51)
    assert twins.distance < twins.null_mean - 3 * twins.null_std


def test_the_same_seed_gives_the_same_numbers(networks):
    two = {name: networks[name] for name in ("trained", "untrained")}
    first, second = (kpops.compare(two, "dsa", rank=3, n_permutations=2, rng=5) for _ in range(2))
    xr.testing.assert_identical(first, second)


def test_under_the_null_p_is_no_smaller_than_chance():
    # Both networks are samples of the same system: p <= 0.1 for a tenth of the repeats at most.
    rng = np.random.default_rng(0)
    A = systems.planted([0.9, 0.6 + 0.5j], rng)
    p = []
    for _ in range(40):
        x, y = (
            systems.linear(A, 12, 12, rng) + 0.1 * rng.standard_normal((12, 12, 3))
            for _ in range(2)
        )
        found = kpops.compare([x, y], "koopman", n_permutations=20, rng=rng)
        p.append(found.p_value.values[0, 1])
    assert np.mean(np.array(p) <= 0.1) <= 0.2


@pytest.mark.parametrize("n", [2, 5, 9])
def test_orthogonally_similar_matrices_have_angle_zero(n):
    rng = np.random.default_rng(n)
    for reflect in (False, True):
        a, C = rng.standard_normal((n, n)), systems.orthogonal(n, rng)
        if (np.linalg.det(C) < 0) != reflect:
            C[0] *= -1
        assert dynamical_angle(a, C @ a @ C.T, rng) < 1e-12


def test_matrices_with_repeated_eigenvalues_have_angle_zero():
    rng = np.random.default_rng(0)
    C = systems.orthogonal(6, rng)
    for a in (
        np.eye(6),
        np.diag([1.0, 1, 1, 0.5, 0.5, 0.2]),
        np.kron(np.eye(3), [[0, 1], [-1, 0]]),
    ):
        assert dynamical_angle(a, C @ a @ C.T, rng) < 1e-10


def test_the_angle_is_exact_for_symmetric_matrices():
    # Sorted eigenvalues are the best match of two symmetric matrices.
    rng = np.random.default_rng(0)
    values = np.sort(rng.standard_normal((2, 6)), 1)
    expected = angle(values[0], values[1])
    turned = [C @ np.diag(v) @ C.T for v in values for C in [systems.orthogonal(6, rng)]]
    assert dynamical_angle(*turned, rng) == pytest.approx(expected, abs=1e-8)


def test_the_search_finds_no_larger_angle_than_dsa_metric():
    metric = pytest.importorskip("DSA.simdist", exc_type=ImportError)
    rng = np.random.default_rng(0)
    for _ in range(2):
        a, b = rng.standard_normal((2, 5, 5))
        torch.manual_seed(0)
        theirs = metric.SimilarityTransformDist(iters=300, lr=0.02).fit_score(
            a.copy(), b.copy(), score_method="angular"
        )
        assert dynamical_angle(a, b, rng) <= float(theirs) + 1e-3


def test_the_procrustes_angle_is_that_of_the_nuclear_norm():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((30, 4)), rng.standard_normal((30, 6))
    a, b = x - x.mean(0), y - y.mean(0)
    cosine = np.linalg.norm(a.T @ b, "nuc") / np.linalg.norm(a) / np.linalg.norm(b)
    assert procrustes_angle(x, y) == pytest.approx(np.arccos(cosine), rel=1e-12)


def test_alignment_is_that_of_the_kernels():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((5, 6, 4)), rng.standard_normal((5, 6, 7))
    centre = np.eye(30) - 1 / 30
    k, m = (centre @ z.reshape(30, -1) @ z.reshape(30, -1).T @ centre for z in (x, y))
    expected = (k * m).sum() / np.linalg.norm(k) / np.linalg.norm(m)
    found = kpops.compare([x, y], "cka").similarity.values[0, 1]
    assert found == pytest.approx(expected, rel=1e-10)


def test_trials_of_unequal_lengths_are_compared_by_lists_and_masks():
    rng = np.random.default_rng(0)
    A = systems.planted([0.9, 0.6 + 0.5j], rng)
    x = systems.linear(A, 8, 12, rng)
    lengths = np.array([12, 11, 10, 9, 8, 7, 6, 5])
    mask = np.arange(12) < lengths[:, None]
    listed = [trial[:n] for trial, n in zip(x, lengths, strict=True)]
    turned = [trial @ systems.orthogonal(3, np.random.default_rng(1)) for trial in listed]
    padded = np.where(mask[..., None], x, 0)
    for method in METHODS:
        found = kpops.compare(
            {"list": listed, "turned": turned, "padded": padded},
            method,
            masks={"padded": mask},
            n_permutations=3,
            rng=0,
        )
        assert found.distance.max() < 1e-7
        assert found.null_mean.sel(network="list", network2="padded").notnull()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", METHODS)
def test_distances_have_the_dtype_of_the_states(method, dtype):
    rng = np.random.default_rng(0)
    A = systems.planted([0.9, 0.6 + 0.5j], rng)
    x = systems.linear(A, 12, 10, rng).astype(dtype)
    turned = x @ systems.orthogonal(3, rng).astype(dtype)
    found = kpops.compare([x, turned], method, n_permutations=2, rng=0)
    assert {v.dtype for v in found.data_vars.values()} == {np.dtype(dtype)}
    assert found.distance.max() < 30 * np.sqrt(np.finfo(dtype).eps)


def test_trials_in_another_order_are_refused_where_steps_are_compared():
    x = np.random.default_rng(0).standard_normal((4, 9, 3))
    x = xr.DataArray(x, dims=("trial", "time", "unit"), coords={"trial": range(4)})
    other = x.sel(trial=[2, 0, 3, 1])
    for method in ("cka", "procrustes"):
        with pytest.raises(
            ValueError, match=r"networks\[1\] has the trial 2 where networks\[0\] has 0"
        ):
            kpops.compare([x, other], method)
        later = x.assign_coords(trial=range(4, 8))  # no label in common
        assert kpops.compare([x, later], method).distance.max() < 1e-7
    assert kpops.compare([x, other], "koopman").distance.max() < 1e-10


def test_numbers_of_numpy_are_options():
    x, y = np.random.default_rng(0).standard_normal((2, 4, 9, 3))
    found = kpops.compare([x, y], "koopman", rank=np.int64(2), delays=np.int64(2))
    assert found.identical(kpops.compare([x, y], "koopman", rank=2, delays=2))


def test_an_operator_of_zero_has_no_angle():
    x = np.random.default_rng(0).standard_normal((2, 4, 9, 3))
    x[0, :, 1:] = 0
    with pytest.raises(ValueError, match="an operator is zero, which has no angle"):
        kpops.compare([*x], "dsa", rng=0)


def test_results_can_be_saved(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 9, 3))
    found = kpops.compare({"a": x[0], "b": x[1]}, "cka", n_permutations=3, rng=0)
    found.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    found.to_zarr(tmp_path / "a.zarr", consolidated=False)
    xr.testing.assert_identical(xr.open_zarr(tmp_path / "a.zarr", consolidated=False).load(), found)


def test_bad_networks_are_refused():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 4, 9, 3))
    cases = [
        ([x], {}, "networks has 1 entries: pass two or more"),
        ([x, y], {"method": "rsa"}, "method='rsa': choose one of 'dsa', 'koopman'"),
        ({"a": x, "b": np.ones((4, 9, 3))}, {}, r"networks\['b'\] is constant"),
        ([x, y[:, :1]], {}, r"networks\[1\] has 1 steps in trial 0"),
        ([x, y[:3]], {"method": "cka"}, r"4 x 9 steps, networks\[1\] of 3 x 9"),
        ([x, y[:, :8]], {"method": "procrustes"}, "4 x 9 steps.*4 x 8"),
        ([x[:1], y[:1]], {"n_permutations": 2}, "has 1 trial, and the null permutes"),
        ([x[:1], y[:1]], {"method": "cka", "n_permutations": 2}, "1 trial, and the null permutes"),
        ([x, y], {"n_permutations": -1}, "n_permutations=-1: choose an int of 0 or more"),
        (
            [x, y],
            {"rank": 5},
            "rank=5: choose an int from 1 to 3, the rank",
        ),
        ([x, y], {"rank": 41}, "rank=41: choose an int from 1 to 40"),
        ([x, y], {"masks": {"c": None}}, r"masks has \['c'\], which are no networks"),
        ([x, y], {"masks": [None]}, "masks is a list of 1: pass a dict, or a list of 2"),
        ([x, y], {"masks": [None] * 3}, "masks is a list of 3: pass a dict, or a list of 2"),
        ([x, y], {"masks": np.ones((2, 4, 9))}, "masks is an array of shape .*: pass a dict"),
        ({1: x, "1": y}, {}, "networks has the names .*give each a text of its own"),
    ]
    for networks, options, words in cases:
        with pytest.raises(ValueError, match=words):
            kpops.compare(networks, **options)
    with pytest.raises(TypeError, match="networks is an array of shape"):
        kpops.compare(x)
    with pytest.raises(TypeError, match=r"networks\[1\] is complex"):
        kpops.compare([x, y * 1j])
