"""Branches of fixed points: their places, eigenvalues, stability, ends and turns."""

import copy

import numpy as np
import pytest
import torch
from families import NORMAL_FORMS, Family, rnn
from systems import normal, random_cell, with_eigenvalues
from torch import nn

import kpops


def follow(f, start, span=(-0.31, 0.29), **options):
    points = np.array([start], float)
    return kpops.continuation(Family(f), points, "mu", span, **{"step": 0.05} | options)


def rows_of(found, branch):
    """One branch without its padding."""
    return found.isel(branch=branch, point=slice(int(found.n_points[branch])))


def test_both_arms_of_a_pitchfork_are_followed_and_stable():
    found = follow(*NORMAL_FORMS["pitchfork"][:2], switch=True)
    assert found.sizes["branch"] == 3 and found.parent.values.tolist() == [-1, 0, 0]
    assert found.end.values.tolist() == ["span"] * 3
    for branch in (1, 2):
        arm = rows_of(found, branch)
        np.testing.assert_allclose(arm.state[:, 0] ** 2, arm.parameter, atol=1e-12)
        np.testing.assert_allclose(arm.eigenvalue_real[:, 0], 1 - 2 * arm.parameter, atol=1e-7)
        assert arm.is_stable[1:].all() and (arm.n_unstable[1:] == 0).all()
    signs = [float(np.sign(rows_of(found, branch).state[-1, 0])) for branch in (1, 2)]
    assert sorted(signs) == [-1, 1]
    trunk = rows_of(found, 0)
    assert (trunk.state == 0).all()
    assert (trunk.n_unstable.values == (trunk.parameter.values > 0)).all()


def test_both_sides_of_a_transcritical_point_are_followed():
    found = follow(*NORMAL_FORMS["transcritical"][:2], switch=True)
    assert found.kind.values.tolist() == ["transcritical"]
    others = [rows_of(found, branch) for branch in (1, 2)]
    for other in others:
        np.testing.assert_allclose(3 * other.state[:, 0], other.parameter, atol=1e-9)
    reached = sorted(float(other.parameter[-1]) for other in others)
    np.testing.assert_allclose(reached, [-0.31, 0.29], atol=1e-12)


def test_a_pitchfork_is_found_from_its_curved_side():
    found = follow(NORMAL_FORMS["pitchfork"][0], [0.29**0.5], (0.29, -0.31), switch=True)
    assert found.kind.values[0] == "pitchfork"
    assert abs(found.event_parameter[0].item()) < 1e-9
    curve = rows_of(found, 0)
    assert curve.state[0, 0] > 0 > curve.state[-1, 0]  # it goes on along the other arm
    np.testing.assert_allclose(curve.state[:, 0] ** 2, curve.parameter, atol=1e-12)
    trunks = [rows_of(found, branch) for branch in (1, 2)]
    for trunk in trunks:
        np.testing.assert_allclose(trunk.state[1:], 0, atol=1e-9)
    reached = sorted(float(trunk.parameter[-1]) for trunk in trunks)
    np.testing.assert_allclose(reached, [-0.31, 0.29], atol=1e-12)


def test_a_fold_turns_the_branch_back():
    found = follow(*NORMAL_FORMS["fold"][:2])
    branch = rows_of(found, 0)
    np.testing.assert_allclose(branch.parameter, -2 * branch.state[:, 0] ** 2, atol=1e-12)
    np.testing.assert_allclose(branch.eigenvalue_real[:, 0], 1 + 4 * branch.state[:, 0], atol=1e-7)
    assert branch.parameter[-1] == branch.parameter[0] and branch.state[-1, 0] > 0
    assert (branch.is_stable.values == (branch.state.values[:, 0] < 0)).all()
    between = np.hypot(np.diff(branch.state[:, 0]), np.diff(branch.parameter) / 0.6)
    np.testing.assert_allclose(np.diff(branch.length), between, atol=1e-12)
    assert between.max() < 0.05 * 1.04  # a step and its correction


def test_a_bubble_between_two_pitchforks_is_followed_once_and_closed():
    # h = 0, and the circle h^2 = mu (1 - mu).
    f = lambda h, mu: h + h * (mu * (1 - mu) - h**2) / 2  # noqa: E731
    found = follow(f, [0], (-0.5, 1.5), step=0.05, switch=True)
    assert found.end.values.tolist() == ["span", "closed"]
    assert set(found.kind.values) == {"pitchfork"}
    trunk = found.event_branch.values == 0
    np.testing.assert_allclose(found.event_parameter[trunk], [0, 1], atol=1e-8)
    bubble = rows_of(found, 1)
    mu = bubble.parameter.values
    np.testing.assert_allclose(bubble.state[:, 0] ** 2, mu * (1 - mu), atol=1e-9)
    assert bubble.state.max() > 0.49 and bubble.state.min() < -0.49


def test_eigenvalues_along_a_branch_are_those_of_the_dense_jacobian():
    cell = random_cell(nn.GRUCell(2, 5), scale=1.4)
    x = normal(2, seed=2)
    start = kpops.fixed_points(cell, normal(30, 5), input=x)
    start = start.isel(point=(start.kind == "fixed").values).isel(point=[0])
    W = cell.weight_hh.detach().clone()
    found = kpops.continuation(cell, start, lambda g: {"weight_hh": g * W}, (1.0, 0.6))
    branch = rows_of(found, 0)
    for i in (0, branch.sizes["point"] // 2, -1):
        there = copy.deepcopy(cell)
        with torch.no_grad():
            there.weight_hh.copy_(float(branch.parameter[i]) * W)
        h = torch.from_numpy(branch.state[i].values)
        there.requires_grad_(False)
        step = lambda g, there=there: there(x[None], g[None])[0]  # noqa: E731
        assert float((step(h) - h).norm()) < 1e-13
        dense = np.linalg.eigvals(torch.autograd.functional.jacobian(step, h).numpy())
        ours = branch.eigenvalue_real[i].values + 1j * branch.eigenvalue_imag[i].values
        np.testing.assert_allclose(np.sort_complex(ours), np.sort_complex(dense), atol=1e-10)
        assert int(branch.n_unstable[i]) == (np.abs(dense) > 1).sum()


def toy(*weights):
    """Two units without coupling, as in arXiv:2605.12763, and their checkpoints."""
    cell, _ = rnn(np.zeros((2, 2)))
    steps = []
    for step, diagonal in enumerate(weights):
        with torch.no_grad():
            cell.weight_hh.copy_(torch.diag(torch.tensor(diagonal, dtype=torch.float64)))
        steps.append((10 * step, copy.deepcopy(cell.state_dict())))
    return cell, steps


def test_the_toy_passes_two_pitchforks_between_its_checkpoints():
    cell, checkpoints = toy([0.5, 0.6], [1.5, 1.2])
    found = kpops.continuation(cell, np.zeros((1, 2)), checkpoints, switch=True, step=0.04)
    first = found.isel(event=(found.event_branch == 0).values)
    assert first.kind.values.tolist() == ["pitchfork"] * 2
    np.testing.assert_allclose(first.event_parameter, [5, 20 / 3], rtol=1e-10)
    np.testing.assert_allclose(first.coefficient, [-1 / 3, -1 / 3], rtol=1e-6)
    # All 9 points of the end are reached: each unit is at 0, m or -m.
    ends = np.stack([rows_of(found, b).state[-1].values for b in range(found.sizes["branch"])])
    m = np.array([0.0, 0.0])
    for _ in range(2000):
        m = np.tanh(np.array([1.5, 1.2]) * np.where(m == 0, 0.5, m))
    assert {tuple(row) for row in (ends / m).round(6) + 0.0} == {
        (a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)
    }


def test_a_path_of_checkpoints_goes_through_all_of_them():
    cell, checkpoints = toy([0.5, 0.6], [0.9, 1.1], [1.5, 1.2])
    found = kpops.continuation(cell, np.zeros((1, 2)), checkpoints)
    assert set(found.parameter.values[0]) >= {0.0, 10.0, 20.0}
    np.testing.assert_allclose(found.event_parameter, [8, 10 + 10 / 6], rtol=1e-10)
    back = kpops.continuation(cell, np.zeros((1, 2)), checkpoints, (20, 0))
    np.testing.assert_allclose(back.event_parameter, [10 + 10 / 6, 8], rtol=1e-10)
    part = kpops.continuation(cell, np.zeros((1, 2)), checkpoints, (5, 9))
    np.testing.assert_allclose(part.event_parameter, [8], rtol=1e-10)


def test_a_branch_goes_on_around_the_corner_at_a_checkpoint():
    # h = b for W = 0 with small steps of b up and down: tanh(b) turns at the checkpoint.
    cell, _ = rnn(np.zeros((1, 1)))
    checkpoints = []
    for step, bias in enumerate([0.0, 0.5, -0.5]):
        with torch.no_grad():
            cell.bias_hh.fill_(bias)
        checkpoints.append((step, copy.deepcopy(cell.state_dict())))
    found = kpops.continuation(cell, np.zeros((1, 1)), checkpoints)
    bias = np.interp(found.parameter[0], [0, 1, 2], [0, 0.5, -0.5])
    np.testing.assert_allclose(found.state[0, :, 0], np.tanh(bias), atol=1e-14)
    assert found.sizes["event"] == 0 and found.end.item() == "span"


def test_results_keep_the_dtype():
    cell, W = rnn(with_eigenvalues([0.8, 0.3, -0.5]))
    single = lambda g: {"weight_hh": g * W.float()}  # noqa: E731
    found = kpops.continuation(cell.float(), torch.zeros(1, 3), single, (0.5, 1.6), switch=True)
    for name in ("state", "parameter", "eigenvalue_real", "event_parameter", "coefficient"):
        assert found[name].dtype == np.float32
    assert found.kind.values.tolist() == ["pitchfork"]
    assert found.event_parameter.item() == pytest.approx(1.25, abs=1e-4)
    assert found.attrs["dtype"] == "float32"


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("last", [-0.1, 0.29], ids=["no event", "one event"])
def test_results_go_into_files(last, tmp_path):
    import xarray as xr

    found = follow(*NORMAL_FORMS["pitchfork"][:2], (-0.31, last), switch=True)
    found.to_netcdf(tmp_path / "a.nc")
    found.to_zarr(tmp_path / "a.zarr")
    with xr.open_dataset(tmp_path / "a.nc") as again:
        xr.testing.assert_equal(again.load(), found)
    assert all("long_name" in found[name].attrs for name in found.data_vars)
    xr.testing.assert_identical(
        found, follow(*NORMAL_FORMS["pitchfork"][:2], (-0.31, last), switch=True)
    )


def test_the_model_is_left_alone_and_may_have_a_readout():
    network = kpops.Network(nn.RNN(1, 3, bias=False), nn.Linear(3, 2)).double()
    before = copy.deepcopy(network.state_dict())
    W = network.recurrent.weight_hh_l0.detach().clone()
    W /= np.abs(np.linalg.eigvals(W.numpy())).max()
    path = lambda g: {"weight_hh_l0": g * W}  # noqa: E731
    found = kpops.continuation(network, np.zeros((1, 3)), path, (0.5, 1.2))
    np.testing.assert_allclose(found.event_parameter[0], 1, atol=1e-8)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())

    checkpoints = []
    for step, g in ((0, 0.5), (7, 1.2)):
        network.recurrent.weight_hh_l0.data.copy_(g * W)
        checkpoints.append((step, copy.deepcopy(network.state_dict())))
    over = kpops.continuation(network, np.zeros((1, 3)), checkpoints)
    np.testing.assert_allclose(over.event_parameter[0], 5, atol=1e-7)


def test_a_line_of_fixed_points_has_no_bifurcation():
    W = with_eigenvalues([1.0, 0.5, 0.2])
    with pytest.raises(ValueError, match="eigenvalue of 1, to rounding, at point 0"):
        kpops.continuation(
            Family(lambda h, mu: h @ torch.from_numpy(W).T + 0 * mu), np.zeros((1, 3)), "mu", (0, 1)
        )


def test_branches_that_end_early_warn():
    with pytest.warns(kpops.ConvergenceWarning, match="1 branches ended with 'max_points'"):
        found = follow(*NORMAL_FORMS["pitchfork"][:2], max_points=5)
    assert found.sizes["point"] == 5 and found.end.item() == "max_points"


def square(h, mu):
    return 0.5 * h + mu


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"along": "nu"},
            ValueError,
            r"along='nu' is no parameter of Family: choose from \['mu'\]",
        ),
        ({"along": 3}, TypeError, "along is the number 3: pass the name of a parameter"),
        ({"along": nn.Linear(1, 1)}, TypeError, "along is a model .Linear.: pass the name"),
        ({"along": "folder/of/checkpoints"}, ValueError, "is no parameter of Family"),
        ({"along": [1, 2]}, TypeError, r"pass pairs \(step, state_dict\)"),
        ({"along": [(0, {"mu": torch.zeros(())})]}, ValueError, "pass two checkpoints or more"),
        ({"along": lambda mu: mu}, TypeError, "is a tensor .*: return a dict of tensors by the"),
        ({"along": lambda mu: {"nu": mu}}, ValueError, r"has 'nu': choose from \['mu', 'input'\]"),
        ({"along": lambda mu: {"mu": mu[None]}}, ValueError, r"return a tensor of shape \(\)"),
        ({"along": lambda mu: {"mu": mu.float()}}, ValueError, "torch.float32: return a tensor"),
        ({"along": lambda mu: {"mu": mu / 0}}, ValueError, "not finite: choose another span"),
        ({"span": None}, ValueError, r"span is None: pass \(first, last\)"),
        ({"span": (1, 1)}, ValueError, r"span=\(1, 1\): pass two different numbers"),
        ({"span": (0, np.nan)}, ValueError, "pass two finite numbers"),
        ({"span": 3}, ValueError, r"span=3: pass two finite numbers, \(first, last\)"),
        ({"points": np.ones((1, 1))}, ValueError, "point 0 moves by 0.5 in a step at 0, the begin"),
        ({"points": np.zeros((1, 1)) * np.nan}, ValueError, "points is not finite"),
        ({"points": np.zeros(1)}, ValueError, r"shape \(1,\), expected \(point, unit\)"),
        ({"points": np.zeros((1, 1), "f")}, TypeError, "points is torch.float32, the model"),
        ({"input": np.zeros((2, 3))}, ValueError, "input has shape"),
        ({"step": 0}, ValueError, "step=0: choose a length above 0"),
        ({"step": "short"}, TypeError, "step is the string 'short': pass a real number"),
        ({"max_points": 1}, ValueError, "max_points=1: choose an int of 2 or more"),
        ({"switch": "yes"}, TypeError, "switch='yes': pass True or False"),
        ({"model": "model.pt"}, TypeError, "model is the string 'model.pt'"),
    ],
)
def test_wrong_arguments_are_refused_by_name(change, error, message):
    call = {"model": Family(square), "points": np.zeros((1, 1)), "along": "mu", "span": (0, 1)}
    with pytest.raises(error, match=message):
        kpops.continuation(**call | change)


def test_a_parameter_of_many_numbers_is_refused_with_a_path():
    cell, _ = rnn(np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"\(2, 2\) and is not one number: pass a function"):
        kpops.continuation(cell, np.zeros((1, 2)), "weight_hh", (0, 1))
    with pytest.raises(ValueError, match="two different numbers from 0 to 10, as the checkpoints"):
        kpops.continuation(*_with(toy([0.5, 0.6], [1.5, 1.2])), (0, 11))


def test_checkpoints_that_differ_in_a_buffer_are_refused():
    class Masked(Family):
        def __init__(self, mask):
            super().__init__(torch.mul)
            self.register_buffer("mask", torch.tensor(mask).double())

        def forward(self, x, h):
            return self.mu * self.mask * torch.tanh(h)

    saved = [Masked(mask).state_dict() for mask in (1.0, 1.0, 3.0)]
    rest = np.zeros((1, 1))
    found = kpops.continuation(Masked(1.0), rest, list(enumerate(saved[:2])))
    assert found.end.values.tolist() == ["span"]
    with pytest.raises(ValueError, match="buffer 'mask' differs between the model and a checkp"):
        kpops.continuation(Masked(1.0), rest, list(enumerate(saved)))


def _with(cell_and_checkpoints):
    cell, checkpoints = cell_and_checkpoints
    return cell, np.zeros((1, 2)), checkpoints
