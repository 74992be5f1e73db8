"""How one step of gradient descent moves the trajectories."""

from __future__ import annotations

import json
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from kpops.arrays import to_numpy
from kpops.learning.losses import Loss, objective_of, read_targets, read_weights
from kpops.learning.required import require_linearization
from kpops.linearization import Linearization


def gradient_flow(
    lin: Linearization, targets: Any, loss: Loss = "mse", *, loss_mask: Any = None
) -> xr.Dataset:
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
        For ``"mse"`` of shape (trial, time, output), or (trial, time, unit) without a readout; for
        ``"cross_entropy"`` integer labels (trial, time), where -100 does not count, or
        probabilities (trial, time, class); for a callable of any shape. A DataArray is understood
        by the names of its dims. Others have the order of the inputs: (time, trial, ...) where
        those came time-first, as `loss_mask` has.
    loss : {"mse", "cross_entropy"} or callable
        ``"mse"`` is the mean of the squared error over steps and outputs. ``"cross_entropy"`` is
        the mean over steps, with the outputs as the logits of the classes. The mean is over the
        valid steps that count. A callable takes outputs (trial, time, output) and targets as
        tensors and returns a scalar tensor; it sees the steps that are not valid too, as outputs
        of zero. If it has a third parameter ``weights``, it gets those of the steps.
    loss_mask : array_like or DataArray, optional
        Shape (trial, time), True at the steps that count in the loss, or their weights w >= 0: the
        mean is then sum(w l) / sum(w). It is another thing than the mask of the linearization, of
        steps that are there at all.

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
        If `targets` or `loss_mask` has the wrong shape or a value out of range, or no labels where
        inputs came time-first with as many steps as trials; or if the loss is not a finite scalar.
    TypeError
        If `lin` is no linearization, `targets` is complex or, as a tensor, of another floating
        dtype, or `loss` is neither.

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

    Decide between two classes, where only the last three steps count:

    >>> labels = torch.ones(5, 10, dtype=torch.int64)
    >>> last = torch.arange(10).expand(5, 10) >= 7
    >>> flow = kpops.gradient_flow(lin, labels, "cross_entropy", loss_mask=last)
    >>> bool(flow.error[:, :7].any()), bool(flow.error[:, 7:].any())
    (False, True)
    """
    require_linearization(lin)
    value, of_outputs = _gradient(lin, targets, loss, loss_mask)
    error = of_outputs if lin.readout is None else lin.C.apply_adjoint(of_outputs)
    adjoint = lin.P.apply_adjoint(error)
    step = -lin.J.apply_adjoint(adjoint)
    forcing = lin.J.apply(step)
    state_change = lin.P.apply(forcing)

    configuration = {
        "loss": loss if isinstance(loss, str) else "callable",
        "loss_mask": None if loss_mask is None else "given",
    }

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
            "configuration": json.dumps(configuration),
        },
    )


def _gradient(
    lin: Linearization, targets: Any, loss: Loss, loss_mask: Any
) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient with respect to outputs (states, if there is no readout)."""
    objective = objective_of(loss, loss_mask)
    space = lin.space if lin.readout is None else lin.output_space
    steps, trajectory = space.keep(("trial", "time")), lin.trajectory
    weights = read_weights(loss_mask, steps, trajectory.mask, trajectory.states, lin.reading)
    wanted = read_targets(targets, steps, weights, lin.reading)
    wanted = objective.fit(wanted, space.shape, weights)
    outputs = lin.states if lin.readout is None else lin.outputs
    with torch.enable_grad():
        y = torch.tensor(outputs.values, device=lin.device, requires_grad=True)
        before = torch.get_rng_state()
        value = objective(y, wanted, weights)
        if not torch.equal(before, torch.get_rng_state()):
            raise ValueError("loss draws random numbers: make it a function of outputs and targets")
        if not value.isfinite():
            raise ValueError(f"loss returned {value.item()}, expected a finite number")
        _refuse_others(value, y)
        (gradient,) = torch.autograd.grad(value, y)
    restricted = trajectory.restrict(gradient[None])
    padded = (restricted[0] != gradient).any(-1)
    if padded.any():
        trial, step = padded.nonzero()[0].tolist()
        raise ValueError(
            f"loss depends on the outputs of padded steps, first of trial {trial} at step {step}: "
            "take the valid ones only; give it a third parameter, weights (trial, time), which is "
            "zero in the padding, and for the last steps take outputs[range(len(outputs)), "
            "(weights > 0).sum(1) - 1]"
        )
    return value.detach(), restricted


def _refuse_others(value: Tensor, outputs: Tensor) -> None:
    """Refuse a loss that has other variables than the outputs, whose gradient would be missing."""
    nodes, seen = [value.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", outputs)
        if leaf is not outputs:
            raise ValueError(
                f"loss depends on another tensor that requires grad, of shape {tuple(leaf.shape)}, "
                "besides the outputs: its gradient, such as that of weight decay, does not go "
                "through the states; leave the term out, or detach the tensor"
            )
        nodes.extend(following for following, _ in node.next_functions)
