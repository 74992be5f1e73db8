"""Results of a measure over training, side by side along the dimension step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from kpops.learning.required import labelled


class MeasureError(RuntimeError):
    """A checkpoint could not be read, linearised or measured; the others are not lost.

    ``finished`` is the result of :func:`kpops.over_training` for those before, or None.
    """

    def __init__(self, message: str, finished: xr.Dataset | None = None) -> None:
        super().__init__(message)
        self.finished = finished


def failure(errors: Mapping[int, str], finished: xr.Dataset | None, kept: str = "") -> MeasureError:
    """The error that names the first step at which the measure failed, by the tracebacks."""
    step, text = min(errors.items())
    more = f", and at {len(errors) - 1} more" if len(errors) > 1 else ""
    error = MeasureError(f"at step {step}{more}: {error_in(text)}{kept}", finished)
    error.__cause__ = RuntimeError(text)
    return error


def error_in(traceback: str) -> str:
    """The error below the frames of a traceback, whose message may have several lines."""
    lines = traceback.strip().splitlines()
    below = 1 + max(i for i, line in enumerate(lines) if line.startswith("  "))
    return "\n".join(lines[below:]) or lines[-1]


def refuse_other_form(result: xr.Dataset, before: Mapping[int, xr.Dataset]) -> None:
    """Refuse what cannot be joined with the results of the steps before."""
    if not before:
        return
    step, first = next(iter(before.items()))
    for kind, noun in {"data_vars": "variables", "coords": "coordinates"}.items():
        mine, theirs = (sorted(map(str, getattr(d, kind))) for d in (result, first))
        if mine != theirs:
            raise ValueError(
                f"measure returned the {noun} {mine}, at step {step} {theirs}: return the same at "
                "every checkpoint"
            )
    for name, variable in result.variables.items():
        sizes, wanted = dict(variable.sizes), dict(first[name].sizes)
        if sizes != wanted:
            raise ValueError(
                f"measure returned {name} of sizes {sizes}, at step {step} {wanted}: return the "
                "same sizes at every checkpoint, padded with NaN if need be"
            )
    for dim in result.dims:
        if dim in result.coords and not result[dim].variable.equals(first[dim].variable):
            raise ValueError(
                f"measure returned other labels of {dim} than at step {step}: give the dimension "
                "the same labels at every checkpoint, and return what differs as a variable"
            )


def join(results: Mapping[int, xr.Dataset]) -> xr.Dataset | None:
    """One Dataset with the dimension step, or None if there are no results."""
    if not results:
        return None
    steps = sorted(results)
    joined = xr.concat(
        [results[step] for step in steps],
        dim="step",
        combine_attrs="drop_conflicts",
        join="exact",
        data_vars="all",
        coords="different",  # a coordinate that changes over training is kept for every step
        compat="equals",
    )
    return joined.assign_coords(step=labelled("step", np.array(steps), "training iteration"))
