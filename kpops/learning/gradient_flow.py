"""How one step of gradient descent moves the trajectories, whole and through leading modes."""

from __future__ import annotations

import json
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from kpops import work
from kpops.arrays import as_tensor, to_numpy
from kpops.learning.loss_of_outputs import LossOfOutputs
from kpops.learning.losses import Loss
from kpops.learning.required import labelled, refuse_beside, require_linearization
from kpops.linearization import Linearization
from kpops.precision import in_full_precision
from kpops.spectral._result import mode_variables
from kpops.spectral.truncation import truncate


@in_full_precision
@torch.inference_mode(False)
def gradient_flow(
    lin: Linearization, targets: Any, loss: Loss = "mse", *, loss_mask: Any = None
) -> xr.Dataset:
    """Follow the loss gradient through the pipeline ``Err -> P* -> J* -> J -> P``.

    A gradient step ``dtheta = -eta dL/dtheta`` moves the trajectory by
    ``dh = -eta P K P* Err + O(eta^2)`` (Proposition 1 of the KPFlow paper, arXiv 2507.06381).
    The result is for eta = 1; multiply by the learning rate. Whatever the ``measure`` of the
    linearization, K is that of ``measure="sum"``.

    Parameters
    ----------
    lin : Linearization
        With a readout, the loss is of the outputs ``y = C(h)``; without one, of the states.
    targets : Tensor, array_like or DataArray
        For ``"mse"`` of shape (trial, time, output), or (trial, time, unit) without a readout; for
        ``"cross_entropy"`` integer labels (trial, time), where -100 does not count, or
        probabilities (trial, time, class); for a callable of any shape. The dimensions of a
        DataArray are identified by name. Other arrays, and `loss_mask`, have the order of the
        inputs: (time, trial, ...) if those came time-first.
    loss : {"mse", "cross_entropy"} or callable
        ``"mse"`` is the mean squared error over steps and outputs; ``"cross_entropy"`` is the mean
        over steps, with the outputs as logits. Both average over the valid steps that count. A
        callable takes outputs (trial, time, output), zero at steps that are not valid, and targets
        as tensors, and returns a scalar tensor. If it has a third parameter ``weights``, that gets
        the weights of the steps.
    loss_mask : array_like or DataArray, optional
        Shape (trial, time), True at the steps that count in the loss, or their weights w >= 0, for
        the mean sum(w l) / sum(w). The mask of the linearization marks the steps that exist.

    Returns
    -------
    Dataset
        ``loss`` ();
        ``error`` (trial, time, unit): Err = dL/dh with the trajectory held fixed;
        ``adjoint`` (trial, time, unit): P* Err, the total derivative of the loss;
        ``parameter_step`` (parameter): -J* P* Err, minus the gradient;
        ``forcing`` (trial, time, unit): J applied to that step, the change of each time step alone;
        ``state_change`` (trial, time, unit): P applied to the forcing, -P K P* Err;
        with a readout, ``output_error`` (trial, time, output): dL/dy, of which Err is C*.

    Raises
    ------
    ValueError
        If `targets` or `loss_mask` has the wrong shape, a value out of range, or no labels although
        the inputs came time-first with as many steps as trials; if the loss is no finite scalar.
    TypeError
        If `lin` is no linearization, `targets` is complex or, as a tensor, of another floating
        dtype, or `loss` is neither.

    Examples
    --------
    >>> import torch, kpops
    >>> gru = torch.nn.GRU(3, 8, batch_first=True)
    >>> lin = kpops.linearize(gru, torch.randn(5, 10, 3), readout=torch.nn.Linear(8, 2))
    >>> kpops.gradient_flow(lin, torch.zeros(5, 10, 2)).state_change.sizes
    Frozen({'trial': 5, 'time': 10, 'unit': 8})

    Two classes, where only the last three steps count:

    >>> labels = torch.ones(5, 10, dtype=torch.int64)
    >>> last = torch.arange(10).expand(5, 10) >= 7
    >>> flow = kpops.gradient_flow(lin, labels, "cross_entropy", loss_mask=last)
    >>> bool(flow.error[:, :7].any()), bool(flow.error[:, 7:].any())
    (False, True)
    """
    require_linearization(lin, spread=True)
    value, of_outputs = LossOfOutputs.read(lin, targets, loss, loss_mask).gradient()
    error = of_outputs if lin.readout is None else lin.C.apply_adjoint(of_outputs)
    adjoint = lin.P.apply_adjoint(error)
    step = -lin.parameter_gradient(of_outputs, adjoint)
    forcing = lin.J.apply(step)
    state_change = lin.P.apply(forcing)

    configuration = {
        "loss": loss if isinstance(loss, str) else "callable",
        "loss_mask": None if loss_mask is None else "given",
    }

    def states(block: Tensor, long_name: str) -> xr.DataArray:
        return lin.space.label(to_numpy(block[0]), long_name=long_name)

    read_out = {}
    if lin.readout is not None:
        values = to_numpy(of_outputs[0])
        read_out["output_error"] = lin.output_space.label(values, long_name="output error dL/dy")
    return xr.Dataset(
        {
            "loss": labelled((), to_numpy(value), "loss"),
            "error": states(error, "error dL/dh, trajectory held fixed"),
            "adjoint": states(adjoint, "adjoint P* Err"),
            "parameter_step": lin.parameter_space.label(
                to_numpy(step[0]), long_name="parameter step -J* P* Err per learning rate"
            ),
            "forcing": states(forcing, "forcing J dtheta per learning rate"),
            "state_change": states(state_change, "state change -P K P* Err per learning rate"),
            **read_out,
        },
        attrs={**lin.attrs, "configuration": json.dumps(configuration)},
    )


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
    lin, targets, loss, loss_mask
        As for :func:`kpops.gradient_flow`.
    k : int
        Number of leading modes, 1 to the size of the flow operator.
    tol : float
        Relative residual of the modes to reach.
    rng : int, Generator or None
        Source of the random vectors that start the search for modes.
    modes : Dataset, optional
        At least k modes of ``lin.flow`` from :func:`kpops.eigsh`. Only two matvecs are then spent
        on modes, to check that they belong to it.
    progress : bool
        Show a bar of the matvecs.

    Returns
    -------
    Dataset
        Of mode i: ``eigenvalue(mode)``, ``residual(mode)`` and ``converged(mode)`` of the flow
        operator; ``coefficient(mode)``, c_i = <v_i, Err>; ``state_change(mode)``, the part
        <v_i, dh> of the state change; ``loss_decrease(mode)``, its part of the decrease of the
        loss. Of the modes up to i together, as fractions: ``error_captured(mode)`` of ||Err||^2,
        ``state_change_captured(mode)`` of ||dh||^2, ``loss_decrease_captured(mode)`` of the
        decrease of the loss; and ``cosine(mode)`` between the state change through them and the
        whole. ``total_state_change`` is ||dh||, ``total_loss_decrease`` the decrease. All per unit
        of the learning rate. Fractions are NaN where the gradient is zero.

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
    dh = -Phi Err = -sum_i l_i c_i v_i, and lowers the loss by -<Err, dh> = sum_i l_i c_i^2, both
    to first order. The modes are orthogonal, so the step through k of them,
    dh_k = ``-kpops.truncate(lin.flow, k) @ Err``, is the orthogonal projection of dh on their
    span. With b = sum_{i <= k} (l_i c_i)^2,

        ||dh_k||^2 / ||dh||^2 = b / ||Phi Err||^2,   cos(dh_k, dh) = ||dh_k|| / ||dh||,
        ||dh - dh_k|| / ||dh|| = sqrt(1 - cos^2).

    The decrease is divided by the sum of all l_i c_i^2, the squared gradient ||J* P* Err||^2. Both
    totals come from :func:`kpops.gradient_flow`, so only the modes need matvecs with Phi. The
    modes are those of ``lin.flow`` under its ``measure``; the step is that of ``measure="sum"``.

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
    refuse_beside(lin)
    top = truncate(lin.flow, k, tol=tol, rng=rng, modes=modes)

    def flat(field: xr.DataArray) -> Tensor:
        return as_tensor(field.values, str(field.name)).to(lin.device).flatten()

    error, change = flat(flow.error), flat(flow.state_change)
    # In float64: the last modes may carry far less than all of them.
    coefficient = torch.stack([(v.flatten().double() * error).sum() for v in top.left])
    part = -top.values.double() / lin._scale * coefficient
    decrease = -part * coefficient
    whole_change = change.double().norm()
    whole_decrease = flat(flow.parameter_step).double().square().sum()
    captured = part.square().cumsum(0) / whole_change.square()
    of_error = coefficient.square().cumsum(0) / error.double().square().sum()
    of_decrease = decrease.cumsum(0) / whole_decrease
    leading = "through the leading modes"
    per_mode = {
        "coefficient": (coefficient, "coefficient of the error along the mode"),
        "state_change": (part, "state change along the mode, per learning rate"),
        "loss_decrease": (decrease, "decrease of the loss through the mode, per learning rate"),
        "error_captured": (of_error, "fraction of the squared error in the leading modes"),
        "state_change_captured": (captured, f"fraction of the squared state change {leading}"),
        "loss_decrease_captured": (of_decrease, f"fraction of the decrease of the loss {leading}"),
        "cosine": (captured.sqrt(), "cosine between truncated and whole state change"),
    }
    assert top.modes is not None

    norm, lowered = (to_numpy(total.to(lin.dtype)) for total in (whole_change, whole_decrease))
    settings = {**json.loads(flow.attrs["configuration"]), "k": int(k), "tol": tol}
    return xr.Dataset(
        {
            **{name: top.modes[name] for name in ("eigenvalue", "residual", "converged")},
            **mode_variables(
                {name: (v.to(lin.dtype), text) for name, (v, text) in per_mode.items()}
            ),
            "total_state_change": labelled((), norm, "norm of the state change"),
            "total_loss_decrease": labelled((), lowered, "decrease of the loss"),
        },
        attrs={**lin.attrs, "configuration": json.dumps(settings, sort_keys=True)},
    )
