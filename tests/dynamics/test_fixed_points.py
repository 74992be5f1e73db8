"""Fixed points and slow points against closed forms, by their place, kind and stability."""

import numpy as np
import pytest
import torch
from torch import nn

import kpops
from kpops.dynamics.fixed_points import fixed_points
from kpops.dynamics.search_points import Map, merge, nearest, search
from kpops.models.recurrence import as_recurrence


class Function(nn.Module):
    """h' = f(h), whatever the input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, h):
        return self.function(h)


def find(function, starts, **options):
    starts = torch.as_tensor(np.asarray(starts), dtype=torch.float64)
    return fixed_points(Function(function), starts, **options)


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def orthogonal(n, seed=0):
    return torch.linalg.qr(random(n, n, seed=seed))[0]


def eigenvalues(points):
    return points.eigenvalue_real.values + 1j * points.eigenvalue_imag.values


@pytest.mark.parametrize("scale", [0.5, 3.0], ids=["contracting", "expanding"])
def test_a_linear_map_has_one_fixed_point(scale):
    W, b = scale * random(6, 6) / 6**0.5, random(6, seed=1)
    points = find(lambda h: h @ W.T + b, 10 * random(20, 6, seed=2))
    assert points.sizes["point"] == 1 and points.basin_count.values.tolist() == [20]
    expected = torch.linalg.solve(torch.eye(6).double() - W, b)
    np.testing.assert_allclose(points.state[0], expected, rtol=1e-10)
    values = np.linalg.eigvals(W.numpy())
    expected = sorted(values, key=lambda v: (-round(abs(v), 9), -v.imag))
    np.testing.assert_allclose(eigenvalues(points)[0], expected, atol=1e-12)
    np.testing.assert_allclose(points.time_constant[0], -1 / np.log(np.abs(expected)), rtol=1e-10)
    assert points.n_unstable.item() == (abs(values) > 1).sum()
    assert points.spectral_radius.item() == pytest.approx(abs(values).max(), rel=1e-12)


@pytest.mark.parametrize("mu", [-0.2, 0.2, 0.01])
def test_pitchfork_has_its_roots_and_stabilities(mu):
    points = find(lambda h: (1 + mu) * h - h**3, np.linspace(-0.55, 0.55, 12)[:, None])
    roots = [-(mu**0.5), mu**0.5, 0] if mu > 0 else [0]
    assert points.kind.values.tolist() == ["fixed"] * len(roots)
    np.testing.assert_allclose(points.state[:, 0], roots, atol=1e-12)
    multipliers = [1 - 2 * mu] * (len(roots) - 1) + [1 + mu]
    np.testing.assert_allclose(eigenvalues(points)[:, 0], multipliers, atol=1e-11)
    assert points.is_stable.values.tolist() == [m < 1 for m in multipliers]
    assert points.n_unstable.values.tolist() == [int(m > 1) for m in multipliers]
    assert points.basin_count.sum() == 12


def test_at_the_pitchfork_the_point_is_neither_stable_nor_unstable():
    points = find(lambda h: h - h**3, [[0.0]])
    assert points.n_unstable.item() == 0 and not points.is_stable.item()
    assert np.isinf(points.time_constant.item())


@pytest.mark.parametrize("eps", [1e-2, 1e-6])
def test_the_ghost_of_a_fold_is_a_slow_point(eps):
    # In the coordinates (u, v) = Q^T h: u' = u + eps + u^2 and v' = v / 2.
    Q = orthogonal(2)

    def ghost(h):
        u, v = (h @ Q).unbind(-1)
        return torch.stack([u + eps + u**2, v / 2], -1) @ Q.T

    points = find(ghost, 0.3 * random(10, 2, seed=3))
    assert points.kind.values.tolist() == ["slow"] and points.converged.all()
    assert points.basin_count.item() == 10
    np.testing.assert_allclose(points.state[0], 0, atol=1e-6)
    assert points.speed.item() == pytest.approx(eps, rel=1e-9)
    np.testing.assert_allclose(eigenvalues(points)[0], [1, 0.5], atol=1e-5)


def test_beyond_the_fold_there_are_a_node_and_a_saddle():
    points = find(lambda h: h - 0.04 + h**2, [[-0.3], [-0.1], [0.1], [0.3]])
    assert points.kind.values.tolist() == ["fixed", "fixed"]
    np.testing.assert_allclose(points.state[:, 0], [-0.2, 0.2], rtol=1e-12)
    np.testing.assert_allclose(eigenvalues(points)[:, 0], [0.6, 1.4], rtol=1e-12)


def test_a_loose_tolerance_takes_slow_points_for_fixed_ones():
    strict, loose = (find(lambda h: h + 1e-3 + h**2, [[0.1]], tol=t) for t in (0, 2e-3))
    assert strict.kind.item() == "slow" and loose.kind.item() == "fixed"
    assert strict.speed.item() <= loose.speed.item() <= 2e-3


@pytest.mark.filterwarnings("ignore::kpops.ConvergenceWarning")
def test_maps_whose_derivatives_are_constant_are_searched_as_any():
    drift = find(lambda h: h + 0.1, random(3, 2))  # has no point
    assert (drift.kind == "not converged").all() and drift.basin_count.sum() == 3
    np.testing.assert_allclose(drift.speed, 0.1 * 2**0.5, rtol=1e-12)
    forgetful = find(lambda h: torch.ones_like(h), random(4, 3))
    assert forgetful.kind.values.tolist() == ["fixed"]
    np.testing.assert_array_equal(forgetful.state, [[1, 1, 1]])
    np.testing.assert_array_equal(forgetful.eigenvalue_real, [[0, 0, 0]])


def test_a_maximum_of_the_speed_is_not_taken_for_a_slow_point():
    with pytest.warns(kpops.ConvergenceWarning, match=r"1 starts came to no .*'converged' marks"):
        points = find(lambda h: h + 1 - h**2, [[0.0], [0.5], [-0.5]])
    assert points.kind.values.tolist() == ["fixed", "fixed", "not converged"]
    assert points.converged.values.tolist() == [True, True, False]
    np.testing.assert_allclose(points.state[:, 0], [1, -1, 0], atol=1e-12)


def test_a_line_attractor_is_reached_where_the_start_projects_on_it():
    Q = orthogonal(5)
    W = Q @ torch.diag(torch.tensor([1, 0.8, 0.5, -0.5, 0.2]).double()) @ Q.T
    starts = random(7, 5, seed=4)
    points = find(lambda h: h @ W.T, starts)
    along = np.sort((starts @ Q[:, 0]).numpy())
    np.testing.assert_allclose(np.sort(points.state.values @ Q[:, 0].numpy()), along, atol=1e-10)
    np.testing.assert_allclose(points.state.values @ Q[:, 1:].numpy(), 0, atol=1e-12)
    values = np.broadcast_to([1, 0.8, -0.5, 0.5, 0.2], (7, 5))
    np.testing.assert_allclose(np.abs(eigenvalues(points)), np.abs(values), atol=1e-12)
    assert not points.n_unstable.any() and not points.is_stable.any()


def test_a_line_that_drifts_has_slow_points_where_the_drift_is_least():
    # u' = u + eps (1 + cos(u) / 2) along the line, v' = v / 2 across: slowest at u = pi.
    eps, Q = 1e-4, orthogonal(3)

    def drift(h):
        u, v = (h @ Q).split([1, 2], -1)
        return torch.cat([u + eps * (1 + torch.cos(u) / 2), v / 2], -1) @ Q.T

    starts = torch.cat([torch.linspace(1, 5, 9)[:, None].double(), random(9, 2)], 1) @ Q.T
    points = find(drift, starts)
    assert points.kind.values.tolist() == ["slow"]
    # The speed |f(h) - h| is rounded as h is, and about u = pi it is eps (1/2 + (u - pi)^2 / 4):
    # the place of its minimum is known to the square root of rounding, whatever the processor.
    rounding = 4 * np.pi * np.finfo(float).eps
    place = (4 * rounding / eps) ** 0.5
    np.testing.assert_allclose(points.state.values[0] @ Q.numpy(), [np.pi, 0, 0], atol=place)
    assert points.speed.item() == pytest.approx(eps / 2, abs=2 * rounding)
    np.testing.assert_allclose(eigenvalues(points)[0], [1, 0.5, 0.5], atol=eps * place)
    line = find(drift, starts, tol=2 * eps)
    assert (line.kind == "fixed").all() and line.sizes["point"] == 9
    np.testing.assert_allclose(line.spectral_radius, 1, atol=eps)


def hopfield(g):
    """W with three orthogonal patterns of 8 units; m xi is fixed where m = tanh(g m)."""
    one = np.array([[1, 1], [1, -1]])
    patterns = np.kron(one, np.kron(one, one))[1:4].astype(float)
    model = nn.RNN(1, 8, batch_first=True, bias=False).double()
    with torch.no_grad():
        model.weight_hh_l0.copy_(torch.from_numpy(g / 8 * patterns.T @ patterns))
    return model, patterns


def overlap(g):
    m = 1.0
    for _ in range(500):
        m = np.tanh(g * m)
    return m


def test_hopfield_patterns_are_stable_and_their_spectrum_is_known():
    g = 1.5
    model, patterns = hopfield(g)
    m = overlap(g)
    expected = np.concatenate([patterns, -patterns]) * m
    noisy = torch.from_numpy(np.repeat(expected, 4, 0)) + 0.1 * random(24, 8)
    points = fixed_points(model, torch.cat([noisy, 0.01 * random(5, 8, seed=1)]))
    assert points.kind.values.tolist() == ["fixed"] * 7
    nodes = points.isel(point=points.is_stable.values)
    assert nodes.basin_count.values.tolist() == [4] * 6
    order = np.lexsort(expected.T[::-1].round(6))
    np.testing.assert_allclose(nodes.state, expected[order], atol=1e-12)
    spectrum = np.r_[[g * (1 - m**2)] * 3, [0] * 5]
    np.testing.assert_allclose(eigenvalues(nodes), np.tile(spectrum, (6, 1)), atol=1e-11)
    origin = points.isel(point=-1)
    np.testing.assert_allclose(origin.state, 0, atol=1e-12)
    assert origin.n_unstable == 3 and origin.basin_count == 5
    np.testing.assert_allclose(origin.eigenvalue_real, np.r_[[g] * 3, [0] * 5], atol=1e-12)


def cube(dtype=torch.float64):
    """Three bistable units, turned: the 27 points of {-m, 0, m}^3, unstable along each zero."""
    Q = orthogonal(3).to(dtype)
    return Function(lambda h: torch.tanh(1.5 * h @ Q) @ Q.T), Q


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_three_bistable_units_have_nodes_saddles_and_a_source(dtype):
    model, Q = cube(dtype)
    starts = torch.cartesian_prod(*[torch.linspace(-1, 1, 5)] * 3).to(dtype) @ Q.T
    points = fixed_points(model, starts)
    assert points.state.dtype == points.eigenvalue_real.dtype == points.left_imag.dtype
    assert points.state.dtype == str(dtype).removeprefix("torch.")
    assert points.n_unstable.values.tolist() == [0] * 8 + [1] * 12 + [2] * 6 + [3]
    m, rounding = overlap(1.5), 1e-5 if dtype == torch.float32 else 1e-12
    unturned = points.state.values @ Q.numpy() / m
    np.testing.assert_allclose(unturned, unturned.round(), atol=rounding)
    assert len(np.unique(unturned.round(), axis=0)) == 27
    zeros = (unturned.round() == 0).sum(1)
    assert zeros.tolist() == points.n_unstable.values.tolist()
    assert points.basin_count.sum() == 125
    values = np.where(np.arange(3) < zeros[:, None], 1.5, 1.5 * (1 - m**2))
    np.testing.assert_allclose(eigenvalues(points), values, atol=rounding)


def test_the_order_of_the_starts_does_not_matter():
    model, _ = cube()
    starts = random(60, 3, seed=5)
    one = fixed_points(model, starts)
    other = fixed_points(model, starts[torch.randperm(60, generator=torch.Generator())])
    np.testing.assert_allclose(one.state, other.state, atol=1e-12)
    for name in ("basin_count", "kind", "n_unstable"):
        assert one[name].values.tolist() == other[name].values.tolist()


def test_a_point_stands_for_those_near_it_and_not_for_those_near_them():
    # Every state of the identity is a fixed point; the spread of these is 1.
    starts = np.array([[-1.0], [-0.9], [-0.8], [0.9], [1.01], [0.8]])
    starts /= starts.std()
    merged = find(lambda h: 1 * h, starts, merge_distance=0.115)
    assert merged.attrs["spread"] == pytest.approx(1, rel=1e-14)
    np.testing.assert_allclose(merged.state, np.sort(starts, 0)[[0, 2, 3, 5]], rtol=1e-14)
    assert merged.basin_count.values.tolist() == [2, 1, 2, 1]
    assert find(lambda h: 1 * h, starts, merge_distance=0.08).sizes["point"] == 6
    assert find(lambda h: 1 * h, starts, merge_distance=0.25).sizes["point"] == 2


@pytest.mark.parametrize("n", [100, 1000, 30000])
def test_a_line_of_points_is_covered_however_many_starts_have_come_to_it(n):
    starts = np.linspace(0, 1, n)[:, None]
    line = find(lambda h: torch.cat([h[:, :1], 0.5 * h[:, 1:]], 1), np.c_[starts, 0 * starts],
                merge_distance=0.1)  # fmt: skip
    distance = 0.1 * line.attrs["spread"]
    places = np.sort(line.state.values[:, 0])
    assert np.diff(places).min() > distance
    assert np.abs(starts - places).min(1).max() <= distance * (1 + 1e-12)
    assert line.basin_count.sum() == n


def test_the_best_of_near_points_is_kept():
    states = np.array([[0.0], [0.1], [0.2], [5.0], [5.1]])
    speed, kind = np.array([1e-3, 1e-9, 1e-5, 2e-3, 1e-3]), np.array([0, 1, 0, 1, 1])
    kept, count = merge(states, speed, kind, 0.5)
    assert kept.tolist() == [2, 4] and count.tolist() == [3, 2]


def test_distances_in_pieces_are_those_at_once(monkeypatch):
    points, starts = random(7, 3), random(50, 3, seed=1)
    expected = np.linalg.norm(points[:, None] - starts[None], axis=2).min(1)
    np.testing.assert_allclose(nearest(points, starts), expected, rtol=1e-12)
    monkeypatch.setattr("kpops.dynamics.search_points._DISTANCE_BYTES", 1000)
    np.testing.assert_allclose(nearest(points, starts), expected, rtol=1e-12)


def test_a_fixed_point_between_two_numbers_is_fixed():
    # The numbers next to sqrt(2) are off by about eps, which the map makes 3e5 times as much.
    points = find(lambda h: h + 1e5 * (h**2 - 2), [[1.2], [1.4], [1.5]])
    assert points.kind.values.tolist() == ["fixed"] and points.basin_count.item() == 3
    assert points.state.item() == pytest.approx(2**0.5, abs=1e-15)
    assert points.spectral_radius.item() == pytest.approx(1 + 2e5 * 2**0.5, rel=1e-10)


def test_a_point_far_from_all_starts_is_flagged():
    starts = random(10, 2)
    points = find(lambda h: 0.5 * h + torch.tensor([50.0, 0.0]), starts)
    spread = float((starts - starts.mean(0)).norm(dim=1).square().mean().sqrt())
    nearest = np.linalg.norm([100.0, 0.0] - starts.numpy(), axis=1).min() / spread
    assert points.outlier.item() and points.start_distance.item() == pytest.approx(nearest)
    assert not find(lambda h: 0.5 * h, starts).outlier.item()


def test_what_is_not_reached_in_time_is_told():
    with pytest.warns(kpops.ConvergenceWarning, match="2 starts came to no minimum .* in 1 iter"):
        points = find(lambda h: torch.tanh(3 * h), [[0.0], [0.9], [-0.9]], max_iterations=1)
    assert points.kind.values.tolist() == ["fixed", "not converged", "not converged"]
    assert (points.speed.values[1:] > 1e-8).all()
    assert points.converged.values.tolist() == [True, False, False]


def test_curvatures_are_weighted_sums_of_second_derivatives():
    gru = nn.GRU(2, 3, batch_first=True).double().requires_grad_(False)
    recurrence, x = as_recurrence(gru), random(2)
    h, w = random(4, 3, seed=1), random(4, 3, seed=2)
    with torch.no_grad():
        found = Map(recurrence, x).curvatures(h, w)
    for row, weights, matrix in zip(h, w, found, strict=True):
        weighted = lambda s, weights=weights: (recurrence(x[None], s[None])[0] * weights).sum()  # noqa: E731
        np.testing.assert_allclose(
            matrix, torch.autograd.functional.hessian(weighted, row), atol=1e-14
        )


def test_searches_of_many_starts_in_pieces_are_those_of_each(monkeypatch):
    model, _ = cube()
    f, starts = Map(as_recurrence(model), torch.zeros(1).double()), random(9, 3)
    with torch.no_grad():
        whole = search(f, starts, 0, 1e-4, 100)
        monkeypatch.setattr("kpops.dynamics.search_points._BYTES", 1)
        pieces = search(f, starts, 0, 1e-4, 100)
    np.testing.assert_allclose(whole.states, pieces.states, atol=1e-12)
    assert torch.equal(whole.kind, pieces.kind)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::kpops.ConvergenceWarning")
def test_a_trained_flip_flop_has_its_eight_nodes_and_the_saddles_between_them(tmp_path):
    """Nodes at the corners of a cube, and a saddle of one unstable direction on each edge."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        network = kpops.Network(nn.GRU(3, 32), nn.Linear(32, 3))
    task = kpops.tasks.flip_flop(2000, noise=0.2, steps=60, rng=0)
    settings = {"batch_size": 64, "learning_rate": 5e-3, "rng": 0}
    kpops.training.train(network, task, folder=tmp_path, max_steps=600, **settings)

    trials = kpops.tasks.flip_flop(100, noise=0, rng=1)
    lin = kpops.linearize(network, trials.inputs)
    points = fixed_points(lin, 400, dtype=torch.float64, rng=0)
    points = points.isel(point=((points.kind == "fixed") & ~points.outlier).values)
    assert float(points.speed.max()) < 1e-13
    single = fixed_points(lin, 400, rng=0)
    single = single.isel(point=((single.kind == "fixed") & ~single.outlier).values)
    counts = np.bincount(single.n_unstable)
    assert counts[:2].tolist() == [8, 12]
    with torch.no_grad():
        outputs = network.readout.double()(torch.from_numpy(points.state.values)).numpy()

    nodes = np.sign(outputs[points.is_stable.values])
    assert len(nodes) == 8 and len(np.unique(nodes, axis=0)) == 8
    # From a saddle the unstable direction leads, either way, to the two corners of its edge.
    saddles = points.isel(point=(points.n_unstable == 1).values)
    away = 0.05 * saddles.right_real.sel(mode=1).values
    ends = zip(
        *(rest(network, saddles.state.values + side * away) for side in (-1, 1)), strict=True
    )
    edges = {tuple(sorted(map(tuple, pair))) for pair in ends}
    assert sum(np.abs(np.subtract(*edge)).sum() == 2 for edge in edges) == 12


def rest(network, h):
    """Signs of the outputs where the network comes to rest without input, from states h."""
    recurrence = as_recurrence(network.recurrent.double())
    with torch.no_grad():
        h, x = torch.from_numpy(h), torch.zeros(len(h), 3).double()
        for _ in range(3000):
            h = recurrence(x, h)
        return np.sign(network.readout(h).numpy())
