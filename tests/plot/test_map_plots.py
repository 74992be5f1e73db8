"""Frobenius maps: energy where there is energy, on logarithmic colours."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import kpops


def causal(n=5, decay=10.0):
    """Energy of a causal map, and by lag, as frobenius_map returns them."""
    lag = np.arange(n)
    energy = np.tril(decay ** -(lag[:, None] - lag[None, :]).clip(0).astype(float))
    by_lag = np.array([np.trace(energy, -k) for k in lag])
    return xr.Dataset(
        {
            "energy": (("time", "time_in"), energy, {"long_name": "energy", "units": "1"}),
            "energy_by_lag": ("lag", by_lag, {"long_name": "energy by lag"}),
            "energy_by_lag_stderr": ("lag", 0.1 * by_lag),
            "near_diagonal": ("lag", by_lag.cumsum() / by_lag.sum(), {"long_name": "fraction"}),
        },
        {"time": 1 + lag, "time_in": 1 + lag, "lag": lag},
    )


def test_energy_has_logarithmic_colours_and_none_where_there_is_no_energy():
    data = causal()
    heat = kpops.plot.frobenius_map(data)[0]
    (image,) = heat.images
    shown = image.get_array()
    np.testing.assert_array_equal(np.isnan(shown.filled(np.nan)), data.energy == 0)
    np.testing.assert_allclose(shown.compressed(), data.energy.values[data.energy > 0])
    assert type(image.norm).__name__ == "LogNorm"
    assert image.get_clim() == pytest.approx((1e-4, 1))
    assert (heat.get_ylabel(), heat.get_xlabel()) == ("time", "input time")
    assert image.get_extent() == [0.5, 5.5, 5.5, 0.5]


def test_colours_span_at_most_six_decades():
    heat = kpops.plot.frobenius_map(causal(decay=1e4))[0]
    assert heat.images[0].get_clim() == pytest.approx((1e-6, 1))
    assert heat.images[0].colorbar.extend == "min"


def test_energy_by_lag_and_its_fraction_are_lines():
    data = causal()
    axes = kpops.plot.frobenius_map(data)
    assert axes.shape == (3,)
    np.testing.assert_array_equal(axes[1].lines[0].get_ydata(), data.energy_by_lag)
    np.testing.assert_array_equal(axes[2].lines[0].get_ydata(), data.near_diagonal)
    assert (axes[1].get_yscale(), axes[2].get_yscale()) == ("log", "linear")
    points = axes[1].collections[0].get_paths()[0].vertices
    first = points[points[:, 0] == 0, 1]
    np.testing.assert_allclose([first.min(), first.max()], [4.5, 5.5])
    assert not axes[2].collections


def test_a_map_without_lags_is_one_panel():
    energy = xr.Dataset({"energy": (("unit", "unit_in"), np.ones((3, 3)))})
    assert kpops.plot.frobenius_map(energy).shape == (1,)


def test_a_zero_operator_is_a_blank_map():
    axes = kpops.plot.frobenius_map(0 * causal())
    plt.gcf().canvas.draw()
    assert axes[0].images[0].get_array().count() == 0


def test_what_is_no_map_is_refused():
    with pytest.raises(ValueError, match="expected energy"):
        kpops.plot.frobenius_map(xr.Dataset({"loss": 1.0}))
    with pytest.raises(ValueError, match="expected dim, dim_in: dim, dim_in is missing"):
        kpops.plot.frobenius_map(xr.Dataset({"energy": ("time", [1.0])}))
    with pytest.raises(ValueError, match="cannot plot a DataArray"):
        kpops.plot.frobenius_map(causal().energy)
