"""Gramians of the propagator, by the recursions of :mod:`kpops.linalg.gramians`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops import work
from kpops.engines.exclusive import exclusive_compute
from kpops.kinds import described
from kpops.linalg.gramians import _controllability, _observability, _window
from kpops.maturity import experimental
from kpops.operators.base import TrajectoryOperator
from kpops.operators.propagator import Propagator
from kpops.precision import in_full_precision
from kpops.spectral._result import configuration, identity, undone, unitless


@experimental
@in_full_precision
@work.shown
def observability_gramian(
    lin: Any, times: Sequence[int] | None = None, *, progress: bool = False
) -> xr.Dataset:
    """Finite-horizon observability Gramians: how strongly the future shows a perturbation.

    Parameters
    ----------
    lin : Linearization or Propagator
        A linearized model, or its ``P``.
    times : sequence of int, optional
        Positions along time of the returned matrices, each of ``trial * unit^2`` numbers. Default:
        the first.
    progress : bool
        Show a bar of the steps.

    Returns
    -------
    Dataset
        ``gramian(trial, at_time, unit, unit_in)`` at these times and ``trace(trial, time)`` at all
        times, in the dtype of `lin`; zero where a step is not valid.

    Raises
    ------
    TypeError
        If `lin` is neither a Linearization nor a Propagator.
    ValueError
        If a time is out of range.

    See Also
    --------
    controllability_gramian : The mirror image.

    Notes
    -----
    ``S_T = I`` and ``S_t = I + A[t+1]^T S_{t+1} A[t+1]``. A perturbation q of the state at time t
    makes a trajectory of squared norm ``q^T S_t q`` from then on, and ``||P||_F^2 = sum_t tr S_t``.
    For constant A, ``S_t`` tends to the solution of the discrete Lyapunov equation as the horizon
    grows (Antoulas 2005, Approximation of Large-Scale Dynamical Systems, section 4.3).

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(2, 3, batch_first=True), torch.zeros(2, 4, 2))
    >>> gramians = kpops.observability_gramian(lin)
    >>> dict(gramians.gramian.sizes)
    {'trial': 2, 'at_time': 1, 'unit': 3, 'unit_in': 3}
    >>> float(gramians.trace.isel(trial=0, time=-1))  # the last step shows itself alone
    3.0
    """
    return _gramians(lin, times, "observability", 0)


@experimental
@in_full_precision
@work.shown
def controllability_gramian(
    lin: Any, times: Sequence[int] | None = None, *, progress: bool = False
) -> xr.Dataset:
    """Finite-horizon controllability Gramians: how strongly past perturbations reach a state.

    Parameters
    ----------
    lin, times, progress
        As for :func:`kpops.observability_gramian`, but `times` is the last by default.

    Returns
    -------
    Dataset
        As for :func:`kpops.observability_gramian`.

    Raises
    ------
    TypeError, ValueError
        As for :func:`kpops.observability_gramian`.

    Notes
    -----
    ``C_1 = I`` and ``C_t = I + A[t] C_{t-1} A[t]^T``: the covariance at time t that white noise of
    unit variance at every step makes. ``||P||_F^2 = sum_t tr C_t``.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.RNN(2, 3, batch_first=True), torch.zeros(2, 4, 2))
    >>> forth, back = kpops.observability_gramian(lin), kpops.controllability_gramian(lin)
    >>> bool(abs(forth.trace.sum() - back.trace.sum()) < 1e-4)
    True
    """
    return _gramians(lin, times, "controllability", -1)


def propagator_of(lin: Any) -> tuple[Propagator, Tensor]:
    """Return P of a linearization, or P itself, and the valid entries as ones; refuse others."""
    P = lin if isinstance(lin, TrajectoryOperator) else getattr(lin, "P", lin)
    if not isinstance(P, Propagator):
        raise TypeError(
            f"lin is {described(lin)}: pass a Linearization, or its P, of a model that is "
            "forced by states"
        )
    window = _window(P)
    if window is None:
        raise ValueError(f"{P!r} has no steps in time: take op.H @ op and op @ op.H as they are")
    return P, window.rows


def _gramians(lin: Any, times: Sequence[int] | None, kind: str, default: int) -> xr.Dataset:
    P, valid = propagator_of(lin)
    n_trials, n_steps, n_units = P.domain.shape
    chosen = positions([default] if times is None else times, n_steps)
    recursion = _observability if kind == "observability" else _controllability
    with exclusive_compute(P.device):  # no inference mode, whose tensors cannot be written to
        kept = torch.empty(n_trials, len(chosen), n_units, n_units, dtype=torch.float64)
        traces = torch.empty(n_trials, n_steps, dtype=torch.float64)
        work.expect(n_steps, "steps")
        for t, gramian, scale in recursion(P.engine, valid):
            work.advance(1)
            traces[:, t] = scale * gramian.diagonal(dim1=1, dim2=2).double().sum(1)
            for i in np.flatnonzero(chosen == t):
                symmetric = (gramian + gramian.mT) / 2
                kept[:, i] = scale[:, None, None] * symmetric.double()
    what = f"{kind} Gramian"
    trace = undone(traces, 1.0, P, f"trace of the {what}")
    variables = {
        "gramian": _labelled(P, kept, chosen, what),
        "trace": P.domain.keep(("trial", "time")).label(trace, long_name=f"trace of the {what}"),
    }
    return xr.Dataset(variables, identity(P), configuration(P, times=chosen.tolist()))


def positions(times: Any, n_steps: int) -> np.ndarray:
    """Positions along time, counted from 0; refuse those that there are not."""
    chosen = np.atleast_1d(np.asarray(times))
    if chosen.dtype.kind not in "iu" or ((chosen < -n_steps) | (chosen >= n_steps)).any():
        raise ValueError(f"times={times!r}: choose positions from 0 to {n_steps - 1}, as ints")
    return np.arange(n_steps)[chosen]


def _labelled(P: Propagator, matrices: Tensor, times: np.ndarray, long_name: str) -> xr.DataArray:
    every = {k: c.described(k) for k, c in P.domain.coords.items()}
    coords = {k: c for k, c in every.items() if "time" not in c[0]}
    of_units = {k: c for k, c in coords.items() if c[0] == ("unit",)}
    inside = {f"{k}_in": (("unit_in",), *c[1:]) for k, c in of_units.items()}
    _, labels, attrs = every["time"]
    return xr.DataArray(
        undone(matrices, 1.0, P, long_name),
        dims=("trial", "at_time", "unit", "unit_in"),
        coords=coords | inside | {"at_time": (("at_time",), labels[times], attrs)},
        attrs=unitless(long_name),
    )
