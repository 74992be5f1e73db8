"""Gramians of the propagator, and its exact Frobenius norm.

With A[t] the state Jacobian, ``P[s, t] = A[s] ... A[t+1]`` is what a perturbation at t makes of the
state at s. The matrices ``S_t = sum_s P[s,t]^T P[s,t]`` and ``C_t = sum_s P[t,s] P[t,s]^T`` obey
recursions of one S x S matrix for each trial, so that no block of P is ever formed.
"""

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
from kpops.spectral._result import configuration, identity, undone


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
        Positions along time at which the matrices are returned, each of ``trial * unit^2``
        numbers. Default: the first.
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
    propagator_norm : The root of the sum of all traces.

    Notes
    -----
    ``S_T = I`` and ``S_t = I + A[t+1]^T S_{t+1} A[t+1]``, so that ``q^T S_t q`` is the squared norm
    of the trajectory that a perturbation q of the state at time t makes from then on, and
    ``||P||_F^2 = sum_t tr S_t``. For constant A it tends to the solution of the discrete Lyapunov
    equation (Antoulas 2005, Approximation of Large-Scale Dynamical Systems, section 4.3) as the
    horizon grows.

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
    lin : Linearization or Propagator
        A linearized model, or its ``P``.
    times : sequence of int, optional
        Positions along time at which the matrices are returned, each of ``trial * unit^2``
        numbers. Default: the last.
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
    observability_gramian : The mirror image.

    Notes
    -----
    ``C_1 = I`` and ``C_t = I + A[t] C_{t-1} A[t]^T``: the covariance that white noise of unit
    variance at every step has made by time t. ``||P||_F^2 = sum_t tr C_t``.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.RNN(2, 3, batch_first=True), torch.zeros(2, 4, 2))
    >>> forth, back = kpops.observability_gramian(lin), kpops.controllability_gramian(lin)
    >>> bool(abs(forth.trace.sum() - back.trace.sum()) < 1e-4)
    True
    """
    return _gramians(lin, times, "controllability", -1)


# Which part of which propagator an operator is.


# The recursions.


# Labels.


def _gramians(lin: Any, times: Sequence[int] | None, kind: str, default: int) -> xr.Dataset:
    P = lin if isinstance(lin, TrajectoryOperator) else getattr(lin, "P", lin)
    if not isinstance(P, Propagator):
        raise TypeError(
            f"lin is {described(lin)}: pass a Linearization, or its P, of a model that is "
            "forced by states"
        )
    n_trials, n_steps, n_units = P.domain.shape
    chosen = _positions([default] if times is None else times, n_steps)
    recursion = _observability if kind == "observability" else _controllability
    with exclusive_compute(P.device):  # tensors of inference mode could not be written to inside
        window = _window(P)
        assert window is not None
        kept = torch.empty(n_trials, len(chosen), n_units, n_units, dtype=torch.float64)
        traces = torch.empty(n_trials, n_steps, dtype=torch.float64)
        work.expect(n_steps, "steps")
        for t, gramian, scale in recursion(P.engine, window.rows):
            work.advance(1)
            traces[:, t] = scale * gramian.diagonal(dim1=1, dim2=2).double().sum(1)
            for i in np.flatnonzero(chosen == t):
                symmetric = (gramian + gramian.mT) / 2
                kept[:, i] = scale[:, None, None] * symmetric.double()
    settings = {"times": chosen.tolist()}
    return xr.Dataset(
        {
            "gramian": _labelled(P, kept, chosen, f"{kind} Gramian"),
            "trace": P.domain.keep(("trial", "time")).label(
                undone(traces, 1.0, P, f"trace of the {kind} Gramian"),
                long_name=f"trace of the {kind} Gramian",
            ),
        },
        coords=identity(P),
        attrs=configuration(P, **settings),
    )


def _labelled(P: Propagator, matrices: Tensor, times: np.ndarray, long_name: str) -> xr.DataArray:
    every = {k: c.described(k) for k, c in P.domain.coords.items()}
    coords = {k: c for k, c in every.items() if "time" not in c[0]}
    of_units = {k: c for k, c in coords.items() if c[0] == ("unit",)}
    inside = {f"{k}_in": (("unit_in",), *c[1:]) for k, c in of_units.items()}
    _, labels, attrs = every["time"]
    at = {"at_time": (("at_time",), labels[times], attrs)}
    return xr.DataArray(
        undone(matrices, 1.0, P, long_name),
        dims=("trial", "at_time", "unit", "unit_in"),
        coords=coords | inside | at,
        attrs={"long_name": long_name, "units": "1"},
    )


def _positions(times: Sequence[int], n_steps: int) -> np.ndarray:
    wanted = np.atleast_1d(np.asarray(times))
    if wanted.dtype.kind not in "iu" or ((wanted < -n_steps) | (wanted >= n_steps)).any():
        raise ValueError(f"times={times!r}: choose positions from 0 to {n_steps - 1}, as ints")
    return np.arange(n_steps)[wanted]
