"""Green's maps: how strongly a state responds to each earlier one, and over how long."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops import work
from kpops.engines.exclusive import exclusive_compute
from kpops.kinds import described
from kpops.linalg.responses import responses
from kpops.operators.propagator import Propagator
from kpops.precision import in_full_precision
from kpops.scalars import check_count
from kpops.spectral._result import configuration, identity, undone, unitless
from kpops.spectral.gramian import propagator_of
from kpops.spectral.maps import _by_lag, _fraction

_DIMS = ("trial", "time", "time_in")


@in_full_precision
@work.shown
def greens_map(lin: Any, *, progress: bool = False) -> xr.Dataset:
    """Response of the state at each time to a perturbation at each earlier time.

    Parameters
    ----------
    lin : Linearization or Propagator
        A linearized model, or its ``P``.
    progress : bool
        Show a bar of the steps.

    Returns
    -------
    Dataset
        With t = ``time`` of the response, s = ``time_in`` of the perturbation and S state
        variables, in the dtype of `lin`:

        ``energy`` (trial, time, time_in)
            ``||P[t, s] - I d_ts||_F^2 / S``, where d_ts is 1 if t = s, else 0.
        ``projection`` (trial, time, time_in)
            ``1^T (P[t, s] - I d_ts) 1 / S``, signed: the sum of the responses of all units to equal
            perturbations of all, over their number.

        Both are zero where t <= s, since P is causal and its diagonal blocks are I, and where a
        step is not valid.

    Raises
    ------
    TypeError
        If `lin` is neither a Linearization nor a Propagator.
    ValueError
        If `lin` has no steps in time, its trials are spread over processes, or P leaves its dtype.
    MemoryError
        If the blocks of one source do not fit.

    See Also
    --------
    greens_fractions : E(t, s), the root mean square over trials, and fractions of the energy.
    task_similarity : Compare the maps of tasks.
    frobenius_map : The energy of any operator by any dimension, also estimated.

    Notes
    -----
    Hazelden (2026), Disentangling computation in multi-task neural networks with the Green's
    operator, arXiv 2609.40292, equation 10 and appendix D.

    The energy does not depend on the basis: rotations of the state space leave it unchanged. The
    projection does, since the vector 1 is a direction of the state space. It is no trace and no
    partial trace: the partial trace over units has ``tr P[t, s]``, from equal units alone
    (:meth:`TrajectoryOperator.partial_trace`).

    Exact: the blocks are propagated by the state Jacobians of any model, in about ``T^2 S^3``
    operations for each trial. For hundreds of units and steps, :func:`kpops.frobenius_map` with
    ``method="probes"`` estimates the energy summed over trials from matvecs alone.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(2, 3, batch_first=True), torch.randn(4, 6, 2))
    >>> maps = kpops.greens_map(lin)
    >>> dict(maps.energy.sizes)
    {'trial': 4, 'time': 6, 'time_in': 6}
    >>> bool((maps.energy.values >= 0).all()), float(maps.energy[0, 0, 0])
    (True, 0.0)
    """
    P, valid = propagator_of(lin)
    P.parts.refuse_spread(P)
    with exclusive_compute(P.device):
        energy, projection = responses(P.engine, valid)
    _refuse_overflow(P, energy)
    arrays = {
        "energy": (energy, "response energy per state variable"),
        "projection": (projection, "response projected on equal units"),
    }
    variables = {
        name: (_DIMS, undone(values, 1.0, P, text), unitless(text))
        for name, (values, text) in arrays.items()
    }
    return xr.Dataset(variables, _coords(P), configuration(P))


def _refuse_overflow(P: Propagator, energy: Tensor) -> None:
    if not energy.isfinite().all():
        bad = int((~energy.isfinite()).any(2).any(0).nonzero()[0])
        raise ValueError(
            f"the blocks of {P!r} leave its dtype at position {bad} along time: linearise with "
            "dtype=torch.float64, or fewer steps"
        )


def _coords(P: Propagator) -> dict[str, Any]:
    """Coordinates of trials and times, those of times on both sides."""
    every = {k: c.described(k) for k, c in P.domain.coords.items()}
    kept = {k: c for k, c in every.items() if "unit" not in c[0]}
    of_times = {k: c for k, c in kept.items() if c[0] == ("time",)}
    return {**identity(P), **kept, **{f"{k}_in": ("time_in", *c[1:]) for k, c in of_times.items()}}


def mean_response(maps: xr.Dataset, name: str) -> xr.DataArray:
    """Mean of a variable of :func:`greens_map` over the trials in which both steps are valid."""
    values = maps[name].transpose(*_DIMS)
    if "mask" not in maps.coords:
        return values.mean("trial")
    within = maps["mask"].transpose("trial", "time").values.astype(float)
    return values.sum("trial") / np.maximum(within.T @ within, 1).astype(values.dtype)


def greens_fractions(
    maps: xr.Dataset, *, near: int | None = None, far: int | None = None
) -> xr.Dataset:
    """Root mean square response over trials, and its fractions near the diagonal and far from it.

    Parameters
    ----------
    maps : Dataset
        What :func:`kpops.greens_map` returns, or some of its trials.
    near : int, optional
        Lags from 1 to `near` steps are near the diagonal. Default: a sixteenth of the steps, at
        least 1.
    far : int, optional
        Lags beyond `far` steps are long-range, `far` being at least `near`. Default: a quarter of
        the steps, as for :func:`kpops.frobenius_map`.

    Returns
    -------
    Dataset
        ``rms`` (time, time_in): ``E(t, s) = sqrt(mean_b energy)`` over the trials b in which both
        steps are valid. ``near_diagonal`` () and ``long_range`` (): the energy of all trials at
        these lags, over their whole energy. ``by_lag`` (lag): its fraction at each lag. Each
        fraction has its standard error, ``..._stderr``, the jackknife's over trials, which takes
        them as independent draws; NaN for a single trial. ``near_diagonal_by_trial`` (trial) and
        ``long_range_by_trial`` (trial): of the energy of each trial. Fractions of no energy are
        NaN.

    Raises
    ------
    TypeError
        If `maps` is no Dataset, or a cut is no int.
    ValueError
        If `maps` has no ``energy`` over trial, time and time_in, or it is negative, not finite or
        not causal;
        if there is one step alone; if the cuts are out of range.

    Notes
    -----
    The diagonal t = s carries no energy, since the identity is subtracted. The Green's-operator
    paper (arXiv 2609.40292, appendix D) does not state its cuts. Its fractions at initialisation,
    0.83 near the diagonal and 5e-4 at long range, are those of a geometric decay if its far cut
    is 4.3 times the near one; ours are in the ratio 4. Where fractions are compared, the cuts and
    the number of steps must be the same.

    If the energy falls by the factor ``q = a^2`` at each step, as for a scalar linear system of
    weight a, the pairs at lag k have ``(T - k) q^k`` of it.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(2, 3, batch_first=True), torch.randn(4, 32, 2))
    >>> fractions = kpops.greens_fractions(kpops.greens_map(lin))
    >>> fractions.near, fractions.far
    (2, 8)
    >>> bool(fractions.near_diagonal > fractions.long_range)
    True
    """
    energy = _energy_of(maps)
    n_trials, n_steps, _ = energy.shape
    near = max(1, n_steps // 16) if near is None else near
    check_count("near", near, 1, n_steps - 1)
    far = max(near, n_steps // 4) if far is None else far
    check_count("far", far, near, n_steps - 1)
    by_lag = _by_lag(energy)
    total = by_lag.sum(1)
    parts = {
        "by_lag": (by_lag, "fraction of the energy at this lag"),
        "near_diagonal": (by_lag[:, : near + 1].sum(1), f"fraction of the energy to lag {near}"),
        "long_range": (by_lag[:, far + 1 :].sum(1), f"fraction of the energy beyond lag {far}"),
    }
    text = "rms response E"
    rms = (mean_response(maps, "energy") ** 0.5).variable
    variables: dict[str, Any] = {"rms": (rms.dims, rms.values, unitless(text))}
    for name, (part, text) in parts.items():
        fraction, error = _fraction(part, total)
        error = error if n_trials > 1 else torch.full_like(error, torch.nan)
        for key, values, what in (
            (name, fraction, text),
            (f"{name}_stderr", error, f"standard error of the {text}"),
        ):
            dims = ("lag",) if name == "by_lag" else ()
            variables[key] = (dims, values.numpy().astype(maps.energy.dtype), unitless(what))
        if name != "by_lag":
            each = (part / total).numpy().astype(maps.energy.dtype)
            variables[f"{name}_by_trial"] = ("trial", each, unitless(f"{text}, by trial"))
    coords = {k: c for k, c in maps.coords.items() if set(c.dims) <= set(_DIMS)}
    coords["lag"] = ("lag", np.arange(n_steps), {"long_name": "lag", "units": "step"})
    return xr.Dataset(variables, coords, {**maps.attrs, "near": int(near), "far": int(far)})


def _energy_of(maps: Any) -> Tensor:
    """Energies (trial, time, time_in) in float64, checked."""
    remedy = "pass what kpops.greens_map returns"
    if not isinstance(maps, xr.Dataset):
        raise TypeError(f"maps is {described(maps)}: {remedy}")
    if "energy" not in maps or set(maps.energy.dims) != set(_DIMS):
        found = maps.energy.dims if "energy" in maps else f"of variables {sorted(map(str, maps))}"
        raise ValueError(
            f"maps has energy {found}, expected energy {_DIMS}: {remedy}, or trials of it by "
            ".isel(trial=[0])"
        )
    energy = maps.energy.transpose(*_DIMS).values.astype(np.float64)
    n_trials, n_steps, n_sources = energy.shape
    if n_steps != n_sources or n_steps < 2 or n_trials < 1:
        raise ValueError(
            f"energy has {n_trials} trials, {n_steps} times and {n_sources} times in: pass all "
            "times of both, at least two, and a trial"
        )
    bad = np.argwhere(~(np.isfinite(energy) & (energy >= 0)))
    if bad.size:
        raise ValueError(
            f"energy is {energy[tuple(bad[0])]} at (trial, time, time_in) = "
            f"{tuple(bad[0].tolist())}: energies are finite and 0 or more, {remedy}"
        )
    if np.triu(energy).any():
        raise ValueError(
            "energy is not zero where time is not after time_in: pass the same times of both, in "
            "their order"
        )
    return torch.from_numpy(energy)
