"""Gradient flow through the leading modes of the flow operator alone."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops import work
from kpops.arrays import as_tensor, numpy_dtype
from kpops.learning.gradient_flow import gradient_flow
from kpops.learning.losses import Loss
from kpops.linearization import Linearization
from kpops.precision import in_full_precision
from kpops.spectral._result import mode_variables
from kpops.spectral.truncation import truncate


@in_full_precision
@work.shown
def truncated_flow(
    lin: Linearization,
    targets: Any,
    k: int = 20,
    *,
    loss: Loss = "mse",
    loss_mask: Any = None,
    tol: float = 1e-6,
    rng: Any = None,
    modes: xr.Dataset | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """How much of a gradient step the leading modes of the flow operator carry.

    Parameters
    ----------
    lin : Linearization
        As for :func:`kpops.gradient_flow`.
    targets : Tensor, array_like or DataArray
        As for :func:`kpops.gradient_flow`.
    k : int
        Number of leading modes, 1 to the size of the flow operator.
    loss : {"mse", "cross_entropy"} or callable
        As for :func:`kpops.gradient_flow`.
    loss_mask : array_like or DataArray, optional
        As for :func:`kpops.gradient_flow`.
    tol : float
        Relative residual of the modes to reach.
    rng : int, Generator or None
        Source of the random vectors that start the search for modes.
    modes : Dataset, optional
        What :func:`kpops.eigsh` has found of ``lin.flow`` before, at least k modes. Then only two
        products are made for modes, which make sure that they are its own.
    progress : bool
        Show a bar of the matvecs.

    Returns
    -------
    Dataset
        Of mode i: ``eigenvalue(mode)``, ``residual(mode)`` and ``converged(mode)`` of the flow
        operator; ``coefficient(mode)``, c_i = <v_i, Err>; ``state_change(mode)``, the part
        <v_i, dh> of the state change; ``loss_decrease(mode)``, the part of the loss that it
        takes away. Of the leading modes up to i together, as fractions: ``error_captured(mode)``
        of ||Err||^2, ``state_change_captured(mode)`` of ||dh||^2, ``loss_decrease_captured(mode)``
        of the decrease of the loss; and ``cosine(mode)`` between the state change through them and
        the whole. ``total_state_change`` is ||dh||, ``total_loss_decrease`` the decrease. All per
        unit of the learning rate. Fractions are NaN where the gradient is zero.

    Raises
    ------
    ValueError
        If `k` is out of range, or `targets`, `loss` or `modes` do not fit.

    Warns
    -----
    ConvergenceWarning
        If some modes did not reach `tol`.

    Notes
    -----
    With Phi = P K P* = sum_i l_i v_i v_i*, a gradient step moves the states by
    dh = -Phi Err = -sum_i l_i c_i v_i, and takes -<Err, dh> = sum_i l_i c_i^2 off the loss, both
    to first order. The modes are orthogonal, so the step through k of them,
    dh_k = ``-kpops.truncate(lin.flow, k) @ Err``, is the orthogonal projection of dh on their
    span. With b = sum_{i <= k} (l_i c_i)^2,

        ||dh_k||^2 / ||dh||^2 = b / ||Phi Err||^2,   cos(dh_k, dh) = ||dh_k|| / ||dh||,
        ||dh - dh_k|| / ||dh|| = sqrt(1 - cos^2).

    The sum of all l_i c_i^2 is the squared norm of the gradient with respect to the parameters,
    ||J* P* Err||^2, which is what the decrease is divided by. Both totals come from
    :func:`kpops.gradient_flow`: no product with Phi is needed beyond those for its modes.

    The modes are those of ``lin.flow`` under its ``measure``; what they carry is always of the
    real step, that of ``measure="sum"``.

    Examples
    --------
    >>> import torch, kpops
    >>> _ = torch.manual_seed(0)
    >>> gru = torch.nn.GRU(3, 8, batch_first=True)
    >>> lin = kpops.linearize(gru, torch.randn(5, 10, 3), readout=torch.nn.Linear(8, 2))
    >>> carried = kpops.truncated_flow(lin, torch.zeros(5, 10, 2), k=10, rng=0)
    >>> bool((carried.state_change_captured.diff("mode") >= 0).all())
    True
    >>> bool(carried.loss_decrease_captured[-1] <= 1)
    True
    """
    flow = gradient_flow(lin, targets, loss, loss_mask=loss_mask)
    top = truncate(lin.flow, k, tol=tol, rng=rng, modes=modes)

    def flat(field: xr.DataArray) -> Tensor:
        return as_tensor(field.values, str(field.name)).to(lin.device).flatten()

    error, change = flat(flow.error), flat(flow.state_change)
    # Sums in float64: what the last modes carry may be far below what all of them do.
    coefficient = torch.stack([(v.flatten().double() * error).sum() for v in top.left])
    part = -top.values.double() / lin._scale * coefficient
    decrease = -part * coefficient
    whole_change = change.double().norm()
    whole_decrease = flat(flow.parameter_step).double().square().sum()
    captured = part.square().cumsum(0) / whole_change.square()
    per_mode = {
        "coefficient": (coefficient, "coefficient of the error along the mode"),
        "state_change": (part, "state change along the mode, per learning rate"),
        "loss_decrease": (decrease, "decrease of the loss through the mode, per learning rate"),
        "error_captured": (
            coefficient.square().cumsum(0) / error.double().square().sum(),
            "fraction of the squared error in the leading modes",
        ),
        "state_change_captured": (
            captured,
            "fraction of the squared state change through the leading modes",
        ),
        "loss_decrease_captured": (
            decrease.cumsum(0) / whole_decrease,
            "fraction of the decrease of the loss through the leading modes",
        ),
        "cosine": (captured.sqrt(), "cosine between truncated and whole state change"),
    }
    found = top.modes
    assert found is not None
    scalar = numpy_dtype(lin.dtype).type

    def total(value: Tensor, long_name: str) -> tuple[tuple[()], np.generic, dict[str, str]]:
        return (), scalar(float(value)), {"long_name": long_name, "units": "1"}

    settings = {**json.loads(flow.attrs["configuration"]), "k": int(k), "tol": tol}
    result = xr.Dataset(
        {
            **{name: found[name] for name in ("eigenvalue", "residual", "converged")},
            **mode_variables(
                {name: (v.to(lin.dtype), text) for name, (v, text) in per_mode.items()}
            ),
            "total_state_change": total(whole_change, "norm of the state change"),
            "total_loss_decrease": total(whole_decrease, "decrease of the loss"),
        },
        attrs={**lin.attrs, "configuration": json.dumps(settings, sort_keys=True)},
    )
    result["mode"].attrs = {"long_name": "mode", "units": "1"}
    return result
