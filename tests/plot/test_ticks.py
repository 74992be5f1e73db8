"""Where entries stand on an axis: dates, durations, whole numbers, names; and padding."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.dates import ConciseDateFormatter, date2num

import kpops
from kpops.plot.wording import names

RNG = np.random.default_rng(0)
N = 20
DATES = np.datetime64("2026-01-05T09:00", "ns") + np.arange(N) * np.timedelta64(30, "s")
SPANS = np.arange(1, N + 1) * np.timedelta64(20, "ms").astype("timedelta64[ns]")
STEPS = {"long_name": "time", "units": "step"}
TIMES = {
    "date": (DATES, {"long_name": "time"}, date2num(DATES), "time (from 2026-01-05)"),
    "duration": (SPANS, {"long_name": "time"}, 20.0 * np.arange(1, N + 1), "time (ms)"),
    "step": (np.arange(1, N + 1), STEPS, np.arange(1, N + 1), "time (step)"),
    "second": (0.02 * np.arange(N), {"units": "s"}, 0.02 * np.arange(N), "time (s)"),
    "no unit": (np.arange(N), {}, np.arange(N), "time"),
}


def texts(axis):
    axis.figure.canvas.draw()
    return [text.get_text() for text in axis.get_ticklabels() if text.get_text()]


def whole(axis):
    """Ticks in view, which must be whole numbers."""
    axis.figure.canvas.draw()
    low, high = sorted(axis.get_view_interval())
    ticks = axis.get_majorticklocs()
    ticks = ticks[(ticks >= low) & (ticks <= high)]
    np.testing.assert_array_equal(ticks, np.round(ticks))
    return ticks.tolist()


def field(time, attrs, trials=3):
    values = RNG.standard_normal((2, trials, N, 4))
    coords = {"mode": [1, 2], "trial": np.arange(trials), "time": ("time", time, attrs)}
    return xr.DataArray(values, coords, ("mode", "trial", "time", "unit"), name="eigenfunction")


@pytest.mark.parametrize(("time", "attrs", "at", "label"), TIMES.values(), ids=TIMES)
def test_fields_stand_at_their_times(time, attrs, at, label):
    (heat, courses), _ = kpops.plot.eigenfunctions(field(time, attrs), unit=0)
    left, right = heat.images[0].get_extent()[:2]
    gap = at[1] - at[0]
    np.testing.assert_allclose([left, right], [at[0] - gap / 2, at[-1] + gap / 2], rtol=1e-9)
    np.testing.assert_allclose(courses.lines[0].get_xdata(), at)
    assert courses.get_xlabel() == label
    heat.figure.canvas.draw()


@pytest.mark.parametrize(("time", "attrs", "at", "label"), TIMES.values(), ids=TIMES)
def test_modes_of_time_histories_and_maps_stand_at_their_times(time, attrs, at, label):
    lines = field(time, attrs).isel(trial=0, unit=0, drop=True)
    axes = kpops.plot.eigenfunctions(lines)
    np.testing.assert_allclose(axes[1, 0].lines[1].get_xdata(), at)
    assert (axes[0, 0].get_xlabel(), axes[1, 0].get_xlabel()) == ("", label)
    ax = kpops.plot.lyapunov_history(xr.Dataset({"history": lines}))
    np.testing.assert_allclose(ax.lines[1].get_xdata(), at)
    assert ax.get_xlabel() == label
    coords = {"time": ("time", time, attrs), "time_in": ("time_in", time, attrs)}
    energy = xr.Dataset({"energy": (("time", "time_in"), np.ones((N, N)))}, coords)
    (heat,) = kpops.plot.frobenius_map(energy)
    assert (heat.get_ylabel(), heat.get_xlabel()) == (label, f"input {label}")
    np.testing.assert_allclose(np.mean(heat.images[0].get_extent()), at.mean())
    heat.figure.canvas.draw()


def test_dates_are_written_as_dates():
    (_, courses), _ = kpops.plot.eigenfunctions(field(DATES, {}), unit=0)
    assert isinstance(courses.xaxis.get_major_formatter(), ConciseDateFormatter)
    assert "09:05" in texts(courses.xaxis)


def test_results_that_share_an_axis_share_the_unit_of_durations(ax):
    for longest in ("ms", "h"):
        spans = np.arange(1, N + 1) * np.timedelta64(1, longest).astype("timedelta64[ns]")
        lines = xr.DataArray(np.zeros((N, 1)), {"time": spans}, ("time", "mode"))
        kpops.plot.lyapunov_history(xr.Dataset({"history": lines}), ax)
    assert ax.get_xlabel() == "time (ms)"
    np.testing.assert_allclose(ax.lines[-1].get_xdata(), 3.6e6 * np.arange(1, N + 1))


def test_times_that_are_not_even_are_counted_and_named_in_both_panels():
    time = np.r_[0.0:10, 10:110:10]
    (heat, courses), _ = kpops.plot.eigenfunctions(field(time, {"units": "s"}), unit=0)
    assert heat.images[0].get_extent()[:2] == [-0.5, 19.5]
    np.testing.assert_array_equal(courses.lines[0].get_xdata(), np.arange(N))
    assert texts(courses.xaxis)[-2:] == ["70", "90"]
    assert courses.get_xlabel() == "time (s)"


def test_times_that_are_missing_are_counted(ax):
    time = DATES.copy()
    time[3] = np.datetime64("NaT")
    lines = xr.Dataset({"history": (("time", "mode"), np.zeros((N, 1)))}, {"time": time})
    kpops.plot.lyapunov_history(lines, ax)
    np.testing.assert_array_equal(ax.lines[1].get_xdata(), np.arange(N))
    ax.figure.canvas.draw()


@pytest.mark.parametrize("trials", [1, 2, 5, 40])
def test_trials_have_whole_ticks_and_one_trial_has_one(trials):
    (heat, _), _ = kpops.plot.eigenfunctions(field(*TIMES["step"][:2], trials), unit=0)
    ticks = whole(heat.yaxis)
    assert set(ticks) <= set(range(trials))
    assert len(ticks) == 1 if trials == 1 else len(ticks) > 1


def test_a_trial_with_a_name_or_a_time_alone_has_its_tick():
    one = field(*TIMES["second"][:2], 1).assign_coords(trial=["probe"])
    (heat, _), _ = kpops.plot.eigenfunctions(one, unit=0)
    assert texts(heat.yaxis) == ["probe"]
    (heat, courses), _ = kpops.plot.eigenfunctions(one.isel(time=[7]), unit=0)
    assert texts(courses.xaxis) == ["0.14"]


def test_a_single_mode_and_a_single_step_have_one_tick(ax):
    values = xr.Dataset({"exponent": ("mode", [0.5])}, {"mode": [1]})
    kpops.plot.lyapunov_spectrum(values, ax)
    assert whole(ax.xaxis) == [1]
    loss = xr.DataArray([0.5], {"step": [300]}, ("step",))
    assert whole(kpops.plot.over_training(loss).xaxis) == [300]
    alone = xr.DataArray([0.5], {"mode": [1]}, ("mode",), name="eigenvalue")
    assert whole(kpops.plot.spectrum(alone).xaxis) == [1]
    captured = xr.Dataset({"explained": ("mode", [1.0])}, {"mode": [1]})
    assert whole(kpops.plot.captured(captured).xaxis) == [1]


def test_modes_steps_and_units_have_whole_ticks(ax):
    values = xr.Dataset({"exponent": ("mode", [0.5, 0.2, 0.1])}, {"mode": [1, 2, 3]})
    assert whole(kpops.plot.lyapunov_spectrum(values, ax).xaxis) == [1, 2, 3]
    loss = xr.DataArray([0.5, 0.3], {"step": [0, 1]}, ("step",))
    assert whole(kpops.plot.over_training(loss).xaxis) == [0, 1]
    units = xr.Dataset({"energy": (("unit", "unit_in"), np.ones((2, 2)))})
    (heat,) = kpops.plot.frobenius_map(units)
    assert whole(heat.xaxis) == whole(heat.yaxis) == [0, 1]


def test_many_names_are_thinned(ax):
    ranks = xr.DataArray(np.ones(40), {"trial": np.arange(40)}, ("trial",), name="estimate")
    kpops.plot.effective_rank(ranks, ax)
    assert texts(ax.xaxis) == [str(i) for i in range(0, 40, 4)]


# Padding.

MASK = np.arange(N) < np.array([N, 12, 5])[:, None]


def padded(steps=TIMES["step"][:2]):
    whole_field = field(*steps)
    masked = whole_field.where(xr.DataArray(MASK, dims=("trial", "time")), 0.0)
    return masked.assign_coords(mask=(("trial", "time"), MASK))


def test_masked_trials_end():
    values = padded()
    axes = kpops.plot.eigenfunctions(values, unit=1)
    for mode, (heat, courses) in enumerate(axes):
        expected = np.where(MASK, values[mode, ..., 1], np.nan)
        np.testing.assert_array_equal(heat.images[0].get_array().filled(np.nan), expected)
        drawn = [line.get_ydata() for line in courses.lines if len(line.get_xdata()) == N]
        np.testing.assert_array_equal(drawn, expected)
        assert not courses.texts  # they were found
        assert heat.get_facecolor() != (1, 1, 1, 1)


def test_root_mean_squares_leave_padding_out():
    values = padded()
    axes = kpops.plot.eigenfunctions(values, over="unit", trial="rms")
    squares = np.where(MASK[..., None], values[0] ** 2, 0).sum(0) / MASK.sum(0)[:, None]
    np.testing.assert_allclose(axes[0, 0].images[0].get_array(), np.sqrt(squares).T)
    axes = kpops.plot.eigenfunctions(values, unit="rms")
    rms = np.sqrt((values[1].values ** 2).mean(-1))
    expected = np.where(MASK, rms, np.nan)
    np.testing.assert_allclose(axes[1, 0].images[0].get_array().filled(np.nan), expected)


def test_steps_that_no_trial_has_are_blank():
    values = padded().isel(trial=[1, 2])
    axes = kpops.plot.eigenfunctions(values, over="unit", trial="rms")
    shown = axes[0, 0].images[0].get_array().filled(np.nan)
    np.testing.assert_array_equal(np.isnan(shown), np.tile(np.arange(N) >= 12, (4, 1)))


def test_a_padded_mode_that_was_not_found_says_so():
    values = padded()
    values[1] = np.nan
    axes = kpops.plot.eigenfunctions(values, unit=0)
    assert [text.get_text() for text in axes[1, 1].texts] == ["not found"]
    plt.gcf().canvas.draw()


@pytest.mark.parametrize(
    ("entries", "written"),
    [
        (np.array(["2026-01-05", "2026-01-06"], "M8[ns]"), ["2026-01-05", "2026-01-06"]),
        (np.array(["2026-01-05T09:00", "NaT"], "M8[ns]"), ["2026-01-05 09:00", "NaT"]),
        (np.array([1, 1500], "m8[ms]"), ["1 ms", "1500 ms"]),
        (np.array([5, 240], "m8[m]"), ["0.0833333 h", "4 h"]),
        (np.array([0.1 + 0.2, 2.0]), ["0.3", "2"]),
        (np.array([3, 40]), ["3", "40"]),
        (np.array(["a", "b"], object), ["a", "b"]),
    ],
)
def test_names_are_short(entries, written):
    assert names(xr.DataArray(entries, dims="x")) == written


def test_entries_of_a_multi_index_are_named():
    values = xr.DataArray([[1, 2]], {"task": ["Pro"], "angle": [0, 1]}, ("task", "angle"))
    assert names(values.stack(trial=("task", "angle"))["trial"]) == ["Pro, 0", "Pro, 1"]
