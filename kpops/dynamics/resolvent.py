"""P = (I - A)^-1, the propagator of a fixed point, and the linearization that has it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial

import torch
from torch import Tensor

from kpops.engines.base import Engine
from kpops.engines.differential import Differential
from kpops.engines.exclusive import exclusive_compute
from kpops.engines.rowwise import TEMPORARIES, on_each
from kpops.engines.threads import enough_for
from kpops.labels import Space
from kpops.linalg.exact import DENSE_ENTRIES, is_cheap
from kpops.linalg.gmres import MOST_MATVECS, NUMBERS_PER_ENTRY, gmres
from kpops.linalg.rounding import noise_floor
from kpops.linearization import Linearization
from kpops.operators.base import TrajectoryOperator
from kpops.operators.propagator import EngineOperator
from kpops.operators.shapes import States


class Resolvent(EngineOperator):
    """P = (I - A)^-1 at fixed points: a constant forcing q moves them by v, with ``v = A v + q``.

    Up to 1024 units, and 2^26 numbers in the matrices of all points, they are factored. Beyond,
    GMRES solves for each vector and point, to a backward error of 16 units of rounding.

    Parameters
    ----------
    engine : Engine
        That of one step, from each point.
    space : Space
        (trial, time, unit), with a trial for each point.

    Raises
    ------
    ValueError
        If I - A is singular to rounding; also later, if GMRES does not converge.
    """

    def __init__(self, engine: Engine, space: Space) -> None:
        super().__init__(engine, space, space, "P")
        self.block_diagonal_dims = ("trial", "time")
        self.factors: tuple[Tensor, Tensor] | None = None
        n_units = space.shape[-1]
        if is_cheap(n_units) and space.size * n_units <= DENSE_ENTRIES:
            A = engine.step_jacobians(0)
            matrices = torch.eye(len(A[0])).to(A) - A
            growth = torch.linalg.cond(matrices, p=1)
            self.factors = torch.linalg.lu_factor_ex(matrices)[:2]
        else:  # any vector has a part in the direction that grows
            q = torch.arange(space.size).to(engine.trajectory.states).cos().view(1, *space.shape)
            growth = (self._apply(q).norm(dim=-1) / q.norm(dim=-1))[0, :, 0]
        singular = ~(growth < 1 / noise_floor(growth.dtype))
        if singular.any():
            raise ValueError(
                f"A has an eigenvalue of 1, to rounding, at {self._point(singular)}, whose "
                "response is infinite: leave the point out"
            )

    def _apply(self, q: States) -> States:
        return self._solve(q, adjoint=False)

    def _apply_adjoint(self, q: States) -> States:
        return self._solve(q, adjoint=True)

    def _solve(self, q: States, *, adjoint: bool) -> States:
        if self.factors is not None:
            columns = q[:, :, 0].permute(1, 2, 0)  # a matrix for each point
            solved = torch.linalg.lu_solve(*self.factors, columns, adjoint=adjoint)
            return solved.permute(2, 0, 1)[:, :, None].contiguous()
        recurrence, at = self.engine.recurrence, self.engine.trajectory
        x, h = at.inputs[:, 0], at.previous[:, 0]
        with enough_for(len(q) * recurrence.flops(len(h))):
            # One run of the model serves all matvecs of the solver.
            A = Differential(partial(recurrence.step, self.engine.parameters, x), h)
            act = A.vjp if adjoint else A.jvp
            tol = 16 * torch.finfo(q.dtype).eps
            v, error = gmres(lambda u: u - on_each(act, u), q[:, :, 0], tol)
        failed = ~(error <= tol).all(0)
        if failed.any():
            raise ValueError(
                f"GMRES has not solved (I - A) v = q at {self._point(failed)} in {MOST_MATVECS} "
                f"matvecs (backward error {float(error.max()):.2g}, wanted {tol:.2g}): A has many "
                "eigenvalues near 1 or outside the unit circle there; leave the point out"
            )
        return v[:, :, None]

    def _point(self, chosen: Tensor) -> str:
        return f"point {self.domain.coords['trial'].values[int(chosen.nonzero()[0, 0])]}"

    def _numbers_per_vector(self) -> int:
        held = 3 if self.factors is not None else NUMBERS_PER_ENTRY + TEMPORARIES
        return held * self.domain.size


class InverseResolvent(EngineOperator):
    """P^-1 = I - A at fixed points. Parameters as for :class:`Resolvent`."""

    def __init__(self, engine: Engine, space: Space) -> None:
        super().__init__(engine, space, space, "P^-1")
        self.block_diagonal_dims = ("trial", "time")

    def _apply(self, q: States) -> States:
        return q - self.engine.rows.state_jvp(q.flatten(1, 2)).view_as(q)

    def _apply_adjoint(self, q: States) -> States:
        return q - self.engine.rows.state_vjp(q.flatten(1, 2)).view_as(q)


class FixedPointLinearization(Linearization):
    """A model linearised at fixed points, where P is the limit of ever more steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        h, states = self.trajectory.previous[:, 0], self.trajectory.states[:, 0]
        speed = (states - h).norm(dim=1)
        # At this distance from a fixed point, half of the digits of the response may be wrong.
        bound = torch.finfo(h.dtype).eps ** 0.5 * (h.shape[1] ** 0.5 + h.norm(dim=1))
        if (speed > bound).any():
            worst = int((speed / bound).argmax())
            raise ValueError(
                f"point {self.space.coords['trial'].values[worst]} moves by "
                f"{float(speed[worst]):.2g} in a step: pass fixed points, for example those of "
                "kind 'fixed'"
            )
        self.P  # noqa: B018, refuses points without a response

    @cached_property
    def P(self) -> TrajectoryOperator:
        """P = (I - A)^-1, how a constant forcing moves the points."""
        with exclusive_compute(self.device):
            return self._rescaled(Resolvent(self.engine, self.space), 1)

    @cached_property
    def P_inv(self) -> TrajectoryOperator:
        """P^-1 = I - A, its inverse."""
        return self._rescaled(InverseResolvent(self.engine, self.space), -1)

    def second_order(
        self, adjoint: Tensor, dtheta: Tensor, dh: Tensor, names: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """As of :class:`Linearization`; the step starts from the state that it changes."""
        rows = adjoint.flatten(0, 1), dtheta, dh.flatten(1, 2)
        by_theta, by_h = self.engine.rows.second_order(*rows, names)
        return by_theta, by_h.view_as(dh)
