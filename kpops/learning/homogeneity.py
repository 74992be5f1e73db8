"""What scaling the weights does: degrees of homogeneity, and the gradient along the weights."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops.arrays import numpy_dtype, to_numpy
from kpops.learning.loss_of_outputs import LossOfOutputs
from kpops.learning.losses import Loss
from kpops.learning.required import labelled, require_linearization
from kpops.linalg.probes import dots
from kpops.linearization import Linearization
from kpops.maturity import experimental
from kpops.operators import TrajectoryOperator
from kpops.precision import in_full_precision


@experimental
@in_full_precision
def homogeneity(lin: Linearization) -> xr.Dataset:
    """Degrees of homogeneity of the outputs in the weights, by Euler's identity.

    Parameters
    ----------
    lin : Linearization
        With a readout, of the outputs; without one, of the states.

    Returns
    -------
    Dataset
        ``degree`` and ``residual`` in all parameters that learn, and ``degree_by_parameter``
        (parameter), ``residual_by_parameter`` (parameter). Names of the readout's own parameters
        begin with ``readout.``. NaN where the outputs are zero.

    Raises
    ------
    TypeError
        If `lin` is no linearization.

    Notes
    -----
    If f(a theta) = a^L f(theta) for all a > 0, the derivative by a at a = 1 is Euler's identity

        <theta, df/dtheta> = L f.

    So with g = C P J theta + J_C theta_C, the derivative of the outputs along the weights,
    ``degree`` is the least-squares L = <f, g> / <f, f> over all valid trials, times and outputs,
    and ``residual`` is ||g - L f|| / ||f||: zero exactly if the identity holds. Both, too, for one
    parameter theta_j at a time, whose g_j add up to g; each costs one product. A deep network
    without biases whose units are linear or rectified has degree 1 in each matrix. A recurrent one
    has none over several steps, as the recurrent weights enter later steps more often.

    Examples
    --------
    >>> import torch, kpops
    >>> relu = torch.nn.RNN(3, 8, 2, nonlinearity="relu", bias=False, batch_first=True)
    >>> readout = torch.nn.Linear(8, 2, bias=False)
    >>> lin = kpops.linearize(relu, torch.randn(5, 1, 3), readout=readout)
    >>> round(float(kpops.training.homogeneity(lin).degree), 4)
    3.0
    """
    require_linearization(lin)
    derivative = lin.sensitivity if lin.readout is None else lin.C @ lin.sensitivity
    changes = _along_each(derivative, lin.parameters)
    if lin.readout is not None and lin.J_C is not None:
        changes += _along_each(lin.J_C, lin.readout_parameters)
    of = lin.states if lin.readout is None else lin.outputs
    f = torch.tensor(of.values, device=lin.device).flatten()
    g = torch.cat(changes).flatten(1)
    g = torch.cat([g, g.sum(0, keepdim=True)])
    whole = dots(f[None], f[None])
    degree = dots(g, f.expand_as(g)) / whole
    rest = (g.double() - degree[:, None] * f.double()).norm(dim=1) / whole.sqrt()
    dtype = numpy_dtype(lin.dtype)
    degrees, rests = (to_numpy(t).astype(dtype) for t in (degree, rest))
    text, of_rest = "degree of homogeneity", "relative residual of Euler's identity"
    return xr.Dataset(
        {
            "degree": labelled((), degrees[-1], text),
            "residual": labelled((), rests[-1], of_rest),
            "degree_by_parameter": labelled("parameter", degrees[:-1], text),
            "residual_by_parameter": labelled("parameter", rests[:-1], of_rest),
        },
        {"parameter": labelled("parameter", _names(lin), "parameter")},
        lin.attrs,
    )


@in_full_precision
def naive_loss_minimization(
    lin: Linearization, targets: Any, loss: Loss = "cross_entropy", *, loss_mask: Any = None
) -> xr.Dataset:
    """Cosine of a step of gradient descent with the weights: how far it merely scales the outputs.

    Parameters
    ----------
    lin, targets, loss, loss_mask
        As for :func:`kpops.gradient_flow`.

    Returns
    -------
    Dataset
        ``loss``; ``cosine`` of minus the gradient by all parameters that learn, those of the
        readout included, with the weights; ``cosine_by_parameter`` (parameter);
        ``gradient_norm`` and ``weight_norm`` (parameter). Names of the readout's own parameters
        begin with ``readout.``. Cosines with zero vectors are NaN.

    Raises
    ------
    ValueError, TypeError
        As for :func:`kpops.gradient_flow`.

    Notes
    -----
    In a network that is homogeneous of degree L, theta -> a theta multiplies the logits by a^L: no
    prediction changes, but where all samples are classified correctly, the cross entropy falls.
    Prieto, Barsbey, Mediano and Birdal (ICLR 2025, Grokking at the edge of numerical stability,
    arXiv 2501.04697) call the direction of theta that of naive loss minimisation. They find that
    the gradient turns to it after overfitting, which delays generalisation until the softmax
    collapses (:func:`kpops.training.softmax_collapse`). The component is known: by Euler's identity

        -<theta, dL/dtheta> = -L <f, dL/df>,

    and ``cosine`` is the left side over ||theta|| ||dL/dtheta||. It is negative while the outputs
    are to shrink. A step orthogonal to theta has cosine 0.

    Examples
    --------
    >>> import torch, kpops
    >>> _ = torch.manual_seed(0)
    >>> network = kpops.Network(torch.nn.GRU(3, 8), torch.nn.Linear(8, 4))
    >>> lin = kpops.linearize(network, torch.randn(5, 10, 3))
    >>> along = kpops.training.naive_loss_minimization(lin, torch.ones(5, 10, dtype=torch.int64))
    >>> bool(abs(along.cosine) < 1)
    True
    """
    require_linearization(lin)
    value, of_outputs = LossOfOutputs.read(lin, targets, loss, loss_mask).gradient()
    error = of_outputs if lin.readout is None else lin.C.apply_adjoint(of_outputs)
    parts = [(lin.sensitivity.apply_adjoint(error), lin.parameters)]
    if lin.readout is not None and lin.J_C is not None:
        parts.append((lin.J_C.apply_adjoint(of_outputs), lin.readout_parameters))
    pairs = [
        (gradient.double(), parameter.detach().flatten().double())
        for whole, parameters in parts
        for gradient, parameter in zip(
            whole[0].split([p.numel() for p in parameters.values()]),
            parameters.values(),
            strict=True,
        )
    ]
    inner = torch.stack([torch.stack([-(g @ w), g @ g, w @ w]) for g, w in pairs])
    inner = torch.cat([inner, inner.sum(0, keepdim=True)])
    cosine = (inner[:, 0] / (inner[:, 1] * inner[:, 2]).sqrt()).clamp(-1, 1)
    dtype = numpy_dtype(lin.dtype)
    cosines, gradients, weights = (
        to_numpy(t).astype(dtype) for t in (cosine, inner[:-1, 1].sqrt(), inner[:-1, 2].sqrt())
    )
    text = "cosine of a gradient step with the weights"
    return xr.Dataset(
        {
            "loss": labelled((), to_numpy(value), "loss"),
            "cosine": labelled((), cosines[-1], text),
            "cosine_by_parameter": labelled("parameter", cosines[:-1], text),
            "gradient_norm": labelled("parameter", gradients, "length of the gradient"),
            "weight_norm": labelled("parameter", weights, "length of the weights"),
        },
        {"parameter": labelled("parameter", _names(lin), "parameter")},
        {
            **lin.attrs,
            "configuration": json.dumps(
                {
                    "loss": loss if isinstance(loss, str) else "callable",
                    "loss_mask": None if loss_mask is None else "given",
                }
            ),
        },
    )


def _along_each(derivative: TrajectoryOperator, parameters: dict[str, Tensor]) -> list[Tensor]:
    """The derivative applied to the weights of one parameter at a time, the others zero."""
    changes, start = [], 0
    for parameter in parameters.values():
        along = parameter.new_zeros(1, derivative.shape[1])
        along[0, start : start + parameter.numel()] = parameter.detach().flatten()
        start += parameter.numel()
        changes.append(derivative.apply(along))
    return changes


def _names(lin: Linearization) -> np.ndarray:
    own = [f"readout.{name}" for name in lin.readout_parameters]
    return np.array([*lin.parameters, *own], dtype=object)
