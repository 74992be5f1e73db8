"""Fractions that modes capture, and ranks within their bounds."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.container import BarContainer

from kpops.plot import learning as plot


def fractions(**variables):
    n = len(next(iter(variables.values())))
    data = {name: ("mode", np.array(values)) for name, values in variables.items()}
    return xr.Dataset(data, {"mode": np.arange(1, n + 1)})


FLOW = fractions(
    state_change_captured=[0.5, 0.8, 0.9],
    loss_decrease_captured=[0.3, 0.5, 0.6],
    error_captured=[0.1, 0.2, 0.3],
)
PCA = fractions(explained=[0.6, 0.3, 0.1]).assign(n_components=2)


def test_a_truncated_flow_has_three_lines(ax, legend):
    assert plot.captured(FLOW, ax) is ax
    assert legend(ax) == ["state change", "loss decrease", "error"]
    for line, values in zip(ax.lines, FLOW.data_vars.values(), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), values)
        np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("number of leading modes", "fraction captured")


def test_variances_are_summed_and_the_threshold_is_marked(ax):
    plot.captured(PCA, ax)
    line, drop, dot = ax.lines
    np.testing.assert_allclose(line.get_ydata(), [0.6, 0.9, 1])
    np.testing.assert_allclose(drop.get_data(), [[2, 2], [0, 0.9]])
    np.testing.assert_allclose(dot.get_data(), [[2], [0.9]])
    assert ax.get_ylabel() == "fraction of the variance"
    assert ax.get_legend() is None


def test_results_that_share_axes_have_a_colour_each(ax, legend):
    plot.captured(FLOW, ax, label="before")
    plot.captured(FLOW, ax, label="after")
    assert legend(ax)[::3] == ["before: state change", "after: state change"]
    colours = [line.get_color() for line in ax.lines]
    assert len(set(colours[:3])) == len(set(colours[3:])) == 1
    assert colours[0] != colours[3]
    assert [line.get_linestyle() for line in ax.lines[:3]] == ["-", "--", ":"]


def test_many_modes_stand_on_a_logarithmic_axis(ax):
    plot.captured(fractions(explained=np.full(40, 1 / 40)), ax)
    assert ax.get_xscale() == "log"
    plot.captured(PCA, ax)  # a result of few modes beside it changes no axis
    assert ax.get_xscale() == "log"


def test_the_style_of_the_caller_comes_first(ax):
    plot.captured(PCA, ax, c="black", lw=3)
    assert (ax.lines[0].get_color(), ax.lines[0].get_linewidth()) == ("black", 3)


def test_results_without_variance_are_drawn(ax):
    nothing = fractions(explained=[np.nan, np.nan]).assign(n_components=0)
    assert len(plot.captured(nothing, ax).lines) == 1


def bounds():
    names = ["U", "W"]
    data = {
        "bound": [30, 100],
        "bound_at_tol": [30, np.nan],
        "rank": [20, 50],
        "participation": [10, 5],
        "participation_stderr": [1, 2],
        "trace_share": [0.25, 0.75],
    }
    result = xr.Dataset(
        {name: ("parameter", np.array(values, float)) for name, values in data.items()},
        {"parameter": names, "features": ("parameter", ["x[t]", "h[t-1]"])},
    )
    totals = {"bound": 120.0, "rank": 60.0, "participation": 8.0, "participation_stderr": 0.5}
    return result.assign({f"{name}_of_sum": value for name, value in totals.items()})


def test_bars_are_bounds_and_ranks_of_every_parameter_and_of_K(ax, legend):
    plot.rank_bounds(bounds(), ax)
    drawn = [c for c in ax.containers if isinstance(c, BarContainer)]
    lengths = [[bar.get_width() for bar in container] for container in drawn]
    assert lengths == [[30, 100, 120], [30], [20, 50, 60]]
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["U  (x[t])", "W  (h[t-1])", "K"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first parameter on top
    assert ax.get_xscale() == "log"
    assert legend(ax)[:2] == ["bound by\nthe features", "bound above\nthe tolerance"]


def test_participation_has_error_bars(ax):
    plot.rank_bounds(bounds(), ax)
    (dots,) = (c for c in ax.containers if not isinstance(c, BarContainer))
    np.testing.assert_array_equal(dots.lines[0].get_xdata(), [10, 5, 8])
    (bars,) = dots.lines[2]
    spans = [segment[:, 0].tolist() for segment in bars.get_segments()]
    assert spans == [[9, 11], [3, 7], [7.5, 8.5]]


def test_shares_of_the_trace_are_written(ax):
    plot.rank_bounds(bounds(), ax)
    assert [text.get_text() for text in ax.texts][:2] == ["25 %", "75 %"]


@pytest.mark.parametrize(
    ("function", "lacks", "source"),
    [
        (plot.captured, "state_change_captured", "kpops.truncated_flow or kpops.trajectory_dim"),
        (plot.rank_bounds, "bound", "kpops.rank_bounds"),
    ],
)
def test_what_is_neither_is_refused(function, lacks, source):
    with pytest.raises(ValueError, match=rf"\['loss'\], expected {lacks}.*: pass what {source}"):
        function(xr.Dataset({"loss": 1.0}))
    with pytest.raises(ValueError, match=f"cannot plot a ndarray: pass what {source}"):
        function(np.ones(3))


def test_fractions_with_other_dims_are_refused():
    with pytest.raises(ValueError, match=r"expected mode: choose entries .*\.isel\(step=0\)"):
        plot.captured(FLOW.expand_dims("step"))
