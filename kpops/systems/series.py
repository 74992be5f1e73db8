"""Measured series that other packages ship; read offline, without importing these packages."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr

from kpops.kinds import described


def series(name: str) -> xr.DataArray:
    """A measured series by its name, from the files of an installed package.

    Parameters
    ----------
    name : {"laser", "japanese_vowels", "sunspots", "el_nino"}
        - ``laser``: intensity of a far-infrared laser, 10,093 steps, set A of the competition of
          Santa Fe with its continuation; from reservoirpy. Weigend and Gershenfeld 1993, Time
          Series Prediction.
        - ``japanese_vowels``: 640 utterances of two vowels by nine speakers, 12 cepstral
          coefficients, 7 to 29 steps; from aeon. Kudo, Toyama and Shimbo 1999, Pattern Recognit.
          Lett. 20, 1103-1111.
        - ``sunspots``: their yearly number, 1700 to 2008; from statsmodels.
        - ``el_nino``: monthly temperature of the sea surface in degrees Celsius, 1950 to 2010; from
          statsmodels.

    Returns
    -------
    DataArray, dims (trial, time, unit)
        In float64, not scaled. Utterances are padded with zeros, and the coordinate ``mask``
        (trial, time), which :func:`kpops.linearize` reads, is False there; ``length``, ``speaker``
        and ``part`` (trial), "train" or "test", belong to them.

    Raises
    ------
    ImportError
        If the package is not installed: ``pip install 'kpops-flow[data]'`` brings reservoirpy and
        statsmodels; aeon, which asks for other versions of Numba and pandas, comes without them by
        ``pip install --no-deps aeon``.
    ValueError
        If the name is unknown.

    Examples
    --------
    >>> import kpops
    >>> laser = kpops.systems.series("laser")
    >>> dict(laser.sizes)
    {'trial': 1, 'time': 10093, 'unit': 1}
    """
    if not isinstance(name, str):
        raise TypeError(f"name is {described(name)}: pass one of {list(_SERIES)}")
    if name not in _SERIES:
        near = difflib.get_close_matches(name.lower(), list(_SERIES), n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {list(_SERIES)}"
        raise ValueError(f"no series has the name {name!r}: {hint}")
    return _SERIES[name]()


def _folder(package: str, install: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f"this series comes with {package}, which is not installed: install it by {install}"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "datasets"


_DATA = "pip install 'kpops-flow[data]'"


def _laser() -> xr.DataArray:
    values = np.load(_folder("reservoirpy", _DATA) / "santafe_laser.npy")
    time = np.arange(1, len(values) + 1)
    return _labelled(values[None], time, "step", "laser intensity", "1", ["intensity"])


def _sunspots() -> xr.DataArray:
    file = _folder("statsmodels", _DATA) / "sunspots" / "sunspots.csv"
    years, numbers = np.loadtxt(file, delimiter=",", skiprows=1, unpack=True)
    return _labelled(numbers[None, :, None], years, "year", "sunspot number", "1", ["sunspots"])


def _el_nino() -> xr.DataArray:
    file = _folder("statsmodels", _DATA) / "elnino" / "elnino.csv"
    table = np.loadtxt(file, delimiter=",", skiprows=1)
    months = (table[:, :1] + (np.arange(12) + 0.5) / 12).ravel()
    values = table[:, 1:].reshape(1, -1, 1)
    name = "temperature of the sea surface"
    return _labelled(values, months, "year", name, "degC", ["temperature"])


def _japanese_vowels() -> xr.DataArray:
    folder = _folder("aeon", "pip install --no-deps aeon") / "data" / "JapaneseVowels"
    trials, speakers, parts = [], [], []
    for part in ("TRAIN", "TEST"):
        text = (folder / f"JapaneseVowels_{part}.ts").read_text()
        for line in text.partition("@data")[2].split():
            *channels, speaker = line.split(":")
            trials.append(np.array([channel.split(",") for channel in channels], dtype=float).T)
            speakers.append(int(speaker))
            parts.append(part.lower())
    lengths = np.array([len(trial) for trial in trials])
    values = np.zeros((len(trials), lengths.max(), trials[0].shape[1]))
    for padded, trial in zip(values, trials, strict=True):
        padded[: len(trial)] = trial
    time = np.arange(1, values.shape[1] + 1)
    names = [f"coefficient {i + 1}" for i in range(values.shape[2])]
    array = _labelled(values, time, "step", "linear prediction cepstral coefficient", "1", names)
    return array.assign_coords(
        mask=(("trial", "time"), time <= lengths[:, None], {"long_name": "valid step"}),
        length=("trial", lengths, {"long_name": "number of valid steps", "units": "step"}),
        speaker=("trial", np.array(speakers), {"long_name": "speaker", "units": "1"}),
        part=("trial", np.array(parts, dtype=object), {"long_name": "part of the data"}),
    )


def _labelled(
    values: np.ndarray, time: np.ndarray, unit: str, name: str, units: str, variables: list[str]
) -> xr.DataArray:
    return xr.DataArray(
        values.astype(np.float64),
        dims=("trial", "time", "unit"),
        coords={
            "trial": ("trial", np.arange(len(values)), {"long_name": "trial", "units": "1"}),
            "time": ("time", time, {"long_name": "time", "units": unit}),
            "unit": ("unit", np.arange(values.shape[2]), {"long_name": "unit", "units": "1"}),
            "variable": ("unit", np.array(variables, dtype=object), {"long_name": "variable"}),
        },
        name="series",
        attrs={"long_name": name, "units": units},
    )


_SERIES: dict[str, Callable[[], xr.DataArray]] = {
    "laser": _laser,
    "japanese_vowels": _japanese_vowels,
    "sunspots": _sunspots,
    "el_nino": _el_nino,
}
