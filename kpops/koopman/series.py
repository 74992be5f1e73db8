"""Series of users, in one form: trials (time, observable) of any lengths, and their labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from kpops.arrays import as_tensor, numpy_dtype, to_numpy
from kpops.kinds import described, is_array
from kpops.labels import Coordinate, coordinates_of, refuse_other_labels
from kpops.learning.required import require_linearization
from kpops.linearization import Linearization

_TIMES = ("time", "step")
_TRIALS = ("trial", "seed")


@dataclass(frozen=True)
class Series:
    """Trials (time, observable) of one system; padded steps are cut off."""

    name: str
    trials: list[np.ndarray]
    observable: str = "unit"
    trial: str = "trial"
    coords: dict[str, Coordinate] = field(default_factory=dict)

    @property
    def dtype(self) -> np.dtype:
        """Their dtype."""
        return self.trials[0].dtype

    @property
    def n_observables(self) -> int:
        """Number of observables."""
        return self.trials[0].shape[1]

    @property
    def lengths(self) -> list[int]:
        """Steps of each trial."""
        return [len(x) for x in self.trials]

    def choose(self, which: np.ndarray) -> Series:
        """Return the series of some trials, without their labels."""
        return Series(self.name, [self.trials[i] for i in which], self.observable, self.trial)

    def refuse_other_labels(self, other: Series, dim: str) -> None:
        """Refuse another series whose positions along a dimension have other labels."""
        refuse_other_labels(self.coords, other.coords, (self.name, other.name), (dim,))

    def along(self, span: np.ndarray | None) -> Series:
        """Return the coordinates along vectors (observable, k), or the series itself."""
        if span is None:
            return self
        return Series(self.name, [x @ span for x in self.trials], "unit", self.trial)

    def windows(self, delays: int) -> list[np.ndarray]:
        """Return, of each trial, the windows (window, delay * observable), the first step first."""
        short = [(i, n) for i, n in enumerate(self.lengths) if n <= delays]
        if short:
            i, n = short[0]
            raise ValueError(
                f"{self.name} has {n} steps in {self.trial} {i}, too few for delays={delays}: pass "
                f"at least {delays + 1} steps, or choose fewer delays"
            )
        return [
            np.concatenate([x[d : len(x) - delays + 1 + d] for d in range(delays)], 1)
            for x in self.trials
        ]


def read_series(series: Any, mask: Any = None, name: str = "series") -> Series:
    """Read states of a linearization, an array, a DataArray, or a list of trials."""
    if isinstance(series, Series):
        return series
    if isinstance(series, Linearization):
        if mask is not None:
            raise ValueError("mask is given, but a linearization has its own: leave it out")
        valid = require_linearization(series, name).trajectory.mask
        series, mask = series.states, None if valid is None else to_numpy(valid)
    if isinstance(series, list | tuple):
        if mask is not None:
            raise ValueError("mask is given with a list of trials: cut them to their lengths")
        return _checked(_read_list(series, name))
    if not is_array(series):
        raise TypeError(
            f"{name} is {described(series)}: pass a linearization, an array (trial, time, unit), "
            "or a list of trials (time, unit)"
        )
    observable, trial, coords = "unit", "trial", {}
    if isinstance(series, xr.DataArray):
        mask = series.coords.get("mask") if mask is None else mask
        time, trial, observable = _dims_of(series, name)
        # And the labels of a trial or an observable that was selected.
        series = series.expand_dims([d for d in (trial, observable) if d not in series.dims])
        coords = coordinates_of(series.drop_vars("mask", errors="ignore"), (trial, observable))
        if isinstance(mask, xr.DataArray):
            mask = mask.transpose(*(d for d in (trial, time) if d in mask.dims)).values
        series = series.transpose(trial, time, observable).values
    values = _values(series, name)
    if values.ndim not in (1, 2, 3):
        raise ValueError(f"{name} has shape {values.shape}, expected (trial, time, unit)")
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim == 2:
        values = values[None]
    if not len(values):
        raise ValueError(f"{name} has no trials, shape {values.shape}: pass at least one")
    lengths = _lengths(mask, values.shape[:2], name)
    trials = [x[:n] for x, n in zip(values, lengths, strict=True)]
    return _checked(Series(name, trials, observable, trial, coords))


def _dims_of(series: xr.DataArray, name: str) -> tuple[str, str, str]:
    """Names of the dimensions of time, trials and observables."""
    dims = [str(d) for d in series.dims]
    times = [d for d in _TIMES if d in dims]
    trials = [d for d in _TRIALS if d in dims]
    rest = [d for d in dims if d not in (*times, *trials)]
    if len(times) != 1 or len(trials) > 1 or len(rest) > 1:
        raise ValueError(
            f"{name} has dims {series.dims}, expected time or step, perhaps trial or seed, and one "
            "dim of observables, such as unit or parameter: select or stack the others"
        )
    return times[0], trials[0] if trials else "trial", rest[0] if rest else "unit"


def _read_list(trials: list[Any] | tuple[Any, ...], name: str) -> Series:
    if not trials:
        raise ValueError(f"{name} is an empty list: pass at least one trial")
    read = [read_series(x, name=f"{name}[{i}]") for i, x in enumerate(trials)]
    several = [i for i, one in enumerate(read) if len(one.trials) > 1]
    if several:
        raise ValueError(
            f"{name}[{several[0]}] has {len(read[several[0]].trials)} trials: pass a list of "
            "single trials (time, unit)"
        )
    for what, of in (("observables", "n_observables"), ("dtype", "dtype")):
        kinds = [getattr(one, of) for one in read]
        other = [i for i, kind in enumerate(kinds) if kind != kinds[0]]
        if other:
            raise ValueError(
                f"{name}[{other[0]}] has {what} {kinds[other[0]]}, {name}[0] has {kinds[0]}: pass "
                "trials of one system, in one dtype"
            )
    for one in read:
        one.refuse_other_labels(read[0], read[0].observable)
    coords = {k: c for k, c in read[0].coords.items() if c.dims == (read[0].observable,)}
    return Series(name, [one.trials[0] for one in read], read[0].observable, coords=coords)


def _values(array: Any, name: str) -> np.ndarray:
    tensor = as_tensor(array, name)
    numpy_dtype(tensor.dtype)  # refuses what is not computed in
    return to_numpy(tensor)


def _lengths(mask: Any, shape: tuple[int, int], name: str) -> list[int]:
    """Valid steps of each trial, which have to come first."""
    if mask is None:
        return [shape[1]] * shape[0]
    given = to_numpy(as_tensor(mask, "mask"))
    if not np.isin(given, (0, 1)).all():
        raise ValueError("mask has values other than 0 and 1: pass booleans")
    valid = given.astype(bool)
    if valid.shape != shape and valid.shape != shape[1:]:
        raise ValueError(f"mask has shape {valid.shape}, expected (trial, time) = {shape}")
    valid = np.broadcast_to(valid, shape)
    lengths = valid.sum(1)
    for i, (row, n) in enumerate(zip(valid, lengths, strict=True)):
        if not row[:n].all():
            raise ValueError(
                f"mask of {name} has a gap in trial {i}, which no step may cross: pass a list of "
                "the pieces"
            )
    return lengths.tolist()


def _checked(series: Series) -> Series:
    """Refuse what has no dynamics to be found."""
    for i, x in enumerate(series.trials):
        if not np.isfinite(x).all():
            t = int((~np.isfinite(x).all(1)).argmax())
            raise ValueError(
                f"{series.name} is not finite at {series.trial} {i}, step {t}: cut it off before, "
                "or mask it"
            )
        if len(x) < 2:
            raise ValueError(
                f"{series.name} has {len(x)} steps in {series.trial} {i}: pass at least 2"
            )
    rounding = 8 * np.finfo(series.dtype).eps
    if not any((np.ptp(x, 0) > rounding * np.abs(x).max(0)).any() for x in series.trials):
        raise ValueError(f"{series.name} is constant in every {series.trial}: pass one that moves")
    return series
