"""Lyapunov exponents of a system, with error bars and the sum rule."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import torch
import xarray as xr

from kpops.arrays import to_numpy
from kpops.dynamics.lyapunov import lyapunov_spectrum
from kpops.linearizing import linearize
from kpops.scalars import check_count, generator
from kpops.systems.divergence import contraction
from kpops.systems.models import System
from kpops.systems.trajectories import no_inputs, refuse_escaped, refuse_others, scattered


def measure(
    model: System,
    *,
    n_trials: int = 200,
    n_steps: int = 4500,
    transient: int = 2000,
    rng: int | np.random.Generator | None = None,
) -> xr.Dataset:
    r"""Lyapunov exponents of a system, with error bars and the sum rule.

    Parameters
    ----------
    model : Flow, Map or SemilinearFlow
        From :func:`load`.
    n_trials : int
        Number of trials, 20 or more: the errors come from the spread between them.
    n_steps : int
        Steps of a trial after the transient; a third of them lets the tangent vectors turn.
    transient : int
        Steps for the trials, which start close together, to part and reach the attractor. Each
        begins at a random time in the second half, so that their phases differ.
    rng : int, Generator or None
        Source of the initial states and tangent vectors.

    Returns
    -------
    Dataset, dim mode
        Per unit of time, or per step of a map:

        - ``exponent`` and ``stderr``, in falling order;
        - ``kaplan_yorke_dimension`` of these;
        - ``mean_log_det``, the mean of log \|det A\| over the same steps, which is the sum of the
          exponents but for rounding;
        - ``mean_divergence``, the mean of the divergence of the vector field, tr Df, over the same
          time by automatic differentiation, without any Jacobian of the solver; for a map, that of
          log \|det Df\|;
        - ``sum_error``, the sum of the exponents less ``mean_log_det``; ``solver_error``,
          ``mean_log_det`` less ``mean_divergence``, of the order of the solver.

    Raises
    ------
    TypeError, ValueError
        If `model` is no system, or a number is out of range; if a trajectory leaves for infinity.

    Notes
    -----
    By Liouville's theorem the exponents of a flow add up to the mean divergence. The solver's map
    has exponents of its own, whose sum is exactly the mean of log \|det A\|. The two differences
    tell errors of the exponents from those of the solver.

    Examples
    --------
    >>> import kpops
    >>> henon = kpops.systems.load("Henon")
    >>> result = kpops.systems.measure(henon, n_trials=20, n_steps=500, transient=100, rng=0)
    >>> print(f"{float(result.mean_divergence):.6f}")  # log 0.3
    -1.203973
    >>> bool(abs(result.sum_error) < 1e-12)
    True
    """
    refuse_others(model)
    check_count("n_trials", n_trials, 20)
    check_count("n_steps", n_steps, 10)
    check_count("transient", transient, 2)
    rng = generator(rng)
    h0 = _spread_in_phase(model, scattered(model, n_trials, rng), transient, rng)
    lin = linearize(model, no_inputs(model, n_trials, n_steps), h0=h0)
    spectrum = lyapunov_spectrum(lin, frame_transient=n_steps // 3, dt=model.dt, rng=rng)
    skipped = json.loads(spectrum.attrs["configuration"])["frame_transient"]
    states = lin.trajectory.previous[:, skipped:]
    volume = float(contraction(model, states.flatten(0, 1)).mean())
    order = np.argsort(-spectrum.exponent.values, kind="stable")
    rate = "1/step" if model.dt is None else "1/time"
    dtype = spectrum.exponent.dtype
    log_det = float(spectrum.mean_log_det)

    def number(value: float, long_name: str, units: str = rate) -> tuple[Any, ...]:
        return (), dtype.type(value), {"long_name": long_name, "units": units}

    named = {"long_name": "mode", "units": "1"}
    return xr.Dataset(
        {
            "exponent": (
                "mode",
                spectrum.exponent.values[order],
                {"long_name": "Lyapunov exponent", "units": rate},
            ),
            "stderr": (
                "mode",
                spectrum.stderr.values[order],
                {"long_name": "standard error of the Lyapunov exponent", "units": rate},
            ),
            "kaplan_yorke_dimension": number(
                float(spectrum.kaplan_yorke_dimension), "Kaplan-Yorke dimension", "1"
            ),
            "mean_log_det": number(log_det, "mean of log |det A|"),
            "mean_divergence": number(volume, "mean divergence"),
            "sum_error": number(
                float(spectrum.exponent.sum()) - log_det, "sum of exponents - mean of log |det A|"
            ),
            "solver_error": number(log_det - volume, "mean of log |det A| - mean divergence"),
        },
        coords={"mode": ("mode", np.arange(1, len(order) + 1), named)},
        attrs={"system": model.name, "settings": settings_text(model)},
    )


@torch.no_grad()
def _spread_in_phase(
    model: Any, h: torch.Tensor, transient: int, rng: np.random.Generator
) -> torch.Tensor:
    """States of the trials at random times in the second half of the transient.

    Many attractors turn at a nearly constant rate, so that trials which started together stay in
    step for long, however chaotic they are otherwise: their finite-time exponents would share the
    error of a window that is no whole number of turns.
    """
    stops = torch.as_tensor(rng.integers(transient // 2, transient, len(h))).to(h.device)
    x, chosen = no_inputs(model, len(h), 1)[:, 0], h
    for t in range(transient):
        h = model(x, h)
        chosen = torch.where((stops == t)[:, None], h, chosen)
    refuse_escaped(model, chosen)
    return chosen


def settings_text(model: System) -> str:
    """What decides the exponents of the computed map, as JSON."""
    solver = None if model.dt is None else [model.dt, getattr(model, "n_substeps", 1)]
    with torch.no_grad():  # what the equation gives there, so that it counts, too
        rates = model.field(None, model.start[None])[0]
    start, rates = ([round(float(v), 6) + 0.0 for v in to_numpy(x)] for x in (model.start, rates))
    settings = {"parameters": model.settings, "solver": solver, "start": start, "rates": rates}
    return json.dumps(settings, sort_keys=True)


def settings_hash(model: System) -> str:
    """The first digits of the hash of its settings."""
    return hashlib.sha256(settings_text(model).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of what computes."""
    return {"torch": torch.__version__.partition("+")[0], "numpy": np.__version__}
