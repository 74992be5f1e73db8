"""Steps of differential equations on a grid of times, which are part of the inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from kpops.arrays import as_tensor, to_numpy
from kpops.models.recurrence import ModuleRecurrence, as_recurrence, matching

_ARGUMENTS = ["th", "xh", "txh"]


class TimeStepped(nn.Module):
    """What the steps of ordinary and stochastic differential equations share.

    A recurrence is the same function at every step, so whatever differs between steps comes with
    the inputs. Their features are, side by side and where present,

        [length of the step | time at which it starts | external inputs | noise].

    `dt` is the length of every step; None if it comes with the inputs.
    """

    def __init__(self, dt: float | None, arguments: str) -> None:
        super().__init__()
        if dt is not None and not (math.isfinite(dt) and dt > 0):
            raise ValueError(
                f"dt={dt}: pass the length of a step, above 0, or None where the inputs carry it"
            )
        if arguments not in _ARGUMENTS:
            raise ValueError(
                f"arguments={arguments!r}: choose one of {_ARGUMENTS}, the order in which the "
                "field takes time t, inputs x and state h"
            )
        self.dt = dt if dt is None else float(dt)
        self.arguments = arguments

    def _split(self, x: Tensor) -> tuple[Tensor | float, Tensor | None, Tensor]:
        """Length of the step, time at its start, and the remaining features."""
        n_columns = (self.dt is None) + ("t" in self.arguments)
        if x.shape[-1] < n_columns:
            raise ValueError(
                f"inputs has {x.shape[-1]} features, {type(self).__name__} takes {n_columns} of "
                "time first: make them with its method inputs"
            )
        columns = list(x[..., :n_columns].split(1, dim=-1))
        dt = columns.pop(0) if self.dt is None else self.dt
        return dt, columns[0] if columns else None, x[..., n_columns:]

    def times(self, inputs: Tensor) -> np.ndarray:
        """Times (trial, time) at which the steps end, in the precision of `inputs`."""
        dt, starts, _ = self._split(inputs)
        dtype = inputs.dtype if inputs.is_floating_point() else torch.float64
        lengths = torch.as_tensor(dt).double().expand(*inputs.shape[:2], 1)[..., 0]
        if starts is None or bool((starts == starts[:, :1]).all()):
            return to_numpy(lengths.cumsum(1).to(dtype))  # the field takes no t, or ignores it
        starts = starts[..., 0].double()
        ends = starts + lengths
        # To rounding the next step starts there; prefer its start, which the user gave.
        bound = 1e-6 * (lengths + starts.abs())[:, :-1]
        meets = (starts[:, 1:] - ends[:, :-1]).abs() <= bound
        ends[:, :-1] = torch.where(meets, starts[:, 1:], ends[:, :-1])
        return to_numpy(ends.to(dtype))

    def _rate(self, field: Callable[..., Tensor], t: Tensor | None, x: Tensor, h: Tensor) -> Tensor:
        """Value of a field at (t, x, h), of the shape of h."""
        given = {"t": t, "x": x, "h": h}
        rate = field(*(given[name] for name in self.arguments))
        if not isinstance(rate, Tensor) or rate.shape != h.shape:
            got = tuple(rate.shape) if isinstance(rate, Tensor) else type(rate).__name__
            raise ValueError(
                f"the field returned {got} for h of shape {tuple(h.shape)}, expected the same "
                "shape; t comes as (row, 1), since rows may be at different times"
            )
        return rate

    def _features(self, times: Any, x: Any, n_trials: int) -> tuple[Tensor, Tensor]:
        """Features of time and external inputs, and lengths of the steps (trial, time, 1)."""
        grid = np.atleast_2d(to_numpy(as_tensor(times, "times")).astype(float))
        steps = np.diff(grid)
        if grid.ndim != 2 or grid.shape[1] < 2 or not (steps > 0).all():
            raise ValueError(
                f"times has shape {np.shape(times)}: pass (time + 1,) or (trial, time + 1) finite, "
                "rising times, from the start of the first step to the end of the last"
            )
        # A grid in float32 is rounded relative to its last times.
        if self.dt is not None and abs(steps - self.dt).max() > 1e-6 * (self.dt + abs(grid).max()):
            raise ValueError(
                f"times has steps from {steps.min():.6g} to {steps.max():.6g}, the model "
                f"dt={self.dt:.6g}: give times with that step, or make the model with dt=None"
            )
        if (x is not None) != ("x" in self.arguments):
            wanted = "needs" if x is None else "takes no"
            raise ValueError(f"arguments={self.arguments!r}: a field of this form {wanted} x")
        like = next(self.parameters(), torch.empty(0)).detach()
        if isinstance(x, xr.DataArray):
            x = x.transpose("trial", "time", ...).data
        external = None if x is None else matching(x, like, "x")
        n_trials = max(n_trials, len(grid)) if external is None else len(external)
        shape = (n_trials, steps.shape[1])
        if len(grid) not in (1, n_trials) or (
            external is not None and (external.ndim != 3 or tuple(external.shape[:2]) != shape)
        ):
            got = None if external is None else tuple(external.shape)
            raise ValueError(
                f"times {grid.shape}, x {got} and n_trials {n_trials} disagree: expected x of "
                f"shape (trial, time, feature) with {steps.shape[1]} steps, and one grid or one "
                "per trial"
            )
        lengths, starts = (
            like.new_tensor(values).expand(n_trials, -1)[..., None]
            for values in (steps, grid[:, :-1])
        )
        columns = [lengths] if self.dt is None else []
        columns += [starts] if "t" in self.arguments else []
        columns += [external] if external is not None else []
        return torch.cat(columns, dim=-1), lengths


def refuse_method(field: Any, name: str) -> None:
    """Refuse what is no function, or a method of a module whose parameters would be lost."""
    if not callable(field):
        raise TypeError(f"{name} is a {type(field).__name__}, expected an nn.Module or a function")
    owner = getattr(field, "__self__", None)
    if isinstance(owner, nn.Module):
        raise ValueError(
            f"{name} is a method of {type(owner).__name__}, whose parameters would be lost: pass "
            "an nn.Module whose forward is the field"
        )


class _TimeSteppedRecurrence(ModuleRecurrence):
    """The step of a differential equation, whose inputs contain the time."""

    module: Any

    def __init__(self, module: TimeStepped) -> None:
        super().__init__(module)
        self.forcing_step = getattr(module, "forcing_step", 1.0)

    def times(self, inputs: Tensor) -> np.ndarray:
        return self.module.times(inputs)


as_recurrence.register(TimeStepped, _TimeSteppedRecurrence)
