"""The critical channel: what learning can move at fixed points near a bifurcation."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from kpops.dynamics.resolvent import FixedPointLinearization
from kpops.dynamics.stability import eigenvectors
from kpops.engines.exclusive import exclusive_compute
from kpops.kinds import described
from kpops.linalg.rounding import noise_floor
from kpops.operators.base import TrajectoryOperator
from kpops.operators.low_rank import LowRank
from kpops.precision import in_full_precision


class CriticalChannel(LowRank):
    """The part of P K P* at fixed points that one eigenvalue of each carries.

    Attributes
    ----------
    response : LowRank
        ``r (l J) / (1 - lambda)``, from parameters to states, of which this is the Gram operator;
        its triplets are directions of the states, gains and directions of the parameters.
    eigenvalue : Tensor (trial,)
        lambda of each point.
    whole : TrajectoryOperator
        P K P*, of which this is a part.
    """

    def __init__(
        self, response: LowRank, scale: float, eigenvalue: Tensor, whole: TrajectoryOperator
    ) -> None:
        super().__init__(
            response.left,
            scale * response.values**2,
            None,
            response.codomain,
            response.codomain,
            symbol="P_1 K P_1*",
            attrs=whole.attrs,
        )
        self.response, self.eigenvalue, self.whole = response, eigenvalue, whole

    @cached_property
    def residual(self) -> float:
        """Frobenius norm of the rest, ``|P K P* - P_1 K P_1*|``, relative to that of P K P*.

        By both dense matrices.
        """
        whole = self.whole.dense_tensor()
        rest = whole - self.dense_tensor()
        return float(rest.norm() / whole.norm())


@in_full_precision
@torch.inference_mode(False)
@torch.no_grad()
def critical_channel(lin: Any) -> CriticalChannel:
    r"""Return the part of P K P* at fixed points that the eigenvalue nearest to 1 carries.

    Parameters
    ----------
    lin : Linearization
        At fixed points: what :func:`linearize_at` returns without `n_steps`.

    Returns
    -------
    CriticalChannel
        An operator on (trial, time, unit), with a trial for each point, of rank one for one point.
        ``residual`` is the norm of the rest, relative to the whole; ``response`` the operator from
        parameters to states behind it; ``eigenvalue`` that of each point.

    Raises
    ------
    TypeError
        If `lin` is no linearization at fixed points.
    ValueError
        If the eigenvalue nearest to 1 of a point is complex, or lacks an eigenvector of its own, as
        a repeated one does.

    See Also
    --------
    continuation : Finds the bifurcations.
    learning_rule : Its rule ``"critical channel"`` bounds the step along the channel.

    Notes
    -----
    A fixed point moves with the parameters by (Hazelden and Shea-Brown 2026, arXiv:2605.12763)

    .. math:: \frac{d h^*}{d \theta} = (1 - A)^{-1} J = \sum_i \frac{r_i \, (l_i J)}{1 - \lambda_i}

    where J is df/dtheta, and r_i and l_i are the eigenvectors of A, with l_i . r_i = 1. With P_1 =
    r l / (1 - lambda) of the eigenvalue nearest to 1, the channel is P_1 K P_1*. Near a fold, a
    transcritical point or a pitchfork, lambda = 1 - d with a small d, its one eigenvalue grows as
    1 / d^2, unless l J vanishes in proportion to d, and the residual falls in proportion to d.
    Near a flip or a Neimark-Sacker point no stationary response diverges. Channels of several
    points share the parameters, so that the operator couples the points.

    Examples
    --------
    The point sqrt(mu) of ``h' = (1 + mu) h - h^3`` moves by 1 / (2 sqrt(mu)), and it has no other
    channel:

    >>> import torch, kpops
    >>> class Pitchfork(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.mu = torch.nn.Parameter(torch.tensor(0.01, dtype=torch.float64))
    ...     def forward(self, x, h):
    ...         return (1 + self.mu) * h - h**3
    >>> point = torch.tensor([[0.1]], dtype=torch.float64)
    >>> channel = kpops.critical_channel(kpops.linearize_at(Pitchfork(), point))
    >>> channel.to_dense().round(9), channel.residual < 1e-12
    (array([[25.]]), True)
    """
    if not isinstance(lin, FixedPointLinearization):
        raise TypeError(
            f"lin is {described(lin)}: pass a linearization at fixed points, "
            "kpops.linearize_at(model, points) without n_steps"
        )
    lin.space.parts.refuse_spread(lin.P)
    with exclusive_compute(lin.device):
        A = lin.engine.step_jacobians(0)
        values = torch.linalg.eigvals(A)
    value = values.gather(1, (1 - values).abs().argmin(1, keepdim=True))[:, 0]
    vectors = [eigenvectors(*pair) for pair in zip(A, value.real.tolist(), strict=True)]
    left, r = (torch.stack(part) for part in zip(*vectors, strict=True))
    _refuse(lin, A, value, left)
    pulled = torch.zeros(len(A), *lin.space.shape).to(A)
    rows = torch.arange(len(A), device=A.device)
    pulled[rows, rows, 0] = left
    # J is that of rates where rates force a neural ODE, and P is its counterpart.
    directions = lin.forcing_step * lin.J.apply_adjoint(pulled)
    gain = 1 / (1 - value.real)
    U, s, towards = torch.linalg.svd(gain[:, None] * directions, full_matrices=False)
    states = torch.zeros(len(s), *lin.space.shape).to(A)
    states[:, :, 0] = U.mT[:, :, None] * r
    response = LowRank(
        states, s, towards, lin.parameter_space, lin.space, symbol="P_1 J", attrs=lin.attrs
    )
    scale = 1.0 if lin.measure == "sum" else 1 / len(A)
    return CriticalChannel(response, scale, value.real, lin.flow)


def _refuse(lin: FixedPointLinearization, A: Tensor, value: Tensor, left: Tensor) -> None:
    rounding = noise_floor(A.dtype)
    floor = rounding**0.5
    turning, missing = value.imag.abs() > floor, ~(left.norm(dim=1) < 1 / floor)
    if A.shape[1] > 1:  # several eigenvectors of one eigenvalue, of which none is its own
        shift = value.real[:, None, None] * torch.eye(A.shape[1]).to(A)
        second = torch.linalg.svdvals(A - shift)[:, -2]
        missing |= second <= rounding * torch.linalg.matrix_norm(A).clamp_min(1)
    for wrong, why in (
        (turning, "the eigenvalue nearest to 1 is complex, one of a pair that shares a plane"),
        (missing, "the eigenvalue nearest to 1 lacks an eigenvector of its own"),
    ):
        if wrong.any():
            i = int(wrong.nonzero()[0, 0])
            raise ValueError(
                f"point {lin.space.coords['trial'].values[i]} (eigenvalue {complex(value[i]):.4g}) "
                f"has no critical channel: {why}; leave the point out"
            )
