"""Lyapunov exponents: how fast tangent vectors grow along trajectories."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops import work
from kpops.arrays import to_numpy
from kpops.dynamics import lyapunov_statistics as statistics
from kpops.dynamics.lyapunov_source import Source, read_source
from kpops.dynamics.lyapunov_tangent import evolve_frames
from kpops.engines.exclusive import exclusive_compute
from kpops.labels import Space
from kpops.scalars import check_count, check_real

_WINDOWS = 100
"""About as many finite-time exponents of a trial, where no window is given."""


@work.shown
def lyapunov_spectrum(
    lin_or_model: Any,
    k: int | None = None,
    *,
    inputs: Any = None,
    h0: Any = None,
    n_steps: int | None = None,
    transient: int = 0,
    frame_transient: int | None = None,
    window: int | None = None,
    interval: int | None = None,
    dt: float | None = None,
    dtype: torch.dtype | None = None,
    rng: int | np.random.Generator | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Lyapunov exponents along the trajectories of a recurrent model.

    Parameters
    ----------
    lin_or_model : Linearization or nn.Module
        A linearization, whose trajectories are taken as they are, with its mask; or any model that
        :func:`kpops.linearize` takes, or one without parameters, which is then run here, all
        trials together, and nothing of the trajectories is kept.
    k : int, optional
        Number of leading exponents. Default: as many as there are state variables S.
    inputs : Tensor, array_like or DataArray, optional
        Shape (trial, time, feature), for a model: as :func:`kpops.linearize` takes them.
    h0 : array_like, optional
        Initial state (trial, unit) or (unit,), for a model. Default: zero, which without inputs
        is one trial, and may be a fixed point. A model without parameters computes in its dtype.
    n_steps : int, optional
        Number of steps that a model runs without inputs; one that asks for some gets zeros.
    transient : int
        Steps at the beginning that the state is given to reach the attractor.
    frame_transient : int, optional
        Steps thereafter that the tangent vectors are given to turn. Default: a tenth of what is
        left.
    window : int, optional
        Steps of a window of finite-time exponents. Default: a hundredth of what is left. Windows
        end with the last step; steps that do not fill one go to the turning of the tangents.
    interval : int, optional
        Most steps between two QRs. Default: what the growth allows; see Notes.
    dt : float, optional
        Time that a step takes; the exponents are then per unit of time.
    dtype : torch.dtype, optional
        float32 or float64 to convert a model, its inputs and h0 to.
    rng : int, Generator or None
        Source of the tangent vectors at the start.
    progress : bool
        Show a bar of the steps.

    Returns
    -------
    Dataset
        In the dtype of the computation, per step or per unit of time, modes in the order of QR:

        - ``exponent(mode)``, mean over trials, and ``stderr(mode)``; ``trial_exponent(trial,
          mode)`` and ``trial_stderr(trial, mode)`` of every trial alone;
        - ``finite_time_exponent(trial, time, mode)``, over the window that ends at ``time``; NaN
          where the mask ends a trial before. Their distribution is that of local growth;
          ``finite_time_std(mode)`` is its standard deviation over trials and windows;
        - ``history(time, mode)``: what ``exponent`` would be, had the run ended at ``time``;
        - ``kaplan_yorke_dimension`` and ``entropy_bound`` of ``exponent``, as the functions of
          these names give them: NaN where more than ``k`` exponents are needed;
        - ``mean_log_det``, if ``k`` is S and Jacobians are formed, which is where it is cheap: the
          mean of ``log |det A[t]|``, to which all exponents add up in every run.

        The attribute ``dynamics`` says what the exponents are: ``"autonomous"`` where there are no
        inputs, or constant ones; ``"driven"`` where inputs change. These are conditional exponents,
        of the response to one input: that all are negative says that the network forgets where it
        started, and nothing of what it does by itself.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, the model is (see :func:`kpops.linearize`), a trial is shorter than
        the transients, or states or tangents become infinite.

    See Also
    --------
    covariant_lyapunov_vectors : The directions in which tangents grow at these rates.

    Notes
    -----
    With A[t] the state Jacobian and ``A[t] Q[t-1] = Q[t] R[t]``, the i-th exponent is the mean of
    ``log |R_ii[t]|`` (Benettin et al. 1980, Meccanica 15, 9-30; for recurrent networks Engelken,
    Wolf and Abbott 2023, Phys. Rev. Research 5, 043044). Several steps are taken between two QRs,
    which changes nothing in exact arithmetic: as many as keep the ratio of the longest to the
    shortest tangent near eps^(-1/4), that is 8e3 in float64 and 54 in float32; so the error of
    each logarithm is near eps^(3/4). Where more has grown than eps^(-1/2), fewer steps are taken
    anew. One step costs about 2 G S^2 k operations for each trial of a cell of G gates, a QR 4 S
    k^2; the memory is that of a chunk of steps.

    A Jacobian may be singular, as those of piecewise-linear networks are whose units are off. From
    then on as many modes as it takes away are ``-inf``, and have no standard error. A mode that one
    step shrinks, relative to the longest tangent, below 4 S^(1/2) eps cannot be told from one that
    is taken away: float64 can tell more of them than float32. If a mode is taken away before
    another of the k, which needs directions that do not couple at all, those after it are not told
    right.

    Relation to the propagator: with t steps from s on, ``A[s+t] ... A[s+1]`` is the block of P from
    time s to time s + t. By Oseledets' theorem the logarithms of its singular values, over t, tend
    to the exponents. At every t those of the largest i add up to at least the i-volume's growth,
    ``log |R_11 .. R_ii|``, and all of them to exactly that of ``|det|``.

    Standard errors of a trial are by batch means: its windows, but for some at the beginning, are
    put together in up to 20 batches of one length, whose means are nearly independent where batches
    are longer than what is correlated (Schmeiser 1982, Operations Research 30, 556-568); shorter
    ones of an oscillating growth give too large an error. The mean over 20 trials or more has the
    error that the spread between trials gives, which are taken to be independent: starts that an
    oscillation keeps in step are not, so let their phases differ. That over fewer has the larger of
    this one and of that by batch means, with 20 batches in all. All of them tell of fluctuations,
    not of transients: watch ``history`` for these.

    Examples
    --------
    A map in the plane, in three lines: that of Henon, whose exponents add up to log 0.3.

    >>> import torch, kpops
    >>> class Henon(torch.nn.Module):
    ...     def forward(self, x, h):
    ...         return torch.stack([1 - 1.4 * h[:, 0] ** 2 + h[:, 1], 0.3 * h[:, 0]], -1)
    >>> h0 = torch.zeros(10, 2).double() + torch.linspace(0, 0.1, 10).double()[:, None]
    >>> result = kpops.lyapunov_spectrum(Henon(), h0=h0, n_steps=2000, transient=100, rng=0)
    >>> result.attrs["dynamics"]
    'autonomous'
    >>> print(f"{float(result.exponent.sum()):.6f}")
    -1.203973
    >>> bool(abs(result.exponent[0] - 0.419) < 3 * result.stderr[0])
    True

    Conditional exponents of the trials of a linearization:

    >>> lin = kpops.linearize(torch.nn.GRU(3, 8, batch_first=True), torch.randn(5, 60, 3))
    >>> result = kpops.lyapunov_spectrum(lin, k=3)
    >>> dict(result.trial_exponent.sizes), result.attrs["dynamics"]
    ({'trial': 5, 'mode': 3}, 'driven')
    """
    check_dt(dt)
    source = read_source(lin_or_model, inputs, h0, n_steps, dtype)
    k = number_of_modes(k, source)
    if interval is not None:
        check_count("interval", interval, 1)
    plan = _plan(source, transient, frame_transient, window)
    with exclusive_compute(source.start.device):
        growth, log_det = _grow(source, k, plan, interval, rng)
    if dt is not None:
        growth, log_det = growth / dt, log_det / dt
    steps = plan.steps(source.lengths).to(growth)
    variables = statistics.of_windows(growth, steps)
    complete = k == source.space.sizes["unit"]
    for name in ("kaplan_yorke_dimension", "entropy_bound"):
        value = getattr(statistics, name)(to_numpy(variables["exponent"]), complete=complete)
        variables[name] = torch.tensor(float(value), dtype=torch.float64)
    if not log_det.isnan().any():
        variables["mean_log_det"] = (log_det / steps.sum(1)).mean()
    space = source.labels(plan.ends, k, dt)
    settings = {
        "k": k,
        "n_steps": source.space.sizes["time"],
        "transient": int(transient),
        "frame_transient": plan.ends[0] - plan.window - int(transient),
        "window": plan.window,
        "interval": interval,
        "dt": dt,
    }
    return dataset(source, space, variables, _NAMES, settings)


# What is counted.


@dataclass(frozen=True)
class _Plan:
    """Where a run is divided.

    Attributes
    ----------
    transient : int
        Steps before tangents are taken along.
    ends : list of int
        Numbers of steps at the ends of the windows.
    window : int
        Steps of a window.
    """

    transient: int
    ends: list[int]
    window: int

    @property
    def begin(self) -> int:
        """Steps before growth is counted."""
        return self.ends[0] - self.window

    def steps(self, lengths: Tensor) -> Tensor:
        """Valid steps of every trial in every window, (trial, window)."""
        return (lengths[:, None] - torch.tensor(self.ends) + self.window).clamp(0, self.window)


def _plan(source: Source, transient: int, frame_transient: int | None, window: int | None) -> _Plan:
    n_steps = source.space.sizes["time"]
    check_count("transient", transient, 0, n_steps - 1)
    left = n_steps - int(transient)
    if frame_transient is not None:
        check_count("frame_transient", frame_transient, 0, left - 1)
    left -= left // 10 if frame_transient is None else int(frame_transient)
    if window is not None:
        check_count("window", window, 1, left)
    size = max(1, left // _WINDOWS) if window is None else int(window)
    ends = list(range(n_steps, n_steps - left + size - 1, -size))[::-1]
    plan = _Plan(int(transient), ends, size)
    shortest = int(source.lengths.min())
    if shortest <= plan.begin:
        raise ValueError(
            f"trial {int(source.lengths.argmin())} has {shortest} valid steps, of which none is "
            f"left after transients of {plan.begin}: shorten transient or frame_transient, or drop "
            "the trial"
        )
    return plan


def _grow(
    source: Source,
    k: int,
    plan: _Plan,
    interval: int | None,
    rng: int | np.random.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Growth (trial, window, mode), and log |det| (trial,) of all that is counted, or NaN."""
    n_trials = source.space.sizes["trial"]
    growth = torch.zeros(n_trials, len(plan.ends), k, dtype=torch.float64)
    log_det = torch.zeros(n_trials, dtype=torch.float64)
    stops = sorted({plan.transient, plan.begin, *plan.ends})
    for piece in evolve_frames(source, k, stops, interval, rng):
        if piece.stop > plan.begin:
            growth[:, bisect_left(plan.ends, piece.stop)] += piece.growth.cpu()
            log_det += torch.nan if piece.log_det is None else piece.log_det.cpu()
    return growth, log_det


# Checks and labels, also for the covariant vectors.


def number_of_modes(k: int | None, source: Source) -> int:
    """Number of modes that is asked for; all by default."""
    n_units = source.space.sizes["unit"]
    if k is None:
        return n_units
    check_count("k", k, 1, n_units)
    return int(k)


def check_dt(dt: float | None) -> None:
    """Refuse a step that takes no time."""
    if dt is None:
        return
    check_real("dt", dt)
    if not (math.isfinite(dt) and dt > 0):
        raise ValueError(f"dt={dt}: pass the time that a step takes, above 0")


def dataset(
    source: Source,
    space: Space,
    variables: dict[str, Tensor],
    names: dict[str, tuple[tuple[str, ...], str, str]],
    settings: dict[str, Any],
) -> xr.Dataset:
    """Label variables by their dims, long names and units, with where they come from."""
    return xr.Dataset(
        {
            name: _labelled(space, values.to(source.start.dtype), *names[name], settings["dt"])
            for name, values in variables.items()
        },
        attrs={
            **source.attrs,
            "dynamics": source.dynamics,
            "configuration": json.dumps(settings, sort_keys=True),
        },
    )


def _labelled(
    space: Space,
    values: Tensor,
    dims: tuple[str, ...],
    long_name: str,
    units: str,
    dt: float | None,
) -> xr.DataArray:
    """Label values; "rate" as units is per step, or per time if a step takes some."""
    here = space.keep(dims) if dims else Space((), ())
    array = here.label(to_numpy(values), long_name=long_name)
    array.attrs["units"] = units if units != "rate" else "1/step" if dt is None else "1/time"
    if "time" in dims and dt is not None:
        array["time"].attrs["units"] = "time"
    return array


_NAMES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "exponent": (("mode",), "Lyapunov exponent", "rate"),
    "stderr": (("mode",), "standard error of the Lyapunov exponent", "rate"),
    "trial_exponent": (("trial", "mode"), "Lyapunov exponent of the trial", "rate"),
    "trial_stderr": (("trial", "mode"), "standard error of the trial's exponent", "rate"),
    "finite_time_exponent": (
        ("trial", "time", "mode"),
        "Lyapunov exponent of the window that ends here",
        "rate",
    ),
    "finite_time_std": (("mode",), "standard deviation of the finite-time exponents", "rate"),
    "history": (("time", "mode"), "Lyapunov exponent of the run up to here", "rate"),
    "kaplan_yorke_dimension": ((), "Kaplan-Yorke dimension", "1"),
    "entropy_bound": ((), "sum of the positive exponents", "rate"),
    "mean_log_det": ((), "mean of log |det A|", "rate"),
}
