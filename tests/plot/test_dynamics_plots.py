"""Exponents and angles: what a figure shows is what the data say."""

import copy
import math

import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.colors import to_hex

import kpops
from kpops.plot.style import COLOURS

RNG = np.random.default_rng(3)
STEPS = {"long_name": "time", "units": "step"}
EXPONENTS = np.array([0.9, 0.0, -14.6])


def exponents(values=EXPONENTS, dimension=None, trials=5, windows=40):
    """A result of lyapunov_spectrum, as far as it is drawn."""
    values = np.asarray(values)
    dimension = kpops.kaplan_yorke_dimension(values) if dimension is None else dimension
    modes, time = np.arange(1, len(values) + 1), np.arange(1, windows + 1)
    finite = values + 0.1 * RNG.standard_normal((trials, windows, len(values)))
    long_name = {"long_name": "Lyapunov exponent", "units": "1/step"}
    return xr.Dataset(
        {
            "exponent": ("mode", values, long_name),
            "stderr": ("mode", 0.1 * modes),
            "kaplan_yorke_dimension": ((), dimension),
            "history": (("time", "mode"), values + 1 / time[:, None], long_name),
            "finite_time_exponent": (("trial", "time", "mode"), finite, long_name),
            "trial_exponent": (("trial", "mode"), finite.mean(1), long_name),
        },
        {"mode": modes, "time": ("time", time, STEPS), "trial": np.arange(trials)},
    )


def angles(k):
    """Angles in the first quarter of what there may be, but for one pair."""
    values = RNG.uniform(0.1, np.pi / 8, (4, 50, k, k))
    values[:, :, 0, 1] = values[:, :, 1, 0] = 1.5
    values[..., range(k), range(k)] = 0
    dims = ("trial", "time", "mode", "mode_in")
    modes = np.arange(1, k + 1)
    named = (dims, values, {"long_name": "angle", "units": "rad"})
    return xr.Dataset({"covariant_angle": named}, {"mode": modes, "mode_in": modes})


def labelled(ax, label):
    return next(line for line in ax.lines if line.get_label() == label)


def test_a_spectrum_has_error_bars_a_zero_line_and_its_dimension(ax, bars, legend):
    assert kpops.plot.lyapunov_spectrum(exponents(), ax) is ax
    zero, line, *_ = ax.lines
    np.testing.assert_array_equal(zero.get_ydata(), [0, 0])
    np.testing.assert_array_equal(line.get_data(), [[1, 2, 3], EXPONENTS])
    np.testing.assert_allclose(bars(ax), [[0.8, 1.0], [-0.2, 0.2], [-14.9, -14.3]])
    mark = labelled(ax, "Kaplan-Yorke\ndimension 2.06")
    np.testing.assert_allclose(mark.get_xdata(), [2 + 0.9 / 14.6])
    assert legend(ax) == ["Kaplan-Yorke\ndimension 2.06"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("mode", "Lyapunov exponent (1/step)")


@pytest.mark.parametrize("dimension", [0.0, math.nan])
def test_a_dimension_that_is_zero_or_not_known_has_no_mark(ax, dimension):
    kpops.plot.lyapunov_spectrum(exponents(dimension=dimension), ax)
    assert all(line.get_marker() != "v" for line in ax.lines)
    assert ax.get_legend() is None


def test_exponents_of_minus_infinity_are_counted_and_not_drawn(ax, legend):
    kpops.plot.lyapunov_spectrum(exponents([-0.5, -np.inf, -np.inf], 0.0), ax)
    np.testing.assert_array_equal(ax.lines[1].get_data(), [[1], [-0.5]])
    assert legend(ax) == ["2 at $-\\infty$\nnot shown"]
    ax.figure.canvas.draw()


def test_a_mapping_has_a_colour_and_a_triangle_for_each_label(ax, legend):
    several = {"rest": exponents([-1.0, -2.0]), 2.5: exponents([0.5, -1.0])}
    kpops.plot.lyapunov_spectrum(several, ax)
    assert legend(ax) == ["rest", "2.5", "Kaplan-Yorke\ndimension"]
    rest, chaos = labelled(ax, "rest"), labelled(ax, "2.5")
    assert (rest.get_color(), chaos.get_color()) == COLOURS[:2]
    (mark,) = (m for m in ax.lines if m.get_marker() == "v" and len(m.get_xdata()))
    assert mark.get_color() == COLOURS[1]  # the other one has dimension zero
    np.testing.assert_array_equal(mark.get_xdata(), [1.5])


def test_a_mapping_of_many_numbers_has_a_scale():
    several = {g: exponents([-g, -2 * g], 0.0) for g in np.linspace(0.5, 5, 10)}
    ax = kpops.plot.lyapunov_spectrum(several)
    assert ax.get_legend() is None
    bar = ax.figure.axes[1]
    assert (bar.get_ylabel(), bar.get_ylim()) == ("", (0.5, 5))
    named = kpops.plot.lyapunov_spectrum({f"g{i}": e for i, e in enumerate(several.values())})
    named.figure.canvas.draw()
    texts = [text.get_text() for text in named.figure.axes[1].get_yticklabels()]
    assert texts == [f"g{i}" for i in range(10)]


def test_a_further_dim_stands_in_the_legend_and_if_long_beside_a_colour_bar(ax, legend):
    spectra = [exponents([-g, -2 * g]) for g in range(1, 11)]
    over = xr.concat(spectra, xr.Variable("g", np.arange(10.0)))
    kpops.plot.lyapunov_spectrum(over.isel(g=[2, 4]), ax)
    assert legend(ax) == ["2", "4"]
    assert ax.get_legend().get_title().get_text() == "g"
    many = kpops.plot.lyapunov_spectrum(over)
    assert many.get_legend() is None
    assert [a.get_ylabel() for a in many.figure.axes[1:]] == ["g"]
    lines = [line for line in many.lines if line.get_marker() == "o"]
    drawn = [line.get_ydata().tolist() for line in lines]
    assert drawn == [[-g, -2 * g] for g in range(1, 11)]
    assert len({to_hex(line.get_color()) for line in lines}) == 10


def test_exponents_over_checkpoints_are_drawn_as_they_come(ax, legend):
    rnn = torch.nn.RNN(2, 4, batch_first=True, dtype=torch.float64)
    states = [(step, copy.deepcopy(rnn.state_dict())) for step in (0, 100)]
    x = torch.ones(3, 50, 2, dtype=torch.float64)
    over = kpops.over_training(rnn, states, x, lambda lin: kpops.lyapunov_spectrum(lin, rng=0))
    kpops.plot.lyapunov_spectrum(over, ax)
    assert legend(ax) == ["0", "100"]
    np.testing.assert_array_equal(labelled(ax, "100").get_ydata(), over.exponent[1])
    both = over[["stderr"]].assign(estimate=over.exponent)
    assert legend(kpops.plot.over_training(both)) == ["1", "2", "3", "4"]


def test_spectra_that_share_axes_have_colours_of_their_own_and_the_style_of_the_caller(ax):
    kpops.plot.lyapunov_spectrum(exponents(dimension=0.0), ax, label="a")
    kpops.plot.lyapunov_spectrum(exponents(dimension=0.0), ax, label="b")
    kpops.plot.lyapunov_spectrum(exponents(dimension=0.0), ax, c="red", lw=3, label="c")
    assert [labelled(ax, n).get_color() for n in "abc"] == [*COLOURS[:2], "red"]
    assert labelled(ax, "c").get_linewidth() == 3


def test_exponents_of_covariant_vectors_need_no_errors(ax, bars):
    kpops.plot.lyapunov_spectrum(exponents()[["exponent"]], ax)
    assert len(bars(ax)) == 0
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), EXPONENTS)


def test_a_history_runs_into_the_error_of_its_end(ax, legend):
    data = exponents().isel(mode=[0, 2])
    kpops.plot.lyapunov_history(data, ax)
    assert legend(ax) == ["mode 1", "mode 3"]
    np.testing.assert_array_equal(labelled(ax, "mode 3").get_ydata(), data.history[:, 1])
    bands = [band.get_paths()[0].get_extents() for band in ax.collections]
    np.testing.assert_allclose([b.intervaly for b in bands], [[0.8, 1.0], [-14.9, -14.3]])
    np.testing.assert_allclose([b.intervalx for b in bands], [[1, 40], [1, 40]])
    assert ax.get_xlabel() == "time (step)"


def test_time_has_no_steps_where_a_step_takes_time(ax):
    data = exponents()
    data["time"].attrs["units"] = "time"
    assert kpops.plot.lyapunov_history(data, ax).get_xlabel() == "time"


def test_a_history_of_many_modes_has_a_colour_bar():
    ax = kpops.plot.lyapunov_history(exponents(np.linspace(0, -1, 12)))
    assert ax.get_legend() is None
    assert len(ax.lines) == 13
    assert ax.figure.axes[1].get_ylabel() == "mode"


def test_violins_span_the_windows_and_dots_are_trials(ax, legend):
    data = exponents()
    data["finite_time_exponent"][2:, 5:, 1] = np.nan  # trials that a mask ends
    kpops.plot.finite_time_exponents(data, ax)
    finite = data.finite_time_exponent
    spans = [body.get_paths()[0].get_extents().intervaly for body in ax.collections]
    ends = [finite.min(("trial", "time")), finite.max(("trial", "time"))]
    np.testing.assert_allclose(np.transpose(spans), ends)
    dots = labelled(ax, "trials")
    np.testing.assert_array_equal(dots.get_ydata(), data.trial_exponent.values.ravel())
    np.testing.assert_array_equal(np.round(dots.get_xdata()), np.tile([1, 2, 3], 5))
    assert legend(ax) == ["windows", "trials"]


def test_growth_that_never_changes_and_modes_that_are_gone_are_drawn(ax):
    data = exponents([-0.5, -np.inf], 0.0)
    data["finite_time_exponent"][..., 0] = -0.5
    data["trial_exponent"][..., 0] = -0.5
    kpops.plot.finite_time_exponents(data, ax)
    ax.figure.canvas.draw()
    assert len(ax.collections) == 1
    assert np.nansum(labelled(ax, "trials").get_ydata()) == -2.5


def test_angles_of_few_vectors_are_densities(ax, legend):
    data = angles(3)
    kpops.plot.covariant_angles(data, ax)
    assert legend(ax) == ["1 and 2", "1 and 3", "2 and 3"]
    for patch, (i, j) in zip(ax.patches, ((0, 1), (0, 2), (1, 2)), strict=True):
        heights, edges, _ = patch.get_data()
        centres = (edges[1:] + edges[:-1]) / 2
        assert (heights * np.diff(edges)).sum() == pytest.approx(1)
        mean = float((heights * np.diff(edges) * centres).sum())
        assert mean == pytest.approx(
            float(data.covariant_angle[..., i, j].mean()), abs=np.diff(edges)[0] / 2
        )
    assert ax.get_xlim() == (0, np.pi / 2)


def test_angles_of_many_vectors_are_a_matrix_of_the_smallest(ax):
    data = angles(6)
    kpops.plot.covariant_angles(data, ax)
    shown = ax.images[0].get_array().filled(np.nan)
    smallest = data.covariant_angle.min(("trial", "time")).values
    apart = ~np.eye(6, dtype=bool)
    np.testing.assert_array_equal(shown[apart], smallest[apart])
    assert np.isnan(shown[~apart]).all()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("mode", "mode")
    assert ax.images[0].colorbar.ax.get_ylabel() == "smallest angle (rad)"


@pytest.mark.parametrize(
    ("plot", "source"),
    [
        (kpops.plot.lyapunov_spectrum, "pass what kpops.lyapunov_spectrum returns"),
        (kpops.plot.lyapunov_history, "pass what kpops.lyapunov_spectrum returns"),
        (kpops.plot.finite_time_exponents, "pass what kpops.lyapunov_spectrum returns"),
        (kpops.plot.covariant_angles, "pass what kpops.covariant_lyapunov_vectors"),
    ],
)
def test_what_is_something_else_is_refused(plot, source):
    with pytest.raises(ValueError, match=f"cannot plot a DataArray: {source}"):
        plot(xr.DataArray([1.0], dims="mode"))
    with pytest.raises(ValueError, match="the Dataset has the variables"):
        plot(xr.Dataset({"loss": 1.0}))


def test_other_dims_and_empty_mappings_are_refused():
    more = exponents().expand_dims(seed=2, g=3)
    for plot in (kpops.plot.lyapunov_spectrum, kpops.plot.lyapunov_history):
        with pytest.raises(ValueError, match="has dims"):
            plot(more)
    with pytest.raises(ValueError, match=r"expected mode: choose .* \.isel\(seed=0, g=0\)"):
        kpops.plot.lyapunov_spectrum({"a": more})
    with pytest.raises(ValueError, match="the mapping is empty"):
        kpops.plot.lyapunov_spectrum({})
    with pytest.raises(ValueError, match="no Dataset at 'b'"):
        kpops.plot.lyapunov_spectrum({"a": exponents(), "b": 1.0})


def test_angles_that_were_not_asked_for_are_refused():
    vectors = xr.Dataset({"covariant_vector": ("mode", [1.0])})
    told = r"\['covariant_vector'\], expected covariant_angle: pass .*angles=True"
    with pytest.raises(ValueError, match=told):
        kpops.plot.covariant_angles(vectors)
    with pytest.raises(ValueError, match="k=2"):
        kpops.plot.covariant_angles(angles(3).isel(mode=[0], mode_in=[0]))
