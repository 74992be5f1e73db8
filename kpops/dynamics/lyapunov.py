"""Lyapunov exponents: how fast tangent vectors grow along trajectories."""

from __future__ import annotations

import json
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
from kpops.precision import in_full_precision
from kpops.scalars import check_count

_WINDOWS = 100  # approximate number of windows of a trial, by default


@in_full_precision
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
        A linearization, whose trajectories and mask are used as they are. Or any model that
        :func:`kpops.linearize` takes, or one without parameters: all its trials run together here,
        and no trajectories are kept.
    k : int, optional
        Number of leading exponents. Default: the number of state variables S.
    inputs : Tensor, array_like or DataArray, optional
        Shape (trial, time, feature), for a model: as for :func:`kpops.linearize`.
    h0 : array_like, optional
        Initial state (trial, unit) or (unit,), for a model. Default: zero, which may be a fixed
        point; without inputs that is one trial. A model without parameters computes in its dtype.
    n_steps : int, optional
        Number of steps of a model without inputs; if it needs inputs, they are zero.
    transient : int
        Steps at the beginning for the state to reach the attractor.
    frame_transient : int, optional
        Steps after `transient` for the tangent vectors to turn. Default: a tenth of the rest.
    window : int, optional
        Steps of a window of finite-time exponents. Default: a hundredth of the rest. Windows end
        with the last step; steps that do not fill one extend `frame_transient`.
    interval : int, optional
        Most steps between two QRs. Default: as many as the growth allows; see Notes.
    dt : float, optional
        Time of a step; the exponents are then per unit of time.
    dtype : torch.dtype, optional
        float32 or float64 to convert a model, its inputs and h0 to.
    rng : int, Generator or None
        Source of the initial tangent vectors.
    progress : bool
        Show a bar of the steps.

    Returns
    -------
    Dataset
        In the dtype of the computation, per step or per unit of time, modes in the order of QR:

        - ``exponent(mode)``, mean over trials, and ``stderr(mode)``; ``trial_exponent(trial,
          mode)`` and ``trial_stderr(trial, mode)`` for each trial;
        - ``finite_time_exponent(trial, time, mode)``, over the window that ends at ``time``; NaN
          where the mask ends a trial before. Its distribution is that of local growth;
          ``finite_time_std(mode)`` is its standard deviation over trials and windows;
        - ``history(time, mode)``: the ``exponent`` of the run up to ``time``;
        - ``kaplan_yorke_dimension`` and ``entropy_bound`` of ``exponent``, by the functions of
          these names; NaN where more than ``k`` exponents are needed;
        - ``mean_log_det``, if ``k`` is S and Jacobians are cheap enough to form: the mean of
          ``log |det A[t]|``, which is the sum of all exponents in every run.

        The attribute ``dynamics`` is ``"autonomous"`` for constant inputs or none, and ``"driven"``
        where inputs change. Driven exponents are conditional: they describe the response to one
        input. If all are negative, the network forgets its initial state; this says nothing about
        the dynamics without input.

    Raises
    ------
    TypeError, ValueError
        If an argument or the model is wrong (see :func:`kpops.linearize`), a trial is shorter than
        the transients, or states or tangents become infinite.

    See Also
    --------
    covariant_lyapunov_vectors : The directions in which tangents grow at these rates.

    Notes
    -----
    With A[t] the state Jacobian and ``A[t] Q[t-1] = Q[t] R[t]``, the i-th exponent is the mean of
    ``log |R_ii[t]|`` (Benettin et al. 1980, Meccanica 15, 9-30; for recurrent networks Engelken,
    Wolf and Abbott 2023, Phys. Rev. Research 5, 043044). Several steps go between two QRs, which
    changes nothing in exact arithmetic: as many as keep the ratio of the longest to the shortest
    tangent near eps^(-1/4), that is 8e3 in float64 and 54 in float32, so that the error of each
    logarithm is near eps^(3/4). If the ratio passes eps^(-1/2), fewer steps are tried. For each
    trial of a cell of G gates, a step costs about 2 G S^2 k operations and a QR 4 S k^2; the memory
    is that of a chunk of steps. On the CPU, runs of 2000 steps and more of gated cells are
    compiled; the states of nn.RNN, nn.GRU, nn.LSTM and the leaky cells then agree with those of the
    module to rounding, which chaos amplifies.

    A Jacobian may be singular, for example if units of a piecewise-linear network are off. From
    then on as many modes as it annihilates are ``-inf``, without a standard error. If one step
    shrinks a mode below 4 S^(1/2) eps of the longest tangent, the mode cannot be distinguished from
    an annihilated one: float64 distinguishes more than float32. If a mode is annihilated before
    another of the k, which takes completely uncoupled directions, the modes after it are wrong.

    Relation to the propagator: ``A[s+t] ... A[s+1]`` is the block of P from time s to time s + t.
    By Oseledets' theorem the logarithms of its singular values, over t, tend to the exponents. For
    every t the largest i add up to at least the growth of the i-volume, ``log |R_11 .. R_ii|``, and
    all of them to exactly that of ``|det|``.

    The standard error of a trial is by batch means: its windows, without some at the beginning,
    form up to 20 batches of one length. Batch means are nearly independent if batches are longer
    than the correlation time (Schmeiser 1982, Operations Research 30, 556-568); shorter ones of an
    oscillating growth overestimate the error. For 20 trials or more, the standard error of the mean
    comes from the spread between trials, taken to be independent; an oscillation may keep trials in
    step, so let their phases differ. For fewer trials it is the larger of this one and of that by
    batch means, with 20 batches in all. All standard errors cover fluctuations, not transients: for
    these, watch ``history``.

    Examples
    --------
    Henon's map of the plane, whose exponents add up to log 0.3:

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
    source, k = read_source(lin_or_model, k, inputs, h0, n_steps, dt, dtype)
    if interval is not None:
        check_count("interval", interval, 1)
    plan = _plan(source, transient, frame_transient, window)
    n_trials = source.space.sizes["trial"]
    stops = sorted({plan.transient, plan.begin, *plan.ends})
    with exclusive_compute(source.start.device):
        growth = torch.zeros(n_trials, len(plan.ends), k, dtype=torch.float64)
        log_det = torch.zeros(n_trials, dtype=torch.float64)
        for piece in evolve_frames(source, k, stops, interval, rng):
            if piece.stop > plan.begin:
                growth[:, bisect_left(plan.ends, piece.stop)] += piece.growth.cpu()
                log_det += torch.nan if piece.log_det is None else piece.log_det.cpu()
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


@dataclass(frozen=True)
class _Plan:
    """Steps before the tangents start, steps up to the end of each window, steps of a window."""

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


def dataset(
    source: Source,
    space: Space,
    variables: dict[str, Tensor],
    names: dict[str, tuple[str, str, str]],
    settings: dict[str, Any],
) -> xr.Dataset:
    """Label variables by their dims, long names and units, also for the covariant vectors.

    The units "rate" stand for 1/step, or for 1/time if `dt` is given.
    """
    dt = settings["dt"]
    result = {}
    for name, values in variables.items():
        dims, long_name, units = names[name]
        here = space.keep(tuple(dims.split())) if dims else Space((), ())
        array = here.label(to_numpy(values.to(source.start.dtype)), long_name=long_name)
        rate = "1/step" if dt is None else "1/time"
        array.attrs["units"] = rate if units == "rate" else units
        if "time" in dims and dt is not None:
            array["time"].attrs["units"] = "time"
        result[name] = array
    text = json.dumps(settings, sort_keys=True, default=np.generic.item)
    attrs = {**source.attrs, "dynamics": source.dynamics, "configuration": text}
    return xr.Dataset(result, attrs=attrs)


_NAMES = {
    "exponent": ("mode", "Lyapunov exponent", "rate"),
    "stderr": ("mode", "standard error of the Lyapunov exponent", "rate"),
    "trial_exponent": ("trial mode", "Lyapunov exponent of the trial", "rate"),
    "trial_stderr": ("trial mode", "standard error of the trial's exponent", "rate"),
    "finite_time_exponent": (
        "trial time mode",
        "Lyapunov exponent of the window that ends here",
        "rate",
    ),
    "finite_time_std": ("mode", "standard deviation of the finite-time exponents", "rate"),
    "history": ("time mode", "Lyapunov exponent of the run up to here", "rate"),
    "kaplan_yorke_dimension": ("", "Kaplan-Yorke dimension", "1"),
    "entropy_bound": ("", "sum of the positive exponents", "rate"),
    "mean_log_det": ("", "mean of log |det A|", "rate"),
}
