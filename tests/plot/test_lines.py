"""What a figure shows is what the data say."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import kpops

STEPS = {"step": [0, 10, 20]}


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def test_one_line_for_each_entry_with_its_label(ax):
    values = xr.DataArray(
        [[1.0, 2, 3], [4, 5, 6]],
        dims=("operator", "step"),
        coords={"operator": ["K", "P"], **STEPS},
        attrs={"long_name": "effective rank"},
    )
    assert kpops.plot.over_training(values, ax) is ax
    assert [line.get_label() for line in ax.lines] == ["K", "P"]
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [4, 5, 6])
    np.testing.assert_array_equal(ax.lines[1].get_xdata(), STEPS["step"])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("training iteration", "effective rank")


def test_a_spectrum_is_shown_by_magnitude_on_logarithmic_axes(ax):
    values = kpops.eigsh(np.diag([-4.0, 1.0]), k=2).eigenvalue
    kpops.plot.spectrum(values, ax, label="K")
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [4, 1])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ax.lines[0].get_label() == "K"


def test_other_dims_are_refused(ax):
    with pytest.raises(ValueError, match="expected step and at most one other"):
        kpops.plot.over_training(xr.DataArray(np.zeros(3), dims="time"), ax)
    with pytest.raises(ValueError, match=r"expected \('mode',\)"):
        kpops.plot.spectrum(xr.DataArray(np.zeros(3), dims="time"), ax)
