"""Gauss-Newton: steps that solve the linearised least-squares problem, with damping."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kpops import work
from kpops.learning.rules.feedback import error_space
from kpops.learning.rules.through_time import gradient_descent, unscaled
from kpops.linalg import conjugate_gradients
from kpops.linalg.vectors import VectorSpace
from kpops.linearization import Linearization
from kpops.operators import LowRank, TrajectoryOperator
from kpops.operators.shapes import InDomain
from kpops.scalars import check_real

_EXACT = 2**26
"""Numbers of a matrix that is decomposed as a whole, where its smaller side is below _SIDE."""
_SIDE = 2**11
_ITERATIONS = 2000
_ACCURACY = 1e-3
"""What rounding may change of the exact solution, relative to the largest gain."""


class DampedInverse(TrajectoryOperator):
    """(A + damping)^-1 of a positive operator, by conjugate gradients to a relative residual.

    Warns where they do not reach `tol`, with the residual reached. ``residual`` is the largest one
    so far.
    """

    is_composed = True

    def __init__(self, A: TrajectoryOperator, damping: float, tol: float) -> None:
        symbol = f"({A.symbol} + {damping:.3g})^-1"
        super().__init__(
            A.domain, A.domain, symbol=symbol, self_adjoint=True, positive=True, **A.alike()
        )
        self.A, self.damping, self.tol = A, damping, tol
        self.block_diagonal_dims = A.block_diagonal_dims
        self.residual = 0.0

    def _apply(self, q: InDomain) -> InDomain:
        def act(rows: Tensor) -> Tensor:
            return self.A.apply(rows.view_as(q)).flatten(1) + self.damping * rows

        space = VectorSpace.of(self, self.domain)
        x, residual = conjugate_gradients.solve(act, q.flatten(1), space, self.tol, _ITERATIONS)
        self.residual = max(self.residual, residual)
        if residual > self.tol:
            work.warn_unconverged(
                f"{self!r} was solved to a relative residual of {residual:.2g}, not {self.tol:.2g}:"
                " use a larger damping, or linearise with dtype=torch.float64"
            )
        return x.view_as(q)


def gauss_newton(
    lin: Linearization, *, damping: float, error: str = "state", tol: float | None = None
) -> TrajectoryOperator:
    """P J (J* P* P J + l)^-1 J* P*, or with C for errors of outputs; l is `damping`.

    By one singular value decomposition where the matrix of the smallest equivalent factor fits,
    else by conjugate gradients to the relative residual `tol`.
    """
    check_real("damping", damping)
    if not 0 < damping < float("inf"):
        raise ValueError(f"damping={damping}: choose a positive number")
    error_space(lin, error)
    tol = torch.finfo(lin.dtype).eps ** (2 / 3) if tol is None else tol
    check_real("tol", tol)
    if not 0 < tol < 1:
        raise ValueError(f"tol={tol}: choose a relative residual between 0 and 1")
    return (_of_states if error == "state" else _of_outputs)(lin, float(damping), float(tol))


# R depends on Phi = P J J* P* alone: with any W of few columns and W W* = Phi it is
# W (W* W + l)^-1 W* = Phi (Phi + l)^-1, and with W = U s V* its gains are s^2 / (s^2 + l). Of
# outputs, D = [C W, J_C] = U s V*, and R = [W, 0] V s / (s^2 + l) U*.


def _of_states(lin: Linearization, damping: float, tol: float) -> TrajectoryOperator:
    W = gradient_descent(lin).root
    assert W is not None
    if not _fits(W):
        return W @ DampedInverse(W.H @ W, damping, tol) @ W.H
    U, s, _ = _decomposed(W.dense_tensor(), damping)
    return LowRank(
        U.mT.reshape(-1, *lin.space.shape),
        s**2 / (s**2 + damping),
        None,
        lin.space,
        lin.space,
        symbol=f"Gauss-Newton({damping:.3g})",
        attrs=lin.attrs,
    )


def _of_outputs(lin: Linearization, damping: float, tol: float) -> TrajectoryOperator:
    flow = gradient_descent(lin)
    W = flow.root
    assert W is not None
    if not _fits(W):
        return flow @ lin.C.H @ DampedInverse(unscaled(lin, lin.output_ntk), damping, tol)
    states, D = W.dense_tensor(), (lin.C @ W).dense_tensor()
    own = lin.J_C
    if own is not None:
        D = torch.cat([D, own.dense_tensor()], 1)
    U, s, right = _decomposed(D, damping)
    moved = states @ right[:, : states.shape[1]].mT
    return LowRank(
        moved.mT.reshape(-1, *lin.space.shape),
        s / (s**2 + damping),
        U.mT.reshape(-1, *lin.output_space.shape),
        lin.output_space,
        lin.space,
        symbol=f"Gauss-Newton({damping:.3g})",
        attrs=lin.attrs,
    )


def _fits(W: TrajectoryOperator) -> bool:
    return W.shape[0] * W.shape[1] <= _EXACT and min(W.shape) <= _SIDE


def _decomposed(D: Tensor, damping: float) -> Any:
    """Singular triplets; refuses a damping that rounding hides.

    Singular values are known to their rounding r, and a gain s^2 / (s^2 + l) changes by less than
    r / sqrt(l), relative to the largest.
    """
    U, s, right = torch.linalg.svd(D, full_matrices=False)
    rounding = torch.finfo(D.dtype).eps * max(D.shape) ** 0.5 * float(s[0])
    least = (rounding / _ACCURACY) ** 2
    if damping < least:
        raise ValueError(
            f"damping={damping:.3g} is hidden by rounding in {D.dtype}: choose {least:.2g} or more"
            + ("" if D.dtype == torch.float64 else ", or linearise with dtype=torch.float64")
        )
    return U, s, right
