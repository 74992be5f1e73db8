"""Fixed points: where they stand, which way they let go, and their eigenvalues."""

import math

import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.collections import LineCollection

import kpops
from kpops.plot.style import COLOURS


def labelled(ax, label):
    return next(line for line in ax.lines if line.get_label() == label)


class Ring(torch.nn.Module):
    """A saddle with a plane of rotation at zero: growth (0, 1) turns, unit 2 grows, unit 3 dies."""

    def forward(self, x, h):
        c, s = 1.2 * math.cos(0.5), 1.2 * math.sin(0.5)
        turned = torch.stack([c * h[:, 0] - s * h[:, 1], s * h[:, 0] + c * h[:, 1]], 1)
        return torch.cat([turned, 1.1 * h[:, 2:3], 0.5 * h[:, 3:]], 1)


@pytest.fixture(scope="module")
def bistable():
    """Two units, each with three fixed points: four nodes, four saddles, and the middle."""
    cell = torch.nn.RNNCell(1, 2, dtype=torch.float64)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
        cell.weight_hh.copy_(torch.diag(torch.tensor([2.0, 1.5])))
    starts = np.random.default_rng(0).standard_normal((200, 2))
    return cell, kpops.fixed_points(cell, starts)


def paths():
    """Trajectories whose principal axes are the units, the second first."""
    both = np.zeros((2, 9, 2))
    both[0, :, 1] = np.linspace(-3, 3, 9)
    both[1, :, 0] = np.linspace(-1, 1, 9)
    return both + np.array([0.5, 0.25])


def places(ax, label):
    return np.transpose(labelled(ax, label).get_data())


def test_points_stand_in_the_plane_of_the_trajectories(ax, legend, bistable):
    points = bistable[1]
    assert kpops.plot.fixed_points(points, ax, states=paths()) is ax
    assert legend(ax) == ["stable", "1 unstable", "2 unstable"]
    turned = (points.state.values - [0.5, 0.25])[:, ::-1]
    for n, label in enumerate(legend(ax)):
        np.testing.assert_allclose(places(ax, label), turned[points.n_unstable == n], atol=1e-12)
        assert labelled(ax, label).get_color() == COLOURS[n]
    grey = [line for line in ax.lines if line.get_zorder() == 0]
    np.testing.assert_allclose(grey[0].get_xdata(), np.linspace(-3, 3, 9), atol=1e-12)
    np.testing.assert_allclose(grey[1].get_ydata(), np.linspace(-1, 1, 9), atol=1e-12)
    assert ax.get_xlabel() == "principal component 1 (90 %)"


def test_unstable_eigenvectors_go_through_their_points_at_one_length(ax, bistable):
    points = bistable[1]
    kpops.plot.fixed_points(points, ax, states=paths())
    drawn = [c for c in ax.collections if isinstance(c, LineCollection)]
    segments = np.concatenate([c.get_segments() for c in drawn])
    saddles, middle = points.n_unstable.values == 1, points.n_unstable.values == 2
    assert len(segments) == saddles.sum() + 2 * middle.sum()
    turned = (points.state.values - [0.5, 0.25])[:, ::-1]
    centres = np.concatenate([turned[saddles], np.repeat(turned[middle], 2, 0)])
    np.testing.assert_allclose(segments.mean(1), centres, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(np.diff(segments, axis=1)[:, 0], axis=1), 0.96)
    # At a saddle it is the unit that stays near zero which lets go.
    undecided = abs(turned[saddles] + [0.25, 0.5]).argmin(1)
    assert (abs(np.diff(segments[: saddles.sum()], axis=1)[:, 0]).argmax(1) == undecided).all()


def test_a_plane_of_rotation_is_drawn_by_two_lines(ax):
    points = kpops.fixed_points(Ring(), np.zeros((1, 4)))
    states = np.random.default_rng(0).standard_normal((3, 20, 4)) * [3, 2, 1, 0.1]
    kpops.plot.fixed_points(points, ax, states=states)
    (lines,) = (c for c in ax.collections if isinstance(c, LineCollection))
    arms = np.diff(lines.get_segments(), axis=1)[:, 0]
    axes = kpops.trajectory_dimension(states).axis[:2].values
    both = (states - states.mean((0, 1))) @ axes.T
    length = 0.16 * np.ptp(both, axis=(0, 1)).max()
    turning = length**2 * axes[:, :2] @ axes[:, :2].T
    np.testing.assert_allclose(arms[:2].T @ arms[:2], turning, atol=1e-9)
    np.testing.assert_allclose(abs(arms[2:]), length * abs(axes[:, 2:3].T), atol=1e-9)


def test_other_components_and_the_points_alone_can_be_seen(ax, bistable):
    points = bistable[1]
    kpops.plot.fixed_points(points, ax, states=paths(), components=(2, 1))
    straight = points.state.values - [0.5, 0.25]
    np.testing.assert_allclose(places(ax, "2 unstable"), straight[-1:], atol=1e-12)
    alone = kpops.plot.fixed_points(points)
    assert [line for line in alone.lines if line.get_zorder() == 0] == []
    spread = np.concatenate([places(alone, n) for n in ("stable", "1 unstable", "2 unstable")])
    np.testing.assert_allclose(spread.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(np.cov(spread.T)[0, 1], 0, atol=1e-9)


@pytest.mark.parametrize("labelled_mask", [False, True])
def test_trajectories_of_a_linearization_end_with_their_mask(ax, labelled_mask):
    rnn = torch.nn.RNN(2, 3, batch_first=True, dtype=torch.float64)
    x = torch.randn(4, 10, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(10) < torch.tensor([10, 7, 10, 4])[:, None]
    lin = kpops.linearize(rnn, x, mask=mask)
    points = kpops.fixed_points(lin, 10, rng=0)
    if labelled_mask:
        lin_or_states = lin.states.assign_coords(mask=(("trial", "time"), mask.numpy()))
    else:
        lin_or_states = lin
    kpops.plot.fixed_points(points, ax, states=lin_or_states)
    grey = [line.get_xdata() for line in ax.lines if line.get_zorder() == 0]
    assert [np.isfinite(path).sum() for path in grey] == [10, 7, 10, 4]
    valid = lin.states.values[mask.numpy()]
    axis = kpops.trajectory_dimension(lin).axis[0].values
    drawn = np.concatenate([path[np.isfinite(path)] for path in grey])
    np.testing.assert_allclose(drawn, (valid - valid.mean(0)) @ axis, atol=1e-12)


def test_slow_points_are_hollow_and_others_are_counted(ax, legend, bistable):
    points = bistable[1].copy(deep=True)
    points["kind"][0], points["kind"][1], points["converged"][1] = "slow", "not converged", False
    points["outlier"][2] = True
    kpops.plot.fixed_points(points, ax)
    hidden = "2 not shown:\noutlier or\nnot converged"
    assert legend(ax) == ["stable", "1 unstable", "2 unstable", "slow point", hidden]
    drawn = [line for line in ax.lines if line.get_color() == COLOURS[0]]
    faces = {line.get_markerfacecolor(): len(line.get_xdata()) for line in drawn}
    assert faces == {COLOURS[0]: 1, "white": 1}


def test_marginal_points_and_many_directions_have_names(ax, legend, bistable):
    points = bistable[1].isel(point=[0, 1]).copy(deep=True)
    points["is_stable"][0] = False
    points["n_unstable"][1] = 9
    points["is_stable"][1] = False
    kpops.plot.fixed_point_eigenvalues(points, ax)
    assert legend(ax)[:2] == ["point 0: marginal", "point 1: 5 or more unstable"]


def test_eigenvalues_stand_beside_the_unit_circle(ax, legend, bistable):
    points = kpops.fixed_points(Ring(), np.zeros((1, 4)))
    kpops.plot.fixed_point_eigenvalues(points, ax)
    np.testing.assert_allclose(np.hypot(*ax.lines[0].get_data()), 1)
    drawn = labelled(ax, "point 0: 3 unstable")
    pair = 1.2 * np.exp([0.5j, -0.5j])
    np.testing.assert_allclose(drawn.get_xdata(), [*pair.real, 1.1])
    np.testing.assert_allclose(drawn.get_ydata(), [*pair.imag, 0], atol=1e-15)
    assert ax.get_aspect() == 1
    many = kpops.plot.fixed_point_eigenvalues(bistable[1])
    assert legend(many)[:3] == ["stable", "1 unstable", "2 unstable"]
    np.testing.assert_allclose(labelled(many, "2 unstable").get_xdata(), [2, 1.5])


def test_unstable_eigenvalues_are_filled_and_larger_than_stable_ones(ax, legend):
    points = kpops.fixed_points(Ring(), np.zeros((1, 4)))
    kpops.plot.fixed_point_eigenvalues(points, ax)
    drawn = [line for line in ax.lines if line.get_color() == COLOURS[3] and line.get_xdata().size]
    unstable, stable = drawn
    assert (np.abs(unstable.get_xdata() + 1j * unstable.get_ydata()) > 1).all()
    np.testing.assert_allclose(stable.get_xdata(), [0.5])
    assert (unstable.get_markerfacecolor(), stable.get_markerfacecolor()) == (COLOURS[3], "white")
    assert unstable.get_markersize() > stable.get_markersize()
    assert legend(ax)[1:] == [r"$|\lambda| > 1$", r"$|\lambda| \leq 1$"]
    of_few_modes = kpops.plot.fixed_point_eigenvalues(points.isel(mode=[2, 3]))
    np.testing.assert_allclose(labelled(of_few_modes, "point 0: 3 unstable").get_xdata(), [1.1])


def test_trajectories_are_drawn_so_that_few_and_many_can_be_seen(ax, bistable):
    points = bistable[1]
    kpops.plot.fixed_points(points, ax, states=paths())
    few = [line for line in ax.lines if line.get_zorder() == 0]
    assert {(line.get_linewidth(), line.get_alpha()) for line in few} == {(1.0, 0.9)}
    cloud = np.concatenate([paths()] * 40)
    many = kpops.plot.fixed_points(points, states=cloud)
    lines = [line for line in many.lines if line.get_zorder() == 0]
    assert {(line.get_linewidth(), line.get_alpha()) for line in lines} == {(0.6, 0.25)}


def test_results_from_a_file_are_drawn_alike(ax, legend, bistable, tmp_path):
    bistable[1].to_netcdf(tmp_path / "points.nc")
    with xr.open_dataset(tmp_path / "points.nc") as points:
        kpops.plot.fixed_points(points, ax, states=paths())
    assert legend(ax) == ["stable", "1 unstable", "2 unstable"]
    assert len(places(ax, "stable")) == 4


@pytest.mark.parametrize("plot", [kpops.plot.fixed_points, kpops.plot.fixed_point_eigenvalues])
def test_what_is_something_else_is_refused(plot):
    with pytest.raises(ValueError, match=r"a DataArray: pass what kpops\.fixed_points"):
        plot(xr.DataArray([1.0], dims="mode"))
    with pytest.raises(ValueError, match="expected state"):
        plot(xr.Dataset({"loss": 1.0}))


def test_planes_that_do_not_exist_are_refused(bistable):
    points = bistable[1]
    for wrong in ((1, 3), (0, 1), (1,), (1, 2, 2)):
        with pytest.raises(ValueError, match="choose two from 1 to 2"):
            kpops.plot.fixed_points(points, components=wrong)
    with pytest.raises(ValueError, match="3 units, the points 2"):
        kpops.plot.fixed_points(points, states=np.random.default_rng(0).standard_normal((2, 9, 3)))
    of_one_unit = np.random.default_rng(0).standard_normal((2, 9, 1))
    with pytest.raises(ValueError, match="one principal component, and no plane"):
        kpops.plot.fixed_points(points.isel(unit=[0]), states=of_one_unit)
    with pytest.raises(ValueError, match="pass states"):
        kpops.plot.fixed_points(points.isel(point=[0]))
    with pytest.raises(ValueError, match="each of the 9 points is an outlier"):
        kpops.plot.fixed_points(points.assign(outlier=points.outlier | True))
