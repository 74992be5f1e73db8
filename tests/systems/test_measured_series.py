"""Measured series: sizes, known values, labels, and what is refused."""

import importlib.util

import numpy as np
import pytest
import torch

import kpops

PACKAGES = {
    "laser": "reservoirpy",
    "sunspots": "statsmodels",
    "el_nino": "statsmodels",
    "japanese_vowels": "aeon",
}


def series(name):
    package = PACKAGES[name]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"could not import {package!r}: not installed")
    return kpops.systems.series(name)


@pytest.mark.parametrize(
    ("name", "sizes", "units", "time_units"),
    [
        ("laser", (1, 10093, 1), "1", "step"),
        ("sunspots", (1, 309, 1), "1", "year"),
        ("el_nino", (1, 732, 1), "degC", "year"),
        ("japanese_vowels", (640, 29, 12), "1", "step"),
    ],
)
def test_series_have_the_sizes_and_labels_that_are_known(name, sizes, units, time_units, tmp_path):
    array = series(name)
    assert array.dims == ("trial", "time", "unit") and array.shape == sizes
    assert array.dtype == np.float64 and np.isfinite(array).all()
    assert array.attrs["units"] == units and array.time.attrs["units"] == time_units
    assert all(c.attrs["long_name"] for c in array.coords.values())
    array.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    array.to_dataset().to_zarr(tmp_path / "a.zarr", consolidated=False)


def test_the_laser_begins_with_its_known_pulses():
    assert series("laser").values[0, :5, 0].tolist() == [86, 141, 95, 41, 22]


def test_sunspots_have_their_cycle_of_eleven_years():
    numbers = series("sunspots")[0, :, 0]
    assert float(numbers.sel(time=1700)) == 5 and float(numbers.time[-1]) == 2008
    power = abs(np.fft.rfft(numbers - numbers.mean())) ** 2
    assert 10 < 309 / (1 + power[1:].argmax()) < 12


def test_el_nino_has_the_cycle_of_a_year():
    values = series("el_nino")[0, :, 0]
    assert float(values[0]) == 23.11 and float(values.time[0]) == pytest.approx(1950 + 1 / 24)
    power = abs(np.fft.rfft(values - values.mean())) ** 2
    assert 732 / (1 + power[1:].argmax()) == 12


def test_utterances_are_padded_and_kpops_reads_their_mask():
    vowels = series("japanese_vowels")
    assert int(vowels.length.min()) == 7 and int(vowels.length.max()) == 29
    assert (vowels.part == "train").sum() == 270 and set(vowels.speaker.values) == {*range(1, 10)}
    train = vowels.speaker.values[vowels.part.values == "train"]
    assert (np.bincount(train)[1:] == 30).all()
    np.testing.assert_array_equal(vowels.mask.sum("time"), vowels.length)
    assert (vowels.where(~vowels.mask, 0) == 0).all()
    few = vowels[:5]
    gru = torch.nn.GRU(12, 4, batch_first=True, dtype=torch.float64)
    lin = kpops.linearize(gru, few)
    np.testing.assert_array_equal(lin.states.mask, few.mask)


def test_unknown_series_are_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="did you mean sunspots"):
        kpops.systems.series("sunspot")
    with pytest.raises(ValueError, match="choose one of"):
        kpops.systems.series("xyzzy")
    with pytest.raises(TypeError, match="the number 3"):
        kpops.systems.series(3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("laser", r"reservoirpy.*kpops-flow\[data\]"),
        ("sunspots", r"statsmodels.*kpops-flow\[data\]"),
        ("japanese_vowels", "aeon.*pip install --no-deps aeon"),
    ],
)
def test_without_its_package_a_series_says_what_to_install(name, message, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ImportError, match=message):
        kpops.systems.series(name)
