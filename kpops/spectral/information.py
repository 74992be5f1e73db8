"""Predictive information: what the past of a noisy linearised network says about its future."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops import work
from kpops.arrays import as_tensor
from kpops.engines.exclusive import exclusive_compute
from kpops.engines.memory import check_allocation
from kpops.linalg.information import ratios
from kpops.maturity import experimental
from kpops.precision import in_full_precision
from kpops.spectral._result import configuration, identity, undone, unitless
from kpops.spectral.gramian import positions, propagator_of


@experimental
@in_full_precision
@work.shown
def predictive_information(
    lin: Any,
    *,
    noise: Any = 1.0,
    observation_noise: Any = None,
    times: Sequence[int] | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Mutual information between past and future states, and its effective dimension.

    Parameters
    ----------
    lin : Linearization or Propagator
        A linearized model, or its ``P``.
    noise : float or array_like
        Covariance Q of the Gaussian noise that perturbs the state at every step, independently: a
        variance, one for each unit (unit,), or a matrix (unit, unit).
    observation_noise : float or array_like, optional
        Covariance R of the Gaussian noise with which each state is observed, as for `noise`; a unit
        whose variance is infinite is not observed. Default: states are observed exactly, and Q must
        be invertible, or the information would be infinite.
    times : sequence of int, optional
        Positions along time of the last steps of the past. Default: all but the last.
    progress : bool
        Show a bar of the steps.

    Returns
    -------
    Dataset
        In the dtype of `lin`:

        ``information`` (trial, at_time)
            ``I = -1/2 sum_i log(1 - rho_i^2)`` in nats, between what is observed up to this time
            and after it.
        ``correlation`` (trial, at_time, mode)
            The canonical correlations rho_i, falling.
        ``participation`` (trial, at_time)
            ``(sum_i w_i)^2 / sum_i w_i^2`` with ``w_i = -1/2 log(1 - rho_i^2)``.
        ``entropy_dimension`` (trial, at_time)
            ``exp(-sum_i p_i log p_i)`` with ``p_i = w_i / sum_j w_j``.

        A trial without valid steps after this time has no information, and dimensions NaN.

    Raises
    ------
    TypeError
        If `lin` is neither a Linearization nor a Propagator, or a covariance is no array of
        numbers.
    ValueError
        If a time is out of range, or there is one step alone; if a covariance has another shape,
        is not symmetric or not positive, or has NaN.
    MemoryError
        If the matrices of all times would not fit: choose some.

    See Also
    --------
    controllability_gramian : The covariance of the states for Q = I.
    effective_rank : With ``kind="entropy"`` of a positive operator G, the von Neumann dimension
        ``exp(-tr(r log r))`` with ``r = G / tr G``.

    Notes
    -----
    The trajectories perturbed by noise are ``h + P q`` to first order, with q of covariance Q at
    each step. They are a Markov chain, so all that the past says about the future is in the state
    at the cut, and no matrix larger than the state is formed: ``O(S^3)`` operations for each trial
    and step, in float64. For exact observations

        I = 1/2 logdet(I + Q^-1 A[t+1] C[t] A[t+1]^T)

    with C[t] the covariance of the state, for Q = I the controllability Gramian. For a scalar
    system of weight a this tends to ``-1/2 log(1 - a^2)``.

    Information and dimensions do not change under invertible linear maps of the state, if Q and R
    are mapped as well; those of independent groups of units are the union of theirs. Predictive
    information: Bialek, Nemenman and Tishby (2001), Predictability, complexity, and learning;
    canonical correlations: Akaike (1975), Markovian representation of stochastic processes by
    canonical variables.

    The two dimensions count the pairs of canonical variables that carry the information, each
    weighted by its share. They are not ranks of P: a direction that P amplifies much counts by the
    logarithm of its signal-to-noise ratio.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(2, 3, batch_first=True), torch.zeros(2, 8, 2))
    >>> exact = kpops.predictive_information(lin)
    >>> dict(exact.correlation.sizes)
    {'trial': 2, 'at_time': 7, 'mode': 3}
    >>> noisy = kpops.predictive_information(lin, observation_noise=1.0)
    >>> bool((noisy.information < exact.information).all())
    True
    """
    P, valid = propagator_of(lin)
    n_trials, n_steps, n_units = P.domain.shape
    if n_steps < 2:
        raise ValueError("there is one step alone, which has no future: linearise more inputs")
    cuts = positions(np.arange(n_steps - 1) if times is None else times, n_steps)
    if (cuts == n_steps - 1).any():
        raise ValueError(f"times={times!r}: nothing is after the last of {n_steps} steps")
    exact = observation_noise is None
    forced, inverse = _roots(noise, n_units, "noise", positive=exact)
    _, weight = (None, None) if exact else _roots(observation_noise, n_units, "observation_noise")
    if weight is not None and not weight.any():
        raise ValueError("observation_noise is infinite for every unit: nothing is observed")
    matrices = 16 * n_trials * len(set(cuts.tolist())) * n_units**2
    check_allocation("the matrices of all times", matrices, P.device, "choose some by times=")
    with exclusive_compute(P.device):
        chosen = sorted(set(cuts.tolist()))
        mu = ratios(P.engine, valid, forced, weight, inverse, chosen)
        mu = mu[:, [chosen.index(t) for t in cuts]]
    parts = mu.log1p() / 2
    total = parts.sum(-1)
    share = parts / total[..., None]
    arrays = {
        "information": (total, "predictive information"),
        "correlation": ((mu / (1 + mu)).sqrt(), "canonical correlation of past and future"),
        "participation": (1 / share.square().sum(-1), "participation dimension of the information"),
        "entropy_dimension": (
            torch.special.entr(share).sum(-1).exp(),
            "entropy dimension of the information",
        ),
    }
    dims = ("trial", "at_time", "mode")
    variables = {
        name: (dims[: values.ndim], undone(values, 1.0, P, text), unitless(text))
        for name, (values, text) in arrays.items()
    }
    variables["information"][2]["units"] = "nat"
    every = {k: c.described(k) for k, c in P.domain.coords.items()}
    coords = {k: c for k, c in every.items() if set(c[0]) <= {"trial"}}
    _, labels, attrs = every["time"]
    coords["at_time"] = (("at_time",), labels[cuts], attrs)
    coords["mode"] = (("mode",), np.arange(1, n_units + 1), unitless("mode"))
    settings = {
        "times": cuts.tolist(),
        "noise": noise if isinstance(noise, int | float) else "given",
        "observation_noise": observation_noise
        if isinstance(observation_noise, int | float | None)
        else "given",
    }
    return xr.Dataset(variables, {**identity(P), **coords}, configuration(P, **settings))


def _roots(
    value: Any, n_units: int, name: str, *, positive: bool | None = None
) -> tuple[Tensor, Tensor | None]:
    """Square roots of a covariance and of its inverse; None if that is not needed.

    With `positive` None, the inverse is needed, and variances may be infinite; else the covariance
    must be positive, or may be singular.
    """
    given = as_tensor(value, name).double()
    shapes = ((), (n_units,), (n_units, n_units))
    if tuple(given.shape) not in shapes:
        raise ValueError(
            f"{name} has shape {tuple(given.shape)}: pass a variance, {n_units} of them, or a "
            f"matrix {shapes[2]}"
        )
    infinite = positive is None and given.ndim < 2
    if given.isnan().any() or (given.isinf().any() and not infinite):
        raise ValueError(f"{name} has entries that are not finite: {given.flatten().tolist()[:4]}")
    if given.ndim < 2:
        values, vectors = given.expand(n_units), torch.eye(n_units, dtype=torch.float64)
    else:
        gap = float((given - given.mT).abs().max())
        if gap > 1e-10 * float(given.abs().max()):
            raise ValueError(f"{name} is not symmetric, by {gap:.2g}: pass a covariance matrix")
        values, vectors = torch.linalg.eigh((given + given.mT) / 2)
    least, floor = float(values.min()), n_units * torch.finfo(torch.float64).eps
    floor *= float(values[values.isfinite()].abs().max()) if values.isfinite().any() else 0.0
    if positive is False:
        if least < -floor:
            raise ValueError(f"{name} has the eigenvalue {least:.3g}: variances are 0 or more")
        return vectors * values.clamp_min(0).sqrt(), None
    if least <= floor:
        remedy = "pass observation_noise=, or add a small variance" if positive else "add one"
        raise ValueError(
            f"{name} has the eigenvalue {least:.3g}, so that the information would be infinite: "
            f"{remedy}"
        )
    return vectors * values.sqrt(), vectors / values.sqrt()
