"""Green's maps as heat maps on one scale."""

import numpy as np
import pytest
import xarray as xr

import kpops


def maps(a=0.5, n=6, shared=True):
    """Maps of a scalar system of weight a, as greens_map returns them."""
    lag = np.subtract.outer(np.arange(n), np.arange(n))
    response = np.where(lag > 0, a ** np.abs(lag), 0.0)
    dims = ("trial", "time", "time_in")
    coords = {"time": 1 + np.arange(n), "time_in": 1 + np.arange(n)}
    epoch = np.array([list("aabbbc")] * 2, dtype=object)
    coords["epoch"] = ("time", epoch[0]) if shared else (("trial", "time"), epoch)
    both = np.stack([response, response])
    return xr.Dataset({"energy": (dims, both**2), "projection": (dims, both)}, coords)


def test_responses_have_logarithmic_colours_and_none_on_the_diagonal():
    (ax,) = kpops.plot.greens_map(maps())
    (image,) = ax.images
    shown = image.get_array()
    np.testing.assert_array_equal(np.isnan(shown.filled(np.nan)), maps().energy[0] == 0)
    assert type(image.norm).__name__ == "LogNorm"
    assert image.get_clim() == pytest.approx((0.5**5, 0.5))
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("time", "input time")


def test_several_maps_share_one_scale():
    axes = kpops.plot.greens_map({"fast": maps(0.1), "slow": maps(0.9)})
    assert [ax.get_title() for ax in axes] == ["fast", "slow"]
    assert axes[0].images[0].get_clim() == axes[1].images[0].get_clim()
    assert axes[0].images[0].get_clim() == pytest.approx((1e-5, 0.9))
    assert axes[1].get_ylabel() == ""


def test_colours_span_at_most_six_decades():
    (ax,) = kpops.plot.greens_map(maps(0.01))
    assert ax.images[0].get_clim() == pytest.approx((1e-8, 1e-2))


def test_the_map_is_that_of_the_trials_and_steps_that_are_valid():
    data = maps().assign_coords(mask=(("trial", "time"), [[True] * 6, [True] * 2 + [False] * 4]))
    data.energy[1, 2:] = 0
    (ax,) = kpops.plot.greens_map(data)
    expected = kpops.plot.greens_map(maps())[0].images[0].get_array()
    np.testing.assert_allclose(ax.images[0].get_array(), expected)
    (ax,) = kpops.plot.greens_map(data.isel(trial=[0]))
    np.testing.assert_allclose(ax.images[0].get_array(), expected)


def test_epochs_that_differ_between_trials_are_not_drawn():
    data = maps(shared=False)
    data.epoch[1, 0] = "b"
    (ax,) = kpops.plot.greens_map(data)
    assert not ax.lines


def test_projections_are_signed():
    (ax,) = kpops.plot.greens_map(maps(-0.8), name="projection")
    assert ax.images[0].get_clim() == pytest.approx((-0.8, 0.8))


@pytest.mark.parametrize("shared", [True, False])
def test_changes_of_epoch_are_lines_on_both_axes(shared):
    (ax,) = kpops.plot.greens_map(maps(shared=shared))
    places = [line.get_xdata()[0] for line in ax.lines[::2]]
    assert places == [2.5, 5.5]
    assert [line.get_ydata()[0] for line in ax.lines[1::2]] == places


def test_maps_without_a_response_are_blank():
    (ax,) = kpops.plot.greens_map(0 * maps())
    ax.figure.canvas.draw()
    assert ax.images[0].get_array().count() == 0


@pytest.mark.parametrize(
    ("given", "options", "told"),
    [
        (xr.Dataset({"loss": 1.0}), {}, "expected energy: pass what kpops.greens_map"),
        (maps().energy, {}, "cannot plot a DataArray"),
        (maps().isel(time=0), {}, "expected trial, time, time_in: time is missing"),
        ({}, {}, "maps is empty"),
        (maps(), {"name": "rms"}, "name='rms': choose one of 'energy', 'projection'"),
    ],
)
def test_what_is_no_map_is_refused(given, options, told):
    with pytest.raises(ValueError, match=told):
        kpops.plot.greens_map(given, **options)
