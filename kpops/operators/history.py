"""What is left of P in learning rules that shorten the path back through time."""

from __future__ import annotations

import torch

from kpops.engines.base import Engine
from kpops.labels import Space
from kpops.operators.propagator import EngineOperator
from kpops.operators.shapes import States


class TruncatedPropagator(EngineOperator):
    """P_k: P with a history of k steps; its adjoint is truncated backpropagation through time.

    With N = I - P^-1, which takes every state one step further, ``P = I + N + N^2 + ...`` and
    ``P_k = I + N + ... + N^(k-1)``: an error reaches the k - 1 steps before its own. A matvec takes
    k - 1 matvecs of P^-1.

    Parameters
    ----------
    engine, space
        As for :class:`Propagator`; the space has the dimension time.
    steps : int
        k, at least 1; P_1 is the identity.
    detached : bool
        Cut the trajectory into pieces of k steps instead, as code that detaches the state every k
        steps does: an error reaches the beginning of its piece.
    """

    def __init__(self, engine: Engine, space: Space, steps: int, *, detached: bool = False) -> None:
        super().__init__(engine, space, space, f"P_{steps}{' detached' * detached}")
        self.block_diagonal_dims = ("trial",)
        self.steps = steps
        self.detached = detached

    def _apply(self, q: States) -> States:
        v = q = self.engine.trajectory.restrict(q)
        for _ in range(self.steps - 1):
            v = q + self._kept(v - self.engine.difference(v))
        return v.clone() if v is q else v

    def _apply_adjoint(self, q: States) -> States:
        a = q = self.engine.trajectory.restrict(q)
        for _ in range(self.steps - 1):
            kept = self._kept(a)
            a = q + kept - self.engine.difference_adjoint(kept)
        return a.clone() if a is q else a

    def _kept(self, v: States) -> States:
        """Zero where a piece begins, which nothing enters."""
        if not self.detached:
            return v
        axis = 1 + self.domain.dims.index("time")
        starts = torch.arange(0, v.shape[axis], self.steps, device=v.device)
        return v.index_fill(axis, starts, 0)


class LeakPropagator(EngineOperator):
    """P with the leak alone in place of the state Jacobian: ``(Pq)[t] = q[t] + leak (Pq)[t-1]``.

    Its adjoint sums eligibility traces: what an error finds of earlier steps has decayed by the
    leak of the units, and nothing has passed the recurrent weights.

    Parameters
    ----------
    engine, space
        As for :class:`TruncatedPropagator`.
    leak : float
        What a unit keeps from one step to the next, from 0 to 1.
    """

    def __init__(self, engine: Engine, space: Space, leak: float) -> None:
        super().__init__(engine, space, space, "P_leak")
        self.block_diagonal_dims = tuple(d for d in space.dims if d != "time")
        step = torch.arange(space.sizes["time"], dtype=self.torch_dtype, device=self.device)
        self.weights = (leak ** (step[:, None] - step).clamp_min(0)).tril()

    def _apply(self, q: States) -> States:
        return self._through(q, self.weights.mT)

    def _apply_adjoint(self, q: States) -> States:
        return self._through(q, self.weights)

    def _through(self, q: States, weights: torch.Tensor) -> States:
        restrict, axis = self.engine.trajectory.restrict, 1 + self.domain.dims.index("time")
        return restrict((restrict(q).movedim(axis, -1) @ weights).movedim(-1, axis)).contiguous()
