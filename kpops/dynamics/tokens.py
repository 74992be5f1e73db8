"""Whether the tokens of deep selective layers converge or diverge."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops.arrays import as_tensor, to_numpy
from kpops.kinds import described
from kpops.models.recurrence import changed
from kpops.models.token_flow import TokenFlow
from kpops.scalars import check_real

REGIMES = ("rest", "convergence", "slow divergence", "fast divergence", "undecided")


def token_dynamics(
    flow: TokenFlow, tokens: Any, times: Any, *, bound: float = 1e4, rtol: float = 1e-9
) -> xr.Dataset:
    r"""Tokens of a deep selective model over depth, beside what the sign of mu predicts.

    Parameters
    ----------
    flow : TokenFlow
        The model.
    tokens : array_like, shape (trial, token, channel) or (token, channel)
        Tokens at the first time; a DataArray is read by its dims.
    times : array_like, shape (time,)
        Rising times (depths) of the results.
    bound : float
        Length of a token at which a run ends: a divergence in finite time has no end. The run also
        ends where rounding leaves no shorter steps, which is at that time to rounding.
    rtol : float
        Relative tolerance of the solver (DOP853 of SciPy), per step.

    Returns
    -------
    Dataset
        In float64:

        - ``tokens`` (trial, time, token, channel), NaN after the end of a run, and ``length``
          (trial, time, token);
        - ``escape_time`` (trial,): when a token reaches `bound`; NaN if none does;
        - ``coefficient`` (trial, token): u^T mu u, with u the direction of the token at the start;
        - ``regime`` (trial, token): what is predicted, see Notes;
        - ``eigenvalue`` (mode,): of the symmetric part of ``mu = C^T B``, from the largest.

    Raises
    ------
    TypeError
        If `flow` is no TokenFlow, or one whose velocity was changed.
    ValueError
        If weights are not finite, shapes disagree, times do not rise, or a token starts beyond
        `bound`.

    Notes
    -----
    *The first token* sees itself alone: ``dx/dt = (x^T mu x) softplus(s . x) x``. So it stays on
    its ray x = r u, and

    ``dr/dt = c softplus(r s . u) r^3``,  with ``c = u^T mu u``.

    The sign of c decides. If c < 0, r falls to 0 like ``(2 |c| ln(2) t)^(-1/2)``. If c > 0 it
    grows without bound: in finite time where ``s . u >= 0``, since r^3 at least is integrated to
    infinity ("fast divergence"); else like ``log(t) / |s . u|``, since the softplus falls
    exponentially ("slow divergence").

    *One channel.* For D = 1 every token has ``d log|x_l| / dt = mu sum_{j <= l} x_j^2 (..)``, with
    a sum of positive numbers. So tokens keep their signs, and all converge to zero if mu < 0 and
    all diverge if mu > 0, each driven by itself and by those before it. "Fast divergence" of a
    token says that it, or one before it, has ``s x >= 0``: the flow of these tokens then ends in
    finite time, with the first that escapes. Later tokens of a slow divergence may be faster than
    the logarithm. That all converge or all diverge is the theorem of the reference.

    *More channels.* Only the first token is decided by this; the others are ``"undecided"``. The
    reference observes that all tokens converge if all eigenvalues of mu are negative, and diverge
    if one is positive. A first token diverges where c > 0, so for some starts if and only if the
    largest ``eigenvalue`` is positive.

    References
    ----------
    T. Vo, D.-T. Pham, X. T. Tong and T. M. Nguyen, Demystifying the token dynamics of deep
    selective state space models, ICLR 2025 (arXiv 2410.03292).

    Examples
    --------
    >>> import torch, kpops
    >>> flow = kpops.models.TokenFlow(1, 1).double()
    >>> with torch.no_grad():
    ...     _ = flow.query_weight.fill_(1), flow.step_weight.fill_(-1), flow.key_weight.fill_(-1)
    >>> start = [[1.0], [2.0], [-1.0]]
    >>> found = kpops.token_dynamics(flow, start, [0, 10, 1000])
    >>> found.regime.values.tolist()
    [['convergence', 'convergence', 'convergence']]
    >>> bool((found.length.isel(time=2) < 0.04).all())
    True
    """
    if not isinstance(flow, TokenFlow):
        raise TypeError(f"flow is {described(flow)}, expected a kpops.models.TokenFlow")
    if changed(flow, TokenFlow):
        raise TypeError(f"flow is {described(flow)}, whose velocity is not that of a TokenFlow")
    for weight, value in flow.named_parameters():
        if not value.isfinite().all():  # on which the solver would not end
            raise ValueError(f"{weight} of flow is not finite: load or train it again")
    grid, start = _read(flow, tokens, times)
    check_real("bound", bound)
    check_real("rtol", rtol)
    if not 0 < rtol < 1:
        raise ValueError(f"rtol={rtol}: choose a relative tolerance between 0 and 1")
    lengths = np.linalg.norm(start, axis=-1)
    if not lengths.max() < bound:  # NaN, too
        raise ValueError(
            f"a token starts at length {lengths.max():.6g}: pass a larger bound= than {bound:g}"
        )
    runs = [_run(flow, each, grid, float(bound), float(rtol)) for each in start]
    path = np.stack([states for states, _ in runs])
    escapes = np.array([time for _, time in runs])
    mu = _double(flow.mu())
    coefficient, regime = _predicted(mu, _double(flow.step_weight), start)
    eigenvalues = np.linalg.eigvalsh((mu + mu.T) / 2)[::-1].copy()
    dims = ("trial", "time", "token", "channel")
    variables = {
        "tokens": (dims, path, "token", "1"),
        "length": (dims[:3], np.linalg.norm(path, axis=-1), "length of a token", "1"),
        "escape_time": (("trial",), escapes, "time at which a token reaches the bound", "depth"),
        "coefficient": (("trial", "token"), coefficient, "u^T mu u", "1"),
        "regime": (("trial", "token"), regime, "predicted regime", "1"),
        "eigenvalue": (("mode",), eigenvalues, "eigenvalue of the symmetric part of mu", "1"),
    }
    coords: dict[str, Any] = {d: np.arange(n) for d, n in zip(dims, path.shape, strict=True)}
    coords["time"] = ("time", grid, {"long_name": "depth", "units": "depth"})
    coords["mode"] = np.arange(1, len(mu) + 1)
    return xr.Dataset(
        {
            name: (named, values, {"long_name": long_name, "units": units})
            for name, (named, values, long_name, units) in variables.items()
        },
        coords,
        attrs={"model": type(flow).__name__, "bound": float(bound), "rtol": float(rtol)},
    )


def _read(flow: TokenFlow, tokens: Any, times: Any) -> tuple[np.ndarray, np.ndarray]:
    """Times, and tokens (trial, token, channel), in float64."""
    if isinstance(tokens, xr.DataArray):
        dims = ("trial", "token", "channel")
        if set(tokens.dims) not in (set(dims), set(dims[1:])):
            raise ValueError(f"tokens has dims {tokens.dims}, expected {dims}, or without trial")
        tokens = tokens.transpose(*dims, missing_dims="ignore")
    start = to_numpy(as_tensor(tokens, "tokens").double())
    start = start[None] if start.ndim == 2 else start
    if start.ndim != 3 or start.shape[-1] != flow.size or not start.size:
        raise ValueError(
            f"tokens has shape {tuple(np.shape(tokens))}, expected (trial, token, channel) with "
            f"{flow.size} channels"
        )
    grid = to_numpy(as_tensor(times, "times").double())
    if grid.ndim != 1 or len(grid) < 2 or not (np.diff(grid) > 0).all():
        raise ValueError(f"times has shape {tuple(np.shape(times))}: pass two rising times or more")
    for name, array in (("tokens", start), ("times", grid)):
        if not np.isfinite(array).all():
            raise ValueError(f"{name} is not finite: leave such values out")
    return grid, start


def _run(
    flow: TokenFlow, start: np.ndarray, grid: np.ndarray, bound: float, rtol: float
) -> tuple[np.ndarray, float]:
    """Tokens (time, token, channel) of a trial, NaN after its escape, and when that is."""
    from scipy.integrate import solve_ivp

    weights = [_double(w) for w in (flow.key_weight, flow.query_weight, flow.step_weight)]
    double = TokenFlow(flow.size, flow.n_states, decay=flow.decay, rng=0).double()
    with torch.no_grad():
        for own, given in zip(double.parameters(), weights, strict=True):
            own.copy_(torch.from_numpy(given))

    def velocity(t: float, h: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return double(None, torch.from_numpy(h)).numpy()

    def room(t: float, h: np.ndarray) -> float:
        longest = np.linalg.norm(h.reshape(-1, flow.size), axis=1).max()
        return math.log(bound / longest) if longest > 0 else math.inf

    room.terminal = True  # type: ignore[attr-defined]
    found = solve_ivp(
        velocity,
        (grid[0], grid[-1]),
        start.ravel(),
        "DOP853",
        grid,
        dense_output=True,
        events=room,
        rtol=rtol,
        atol=1e-3 * rtol,
    )
    path = np.full((len(grid), start.size), np.nan)
    path[: found.y.shape[1]] = found.y.T
    if found.status == 0:
        escape = np.nan
    else:  # an event, or steps as short as rounding
        escape = float(found.t_events[0][0] if len(found.t_events[0]) else found.sol.t_max)
    return path.reshape(len(grid), *start.shape), escape


def _predicted(mu: np.ndarray, s: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """u^T mu u and the regime of every token (trial, token)."""
    lengths = np.linalg.norm(start, axis=-1, keepdims=True)
    u = np.divide(start, lengths, out=np.zeros_like(start), where=lengths > 0)
    coefficient = np.einsum("...i,ij,...j->...", u, mu, u)
    moves = lengths[..., 0] > 0
    opens = moves & (start @ s >= 0)  # its step size does not fall as it grows
    opens = np.logical_or.accumulate(opens, axis=1)  # or that of a token before it
    regime = np.where(coefficient < 0, 1, np.where(opens, 3, 2))
    regime = np.where(coefficient == 0, 0, regime)
    if mu.shape[0] > 1:
        regime[:, 1:] = REGIMES.index("undecided")
    regime[~moves] = 0
    return coefficient, np.array(REGIMES, dtype=object)[regime]


def _double(weights: Tensor) -> np.ndarray:
    return to_numpy(weights.detach().double().clone())
