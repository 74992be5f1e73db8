"""How one step of gradient descent moves the trajectories."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops.labels import Space, as_tensor, by_name, to_numpy
from kpops.learning.required import require_linearization
from kpops.linearization import Linearization

Loss = Callable[[Tensor, Tensor], Tensor]


def gradient_flow(lin: Linearization, targets: Any, loss: str | Loss = "mse") -> xr.Dataset:
    """Follow the loss gradient through the pipeline ``Err -> P* -> J* -> J -> P``.

    A gradient step ``dtheta = -eta dL/dtheta`` moves the trajectory by
    ``dh = -eta P K P* Err + O(eta^2)`` (Proposition 1 of the KPFlow paper, arXiv 2507.06381).
    Everything below is for eta = 1; to first order, multiply by the learning rate.

    Parameters
    ----------
    lin : Linearization
        With a readout, the outputs ``y = C(h)`` are compared with the targets; without one, the
        states are.
    targets : Tensor, array_like or DataArray
        Shape (trial, time, output), or (trial, time, unit) without a readout.
    loss : "mse" or callable
        ``"mse"`` is the mean of the squared error over all valid entries. A callable takes
        outputs and targets as tensors (trial, time, output) and returns a scalar tensor; it sees
        the steps that are not valid too, as zeros.

    Returns
    -------
    Dataset
        ``loss`` ();
        ``error`` (trial, time, unit): Err = dL/dh with the trajectory held fixed;
        ``adjoint`` (trial, time, unit): P* Err, the total derivative of the loss;
        ``parameter_step`` (parameter): -J* P* Err, minus the gradient;
        ``forcing`` (trial, time, unit): J applied to the step, the change of every single step;
        ``state_change`` (trial, time, unit): P applied to the forcing, -P K P* Err.

    Raises
    ------
    ValueError
        If `targets` has the wrong shape, or the loss is not a finite scalar.
    TypeError
        If `targets` has another floating dtype as a tensor, or `loss` is neither.

    Notes
    -----
    A gradient step is what it is under either ``measure`` of the linearization: the result is
    -P K P* Err with the K of ``measure="sum"``.

    Examples
    --------
    >>> import torch, kpops
    >>> gru = torch.nn.GRU(3, 8, batch_first=True)
    >>> lin = kpops.linearize(gru, torch.randn(5, 10, 3), readout=torch.nn.Linear(8, 2))
    >>> kpops.gradient_flow(lin, torch.zeros(5, 10, 2)).state_change.sizes
    Frozen({'trial': 5, 'time': 10, 'unit': 8})
    """
    require_linearization(lin)
    has_readout = lin.readout is not None
    outputs_space = lin.output_space if has_readout else lin.space
    wanted = _targets(lin, targets, outputs_space)
    value, of_outputs = _loss_and_gradient(lin, wanted, loss)
    of_outputs = lin.trajectory.restrict(of_outputs[None])
    error = lin.C.apply_adjoint(of_outputs) if has_readout else of_outputs
    adjoint = lin.P.apply_adjoint(error)
    step = -lin.J.apply_adjoint(adjoint)
    forcing = lin.J.apply(step)
    state_change = lin.P.apply(forcing)

    def states(block: Tensor, long_name: str) -> xr.DataArray:
        return lin.space.label(to_numpy(block[0]), long_name=long_name)

    return xr.Dataset(
        {
            "loss": ((), to_numpy(value), {"long_name": "loss", "units": "1"}),
            "error": states(error, "error dL/dh, trajectory held fixed"),
            "adjoint": states(adjoint, "adjoint P* Err"),
            "parameter_step": lin.parameter_space.label(
                to_numpy(step[0]), long_name="parameter step -J* P* Err per learning rate"
            ),
            "forcing": states(forcing, "forcing J dtheta per learning rate"),
            "state_change": states(state_change, "state change -P K P* Err per learning rate"),
        },
        attrs={
            **lin.attrs,
            "configuration": json.dumps({"loss": loss if isinstance(loss, str) else "callable"}),
        },
    )


def _targets(lin: Linearization, targets: Any, space: Space) -> Tensor:
    if isinstance(targets, xr.DataArray):
        # The channels of outputs have no names to compare; trials and times have.
        steps = lin.space.keep(("trial", "time"))
        (channel,) = set(targets.dims) - set(steps.dims) or ("output",)
        named = Space((*steps.dims, str(channel)), space.shape, steps.coords)
        targets = by_name(targets, named, "targets")
    if isinstance(targets, Tensor) and targets.is_floating_point() and targets.dtype != lin.dtype:
        raise TypeError(f"targets is {targets.dtype}, the linearization {lin.dtype}: convert it")
    wanted = as_tensor(targets)
    if tuple(wanted.shape) != space.shape:
        raise ValueError(f"targets has shape {tuple(wanted.shape)}, expected {space.shape}")
    wanted = wanted.to(dtype=lin.dtype, device=lin.device)
    wanted = lin.trajectory.restrict(wanted[None])[0]
    if not wanted.isfinite().all():
        raise ValueError("targets is not finite at some valid step: drop or mask those steps")
    return wanted


def _loss_and_gradient(
    lin: Linearization, targets: Tensor, loss: str | Loss
) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient with respect to outputs (states, if there is no readout)."""
    if callable(loss):
        function = loss
    elif loss == "mse":
        n_entries = lin.trajectory.n_valid * targets.shape[-1]

        def function(y: Tensor, target: Tensor) -> Tensor:
            return (y - target).square().sum() / n_entries
    else:
        raise TypeError(f"loss={loss!r}: pass 'mse' or a callable (outputs, targets) -> scalar")
    outputs = lin.outputs if lin.readout is not None else lin.states
    with torch.enable_grad():
        y = torch.tensor(outputs.values, device=lin.device, requires_grad=True)
        value = function(y, targets)
        if not isinstance(value, Tensor) or value.ndim or not np.isfinite(float(value.detach())):
            raise ValueError(f"loss returned {value!r}, expected a finite scalar tensor")
        (gradient,) = torch.autograd.grad(value, y)
    return value.detach(), gradient
