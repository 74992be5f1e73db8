"""The curvature of a loss by the parameters that learn: its Gauss-Newton operator and Hessian."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import grad

from kpops.checks import is_known, is_plain
from kpops.derivatives import Rows, is_slope, is_symmetric, refuse_without_second
from kpops.labels import Space, parameter_space
from kpops.learning.loss_of_outputs import LossOfOutputs
from kpops.learning.losses import Loss
from kpops.learning.required import require_linearization
from kpops.linearization import Linearization
from kpops.models.readout import RowReadout
from kpops.operators import Hessian, LossHessian, LossRoot, SideBySide, TrajectoryOperator
from kpops.precision import in_full_precision
from kpops.site_linearization import SiteLinearization


@in_full_precision
def ggn(
    lin: Linearization, targets: Any, loss: Loss = "mse", *, loss_mask: Any = None
) -> TrajectoryOperator:
    """Generalised Gauss-Newton operator ``J* P* C* H C P J`` of a loss.

    H is the second derivative of the loss by the outputs. This is the part of the Hessian that
    does not need second derivatives of the model, and all of it where the errors vanish.

    Parameters
    ----------
    targets, loss, loss_mask
        As for :func:`kpops.gradient_flow`; the gradient of the same loss is there.

    Returns
    -------
    TrajectoryOperator
        On the space (parameter,): the parameters of the model, then those of the readout that
        learn, with ``readout.`` before their names. It is self-adjoint, and positive for ``"mse"``
        and ``"cross_entropy"``; a callable may not be convex. ``select(parameter=...)`` restricts
        it. It does not depend on the ``measure`` of the linearization.

    Raises
    ------
    ValueError, TypeError
        As :func:`kpops.gradient_flow`; a ValueError also if a callable has no second derivative.

    Notes
    -----
    With N steps that count and O outputs, H is 2/(N O) for ``"mse"``, so that the trace is
    ``2/(N O)`` times that of ``lin.output_ntk`` at ``measure="sum"``, if all steps that count have
    one weight. For half the sum of squares the traces are equal. At the step weight w it is
    ``w (diag(p) - p p^T)`` for ``"cross_entropy"``, where p is the softmax of the outputs. Both are
    known as H = R R*, so that spectra are computed in the smaller of two spaces, parameters and
    outputs.

    For k classes and one linear map of features x, each step adds ``(diag(p) - p p^T) kron x x^T``,
    whose first factor has the rank k - 1: the rank of the operator is at most k - 1 times that of
    the features (Sagun et al. 2017, Empirical analysis of the Hessian of over-parametrized neural
    networks, arXiv 1706.04454).

    Examples
    --------
    >>> import torch, kpops
    >>> gru = torch.nn.GRU(3, 8, batch_first=True)
    >>> lin = kpops.linearize(gru, torch.randn(5, 10, 3), readout=torch.nn.Linear(8, 2))
    >>> lin.ggn(torch.zeros(5, 10, 2)).shape  # 312 parameters of the GRU, 18 of the readout
    (330, 330)
    """
    require_linearization(lin, spread=True)
    of_outputs = LossOfOutputs.read(lin, targets, loss, loss_mask)
    of_outputs.gradient()
    D = _outputs_by_parameters(lin)
    return D.H @ _loss_hessian(of_outputs) @ D


@in_full_precision
def hessian(
    lin: Linearization, targets: Any, loss: Loss = "mse", *, loss_mask: Any = None
) -> TrajectoryOperator:
    """Hessian of a loss by the parameters that learn, exact and matrix-free.

    It is :meth:`Linearization.ggn` plus the second derivatives of the model, weighted by the
    errors.

    Parameters
    ----------
    targets, loss, loss_mask
        As for :func:`kpops.gradient_flow`.

    Returns
    -------
    TrajectoryOperator
        Self-adjoint, on the space of :meth:`Linearization.ggn`.

    Raises
    ------
    ValueError, TypeError
        As :func:`kpops.gradient_flow`; a ValueError also if the model, the readout or the loss
        cannot be differentiated twice, or its gradient is a declared surrogate.

    Notes
    -----
    With the adjoint a of the states and the error e of the outputs, the Lagrangian
    ``L(C(h)) + sum_t a[t] . (f(theta, h[t-1]) - h[t])`` gives

        L'' = D* H D + [1; P J]* M [1; P J],

    with M the second derivative of ``sum_t a[t] . f(theta, h[t-1]) + e . C(h)`` by parameters and
    states. M couples no two steps, so a matvec costs one with the Gauss-Newton operator and one
    double backward pass of all steps at once. Where a model has kinks, as ``relu`` does, this is
    the Hessian of the piece that the trajectory is on.

    Examples
    --------
    >>> import torch, kpops
    >>> gru = torch.nn.GRU(3, 8, batch_first=True)
    >>> lin = kpops.linearize(gru, torch.randn(5, 10, 3), readout=torch.nn.Linear(8, 2))
    >>> hessian = lin.hessian(torch.zeros(5, 10, 2))
    >>> sharpness = kpops.eigsh(hessian, 1, which="LA").eigenvalue
    """
    require_linearization(lin, spread=True)
    of_outputs = LossOfOutputs.read(lin, targets, loss, loss_mask)
    _, error = of_outputs.gradient()
    H, names = _loss_hessian(of_outputs), tuple(lin.parameters)
    if isinstance(lin, SiteLinearization):
        _refuse_without_second_of_network(lin)
        D = _outputs_by_parameters(lin)
        return Hessian(D.domain, lin.second_order, names, D, None, None, H, error[0], error[0])
    C = None if lin.readout is None else lin.C
    at_states = error if C is None else C.apply_adjoint(error)
    adjoint = lin.P.apply_adjoint(at_states) / lin.forcing_step
    _refuse_without_second(lin)
    D = _outputs_by_parameters(lin)
    parts = lin.sensitivity, C, lin.J_C, H
    return Hessian(D.domain, lin.second_order, names, *parts, adjoint[0], error[0])


# linearization.py cannot import losses, which need it.
Linearization.ggn = ggn
Linearization.hessian = hessian


def _outputs_by_parameters(lin: Linearization) -> TrajectoryOperator:
    """D = C P J, and beside it J_C if the readout has parameters that learn."""
    if isinstance(lin, SiteLinearization):
        return lin.sensitivity if lin.readout is None else lin.output_sensitivity
    D = lin.sensitivity if lin.readout is None else lin.C @ lin.sensitivity
    if lin.J_C is None:
        return D
    return SideBySide(_every_parameter(lin), D, lin.J_C)


def _every_parameter(lin: Linearization) -> Space:
    own = {f"readout.{n}": p for n, p in lin.readout_parameters.items()}
    return parameter_space({n: p.numel() for n, p in {**lin.parameters, **own}.items()})


def _loss_hessian(loss: LossOfOutputs) -> TrajectoryOperator:
    """H: R R* where R is known."""
    root = loss.objective.root(loss.outputs, loss.targets, loss.weights, loss.total)
    if root is not None:
        factor = LossRoot(loss.space, *root)
        return factor @ factor.H
    H = LossHessian(loss.space, loss, loss.outputs)
    slope = grad(loss)
    # Long enough to lead from one linear piece of a loss to others.
    reach = 10 * (1 + loss.outputs.norm() + loss.targets.double().norm().to(loss.outputs))
    u = torch.randn(2, *loss.space.shape, generator=torch.Generator().manual_seed(0)).to(H.outputs)
    try:
        images = H.apply(u)
        here, far = slope(loss.outputs), slope(loss.outputs + reach * u[0])
    except RuntimeError as error:
        raise ValueError(
            f"loss has no second derivative ({str(error).strip().partition(chr(10))[0]}): write it "
            "in plain operations of torch"
        ) from error

    def along(s: Tensor) -> Tensor:
        return slope(loss.outputs + s * u[0]).flatten(0, -2)

    true = is_slope(along, here.flatten(0, -2), images[0].flatten(0, -2))
    if not true or not is_symmetric(u.flatten(1), images.flatten(1)):
        raise ValueError(
            "the second derivative of loss is not that of its values: a part is detached, or has a "
            "backward pass that is not differentiable; write it in plain operations of torch"
        )
    if not images.any() and not torch.equal(here, far):
        raise ValueError(
            "loss has no second derivative at these outputs: it is zero although the gradient is "
            "not constant, as for l1_loss; pass a loss that is curved there, such as 'mse'"
        )
    return H


def _refuse_without_second_of_network(lin: SiteLinearization) -> None:
    zeros = torch.zeros_like(lin.trajectory.states)
    rows = Rows(lin.parameters, lin.trajectory.inputs, zeros)
    known = is_plain(lin.network.module)
    refuse_without_second(f"a run of {lin.attrs['model']}", lin.network, rows, known=known)


def _refuse_without_second(lin: Linearization) -> None:
    known = is_known(lin.recurrence)
    x, previous = lin.trajectory.inputs.flatten(0, 1), lin.trajectory.previous.flatten(0, 1)
    rows = Rows(lin.parameters, x, previous)
    refuse_without_second(f"a step of {lin.attrs['model']}", lin.recurrence, rows, known=known)
    if lin.readout is not None:
        readout = RowReadout(lin.recurrence, lin.readout)
        h = lin.trajectory.states.flatten(0, 1)
        rows = Rows(lin.readout_parameters, h, h)
        refuse_without_second("the readout", readout, rows, known=False)
