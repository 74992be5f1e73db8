"""The verbs every engine speaks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from kpops.engines.gated.unit_blocks import UnitBlocks
from kpops.engines.rowwise import Rowwise
from kpops.engines.trajectory import Trajectory
from kpops.models.recurrence import Recurrence


class Engine(ABC):
    """The actions of the linearised recurrence on blocks of perturbations.

    All blocks are ``(block, trial, time, unit)`` or ``(block, parameter)``. An engine computes two
    recursions through time, and inherits the actions of single steps:

    ================== =========================================================== ==========
    verb               action                                                      operator
    ================== =========================================================== ==========
    propagate          v[t] = q[t] + A[t] v[t-1]                                   P
    backpropagate      a[t] = e[t] + A[t+1]^T a[t+1]                               P*
    difference         v[t] - A[t] v[t-1]                                          P^-1
    difference_adjoint a[t] - A[t+1]^T a[t+1]                                      P^-*
    parameter_jvp      df/dtheta dtheta at every step                              J
    parameter_vjp      sum over trials and steps of (df/dtheta)^T q                J*
    ================== =========================================================== ==========

    On masked trials each action is restricted to the valid steps, on both sides.
    """

    name: ClassVar[str]
    variants: ClassVar[dict[str, tuple[dict[str, Any], ...]]] = {"auto": ({},)}
    """What may be chosen beside the engine: ``gates=`` of the user, and the options that it stands
    for, best first, with which the engine is made and its bytes are counted."""
    keeps: ClassVar[bool] = False
    """Whether the engine keeps more than the trajectory."""

    @property
    def remark(self) -> str:
        """What else the repr should say of how products are computed."""
        return ""

    def __init__(
        self,
        recurrence: Recurrence,
        parameters: dict[str, Tensor],
        trajectory: Trajectory,
    ) -> None:
        self.recurrence = recurrence
        self.parameters = parameters
        self.trajectory = trajectory

    @staticmethod
    def refuses(recurrence: Recurrence, device: torch.device) -> str | None:
        """Why this engine cannot linearise the recurrence on the device, or None."""
        return None

    @staticmethod
    @abstractmethod
    def bytes_needed(
        recurrence: Recurrence,
        names: Sequence[str],
        trajectory: Trajectory,
        *,
        exact: bool = False,
    ) -> int:
        """Bytes the engine keeps beside the trajectory, for products with J of those `names`.

        At most, and at no cost; or, if `exact`, where finding out costs about a product.
        """

    @staticmethod
    def bytes_of_weights(recurrence: Recurrence) -> int:
        """Bytes of weights that the engine keeps in an order of its own."""
        return 0

    @abstractmethod
    def _propagate(self, q: Tensor) -> Tensor: ...

    @abstractmethod
    def _backpropagate(self, a: Tensor) -> Tensor: ...

    @abstractmethod
    def _jvp_steps(self, v: Tensor) -> Tensor:
        """A[t] v[t] for every step; the caller has shifted v."""

    @abstractmethod
    def _vjp_steps(self, a: Tensor) -> Tensor:
        """A[t]^T a[t] for every step."""

    @cached_property
    def rows(self) -> Rowwise:
        """The step at every (trial, time) of the trajectory."""
        x, h = self.trajectory.inputs.flatten(0, 1), self.trajectory.previous.flatten(0, 1)
        return Rowwise(self.recurrence.step, self.parameters, x, h, keep=self.keeps)

    def step_jacobians(self, t: int) -> Tensor:
        """A of the step at position t, (trial, unit, unit)."""
        x, h = self.trajectory.inputs[:, t], self.trajectory.previous[:, t]
        return Rowwise(self.recurrence.step, self.parameters, x, h).state_jacobians()

    def propagate(self, q: Tensor) -> Tensor:
        """P q."""
        return self._restricted(self._propagate, q)

    def backpropagate(self, a: Tensor) -> Tensor:
        """P* a."""
        return self._restricted(self._backpropagate, a)

    def difference(self, v: Tensor) -> Tensor:
        """P^-1 v: what is left of v when each step's past is propagated away."""
        return self._restricted(lambda u: u - self._jvp_steps(_shift(u, 1)), v)

    def difference_adjoint(self, a: Tensor) -> Tensor:
        """P^-* a."""
        return self._restricted(lambda u: u - _shift(self._vjp_steps(u), -1), a)

    def parameter_jvp(self, dtheta: Tensor, names: Sequence[str]) -> Tensor:
        """J dtheta, for the parameters `names`."""
        tangents = self.rows.parameter_jvp(dtheta, names)
        return self.trajectory.restrict(self._unflatten(tangents))

    def parameter_vjp(self, q: Tensor, names: Sequence[str]) -> Tensor:
        """J* q, for the parameters `names`."""
        return self.rows.parameter_vjp(self.trajectory.restrict(q).flatten(1, 2), names)

    def parameter_gram(self, q: Tensor, names: Sequence[str]) -> Tensor:
        """J J* q. An engine that knows the structure of K may do better."""
        return self.parameter_jvp(self.parameter_vjp(q, names), names)

    def flow(self, q: Tensor, names: Sequence[str]) -> Tensor:
        """P J J* P* q, for the parameters `names`."""
        return self.propagate(self.parameter_gram(self.backpropagate(q), names))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__}  # at once: other threads may add to it while it is pickled

    def factor_size(self, names: Sequence[str]) -> int | None:
        """Number of columns of a factor F with K = F F* that is thinner than J; None without."""
        return None

    def factor_jvp(self, w: Tensor, names: Sequence[str]) -> Tensor:
        """F w; (block, coefficient) to (block, trial, time, unit)."""
        raise NotImplementedError

    def factor_vjp(self, q: Tensor, names: Sequence[str]) -> Tensor:
        """F* q."""
        raise NotImplementedError

    def unit_blocks(self, names: Sequence[str]) -> UnitBlocks | None:
        """K unit by unit, where it is known to couple no two of them; else None."""
        return None

    def _restricted(self, action: Callable[[Tensor], Tensor], q: Tensor) -> Tensor:
        restrict = self.trajectory.restrict
        return restrict(action(restrict(q)))

    def _unflatten(self, rows: Tensor) -> Tensor:
        return rows.unflatten(1, self.trajectory.states.shape[:2])


def _shift(v: Tensor, steps: int) -> Tensor:
    """Move v (block, trial, time, unit) by one step through time; zero enters at the end."""
    shifted = torch.zeros_like(v)
    if steps > 0:
        shifted[:, :, 1:] = v[:, :, :-1]
    else:
        shifted[:, :, :-1] = v[:, :, 1:]
    return shifted
