"""Spectra and densities: what a figure shows is what the data say."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_hex

import kpops
from kpops.plot.style import COLOURS

VALUES = np.array([10.0, 9.99, -4.0, 1.0, -0.5, 1e-3])


def result(**more):
    """A result of eigsh, as far as it is drawn."""
    variables = {"eigenvalue": ("mode", VALUES, {"long_name": "eigenvalue", "units": "1"})}
    variables |= {name: ("mode", np.asarray(values)) for name, values in more.items()}
    return xr.Dataset(variables, {"mode": np.arange(1, 7)}, {"noise_floor": 1e-14})


def with_label(ax, label):
    (line,) = (line for line in ax.lines if line.get_label() == label)
    return line


def test_a_spectrum_is_shown_by_magnitude_on_logarithmic_axes(ax):
    values = kpops.eigsh(np.diag([-4.0, 1.0]), k=2).eigenvalue
    assert kpops.plot.spectrum(values, ax, label="K") is ax
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [1, 2])
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [4, 1])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ax.lines[0].get_label() == "K"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("mode", "|eigenvalue|")


def test_the_modes_of_both_solvers_are_drawn(ax):
    matrix = np.diag([3.0, 2.0, 1.0])
    kpops.plot.spectrum(kpops.eigsh(matrix, k=3), ax)
    kpops.plot.spectrum(kpops.svds(2 * matrix, k=3), ax)
    full = [line for line in ax.lines if len(line.get_xdata()) == 3 and line.get_linestyle() == "-"]
    np.testing.assert_allclose([line.get_ydata() for line in full], [[3, 2, 1], [6, 4, 2]])
    assert ax.get_ylabel() == "singular value"


def test_negative_eigenvalues_point_down_and_modes_that_have_not_converged_are_hollow(ax, legend):
    kpops.plot.spectrum(result(converged=[True, True, True, False, False, True]), ax)
    negative, unsure = with_label(ax, "negative"), with_label(ax, "not converged")
    assert (negative.get_marker(), list(negative.get_xdata())) == ("v", [3])
    assert to_hex(negative.get_markerfacecolor()).upper() == COLOURS[0]
    assert (unsure.get_marker(), list(unsure.get_xdata())) == ("o", [4])
    assert unsure.get_markerfacecolor() == "white"
    both = next(line for line in ax.lines if list(line.get_xdata()) == [5])
    assert (both.get_marker(), both.get_markerfacecolor()) == ("v", "white")
    assert ax.lines[0].get_markevery() == [True, True, False, False, False, True]
    assert legend(ax) == ["negative", "not converged"]


def test_signs_below_the_noise_floor_are_not_shown(ax):
    values = xr.DataArray([1.0, -1e-17], dims="mode", name="eigenvalue")
    kpops.plot.spectrum(values, ax)
    assert len(ax.lines) == 1
    assert ax.get_ylabel() == "eigenvalue"


def test_error_bars_are_residuals_times_the_largest_magnitude(ax, bars):
    residual = np.array([1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-2])
    kpops.plot.spectrum(result(residual=residual), ax)
    np.testing.assert_allclose(
        bars(ax), np.abs(VALUES)[:, None] + 10 * residual[:, None] * [-1, 1], rtol=1e-12
    )


def test_each_cluster_of_several_modes_has_a_band(ax, legend):
    kpops.plot.spectrum(result(cluster=[1, 1, 2, 3, 3, 3]), ax)
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in ax.patches]
    np.testing.assert_allclose(spans, [(0.65, 2.35), (3.65, 6.35)])
    assert "degenerate" in legend(ax)


def test_modes_in_no_cluster_have_no_band(ax):
    kpops.plot.spectrum(result(cluster=[-1, -1, 0, 1, 2, 3]), ax)
    assert not ax.patches


def test_the_noise_floor_is_relative_to_the_largest_and_drawn_only_where_values_come_near(ax):
    near = result()
    near.attrs["noise_floor"] = 1e-5
    kpops.plot.spectrum(near, ax)
    (floor,) = (line for line in ax.lines if line.get_linestyle() == "--")
    np.testing.assert_allclose(floor.get_ydata(), 1e-4)
    far = plt.subplots()[1]
    kpops.plot.spectrum(result(), far)
    assert not [line for line in far.lines if line.get_linestyle() == "--"]


def test_values_below_the_noise_floor_are_cut_off_and_their_modes_marked(ax, legend):
    data = result()
    data.attrs["noise_floor"] = 0.06  # of the largest, 10: the last two are below 0.6
    kpops.plot.spectrum(data, ax)
    shown = ax.lines[0].get_ydata()
    np.testing.assert_array_equal(shown, [10, 9.99, 4, 1, np.nan, np.nan])
    (ticks,) = (line for line in ax.lines if line.get_marker() == "|")
    np.testing.assert_array_equal(ticks.get_xdata(), [5, 6])
    np.testing.assert_allclose(ticks.get_ydata(), 0.6)
    assert [text.get_text() for text in ax.texts] == ["noise floor"]
    assert legend(ax) == ["negative"]
    assert list(with_label(ax, "negative").get_xdata()) == [3]  # -0.5 has no sign
    assert ax.get_ylim()[0] > 0.1


def test_a_dataset_without_a_floor_has_that_of_its_dtype_and_an_array_none(ax):
    values = np.array([1.0, 1e-20])
    both = xr.Dataset({"eigenvalue": ("mode", values)}, {"mode": [1, 2]})
    kpops.plot.spectrum(both, ax)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [1, np.nan])
    array = kpops.plot.spectrum(both.eigenvalue)
    np.testing.assert_array_equal(array.lines[0].get_ydata(), values)
    assert not array.texts


def test_floors_of_several_spectra_have_their_colours_and_one_name(ax):
    data = result()
    data.attrs["noise_floor"] = 1e-3
    for factor in (1, 100):
        kpops.plot.spectrum(data.assign(eigenvalue=factor * data.eigenvalue), ax)
    floors = [line for line in ax.lines if line.get_linestyle() == "--"]
    np.testing.assert_allclose([line.get_ydata()[0] for line in floors], [1e-2, 1])
    assert [line.get_color() for line in floors] == list(COLOURS[:2])
    assert [text.get_text() for text in ax.texts] == ["noise floor"]


def over_steps(n=3):
    return xr.concat([result(cluster=[1, 1, 2, 3, 4, 5])] * n, "step").assign(
        eigenvalue=lambda d: d.eigenvalue * (1.0 + xr.DataArray(np.arange(n), dims="step")),
        step=("step", 50 * np.arange(n), {"long_name": "training iteration"}),
    )


@pytest.mark.parametrize("n", [1, 3, 12])
def test_spectra_over_training_have_colours_of_a_scale(n):
    data = over_steps(n)
    ax = kpops.plot.spectrum(data, label="K")
    drawn = [line for line in ax.lines if line.get_linestyle() == "-"]
    np.testing.assert_array_equal([line.get_ydata() for line in drawn], abs(data.eigenvalue))
    assert len({line.get_color() for line in drawn}) == n
    assert [line.get_label() for line in drawn].count("K") == 1
    (bar,) = ax.figure.axes[1:]
    assert bar.get_ylabel() == "training iteration"
    ax.figure.canvas.draw()
    ticks = bar.get_yticks()
    np.testing.assert_array_equal(ticks, np.round(ticks))
    assert not ax.patches  # clusters are of one spectrum
    assert ax.get_ylabel() == "|eigenvalue|"


def test_other_dims_are_refused_with_the_remedy(ax):
    wrong = over_steps().expand_dims(operator=["K", "P"])
    told = r"expected mode, with or without step: choose .* by \.isel\(operator=0\)"
    with pytest.raises(ValueError, match=told):
        kpops.plot.spectrum(wrong, ax)
    with pytest.raises(ValueError, match=r"eigenvalue is complex: draw .* or abs"):
        kpops.plot.spectrum(result().eigenvalue * 1j, ax)
    with pytest.raises(ValueError, match=r"a ndarray: pass what kpops\.eigsh, kpops\.eig"):
        kpops.plot.spectrum(VALUES, ax)


def test_modes_that_were_not_found_are_counted(ax, legend):
    missing = result()
    missing["eigenvalue"] = missing.eigenvalue.where(missing.mode < 5)
    kpops.plot.spectrum(missing, ax)
    assert legend(ax) == ["negative", "2 not found"]
    nothing = kpops.plot.spectrum(missing.assign(eigenvalue=missing.eigenvalue * np.nan))
    assert legend(nothing) == ["6 not found"]
    nothing.figure.canvas.draw()


def test_a_spectrum_is_named_by_its_operator_unless_told_otherwise(ax, legend):
    data = result().assign_coords(operator="P K P*")
    kpops.plot.spectrum(data, ax)
    assert legend(ax) == ["P K P*", "negative"]
    assert legend(kpops.plot.spectrum(data, label="flow"))[0] == "flow"
    named = density("linear").assign_coords(operator="K")
    assert legend(kpops.plot.density(named))[0] == "K"


def test_spectra_in_one_figure_have_colours_of_their_own_and_share_the_legend(ax, legend):
    for label in ("K", "P"):
        kpops.plot.spectrum(result(), ax, label=label)
    colours = [with_label(ax, label).get_color() for label in ("K", "P")]
    assert colours == list(COLOURS[:2])
    assert legend(ax) == ["K", "negative", "P"]


def test_a_line_takes_the_style_of_the_caller_by_either_name(ax):
    kpops.plot.spectrum(result(), ax, c="red", lw=3, marker="")
    line = ax.lines[0]
    assert (line.get_color(), line.get_linewidth(), line.get_marker()) == ("red", 3, "")


def test_values_within_a_decade_stand_beside_plain_numbers(ax):
    kpops.plot.spectrum(xr.DataArray([3.1, 3.0, 2.9], dims="mode", name="eigenvalue"), ax)
    ax.figure.canvas.draw()
    texts = [text.get_text() for text in ax.get_yticklabels() + ax.get_yticklabels(minor=True)]
    assert "3" in texts
    assert not any("10^" in text for text in texts)


def test_zero_operators_and_modes_that_were_not_found_are_drawn(ax):
    kpops.plot.spectrum(kpops.eigsh(np.zeros((4, 4)), k=3), ax)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), 0)
    missing = result(converged=[True] * 5 + [False])
    missing["eigenvalue"] = missing.eigenvalue.where(missing.mode < 6)
    kpops.plot.spectrum(missing, plt.subplots()[1])
    plt.gcf().canvas.draw()


def test_no_figure_changes_the_global_style():
    before = plt.rcParams.copy()
    kpops.plot.spectrum(result())
    assert dict(plt.rcParams) == dict(before)


def test_without_axes_there_is_a_new_figure_as_wide_as_a_column(ax):
    drawn = kpops.plot.spectrum(result())
    assert drawn.figure.get_figwidth() == 3.5
    assert not ax.has_data()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            xr.DataArray(np.zeros(3), dims="time"),
            "expected mode, with or without step: mode is missing",
        ),
        (xr.Dataset({"estimate": 1.0}), r"\['estimate'\], expected eigenvalue or singular_value"),
    ],
)
def test_what_is_no_spectrum_is_refused(ax, wrong, message):
    with pytest.raises(ValueError, match=message):
        kpops.plot.spectrum(wrong, ax)


# Densities.

GRIDS = {"linear": np.linspace(-3.0, 3.0, 61), "log": np.logspace(-4, 2, 61)}


def density(scale, **attrs):
    """A result of spectral_density, as far as it is drawn."""
    grid = GRIDS[scale]
    value = ("value", grid, {"long_name": "eigenvalue", "units": "1"})
    height = 100 * np.exp(-(np.linspace(-2, 2, 61) ** 2))
    variables = {
        "density": ("value", height, {"long_name": "number per unit of value", "units": "1"}),
        "stderr": ("value", 0.1 * height),
        "cumulative": ("value", height[::-1].cumsum()[::-1], {"long_name": "number above"}),
        "cumulative_stderr": ("value", np.ones(61)),
        "outlier": ("mode", [50.0, -40.0, 3.1]),
    }
    return xr.Dataset(variables, {"value": value}, {"scale": scale, **attrs})


def band(ax):
    """Lower and upper side of the band, each as points."""
    (shade,) = ax.collections
    points = shade.get_paths()[0].vertices
    middle = len(points) // 2
    return points[1:middle], points[middle + 1 : -1][::-1]


def test_a_density_has_a_band_of_one_standard_error(ax):
    data = density("linear")
    assert kpops.plot.density(data, ax) is ax
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), data.density)
    lower, upper = band(ax)
    np.testing.assert_allclose(lower[:, 1], 0.9 * data.density)
    np.testing.assert_allclose(upper[:, 1], 1.1 * data.density)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("eigenvalue", "eigenvalues per unit")
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "linear")


def test_the_area_on_a_logarithmic_axis_is_the_number_of_values(ax):
    data = density("log")
    data["density"] = 100 / (np.log(10) * data["value"])  # a hundred in every one of six decades
    kpops.plot.density(data, ax)
    line = ax.lines[0]
    drawn = xr.DataArray(line.get_ydata(), {"decade": np.log10(line.get_xdata())}, "decade")
    assert float(drawn.integrate("decade")) == pytest.approx(600)
    assert (ax.get_xscale(), ax.get_ylabel()) == ("log", "eigenvalues per decade")
    np.testing.assert_allclose(band(ax)[1][:, 1] - 100, np.log(10) * data["value"] * data.stderr)


def test_outliers_are_filled_and_leading_modes_of_the_bulk_hollow(ax, legend):
    kpops.plot.density(density("linear", bulk_edge=2.5, n_outliers=2), ax)
    np.testing.assert_array_equal(with_label(ax, "outlier").get_xdata(), [50, -40])
    hollow = with_label(ax, "leading, in bulk")
    assert (list(hollow.get_xdata()), hollow.get_markerfacecolor()) == ([3.1], "white")
    edges = [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"]
    assert edges == [2.5, -2.5]
    assert legend(ax) == ["bulk edge", "outlier", "leading, in bulk"]


def test_zeros_off_a_logarithmic_axis_are_counted(ax, legend):
    kpops.plot.density(density("log", n_zeros=12.0, bulk_edge=50.0), ax)
    assert "12 zeros\nnot shown" in legend(ax)
    assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"] == [50]


def test_a_high_peak_makes_the_density_logarithmic_unless_told_otherwise(ax):
    data = density("linear")
    data["density"] = xr.where(data["value"] == data["value"][30], 1e5, data.density)
    kpops.plot.density(data, ax)
    assert ax.get_yscale() == "log"
    assert kpops.plot.density(data, plt.subplots()[1], log=False).get_yscale() == "linear"


def test_the_cumulative_density_counts_from_half_a_value_on(ax):
    data = density("log")
    kpops.plot.density(data, ax, cumulative=True)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), data["cumulative"])
    assert (ax.get_yscale(), ax.get_ylim()[0], ax.get_ylabel()) == ("log", 0.5, "number above")


def test_what_is_no_density_is_refused(ax):
    with pytest.raises(ValueError, match="expected density"):
        kpops.plot.density(result(), ax)
    with pytest.raises(ValueError, match=r"a DataArray: pass what kpops\.spectral_density"):
        kpops.plot.density(density("log").density, ax)
    with pytest.raises(ValueError, match=r"expected value: choose .*\.isel\(step=0\)"):
        kpops.plot.density(density("log").expand_dims(step=2), ax)


def test_a_density_that_is_not_known_is_empty(ax):
    data = density("linear")
    kpops.plot.density(data.assign(density=data.density * np.nan), ax)
    assert np.isnan(ax.lines[0].get_ydata()).all()
    assert (ax.get_yscale(), ax.get_ylim()[0]) == ("linear", 0)
    ax.figure.canvas.draw()
