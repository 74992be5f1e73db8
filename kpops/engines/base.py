"""The verbs every engine speaks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from kpops.engines import cuda_graph
from kpops.engines.blocks import Blocks
from kpops.engines.differential import plain_gradients
from kpops.engines.rowwise import Rowwise
from kpops.engines.trajectory import Block, Trajectory
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

    On masked trials each action is restricted to the valid steps, on both sides. An engine is made
    of a snapshot of the model, the parameters that learn, and the trajectory to linearise at.
    """

    name: ClassVar[str]
    serves: ClassVar[type[Recurrence]] = Recurrence
    """The recurrences that the engine can linearise."""
    known_as: ClassVar[str] = "as a recurrence"
    """What these are known to be."""
    variants: ClassVar[dict[str, tuple[dict[str, Any], ...]]] = {"auto": ({},)}
    """The user's choices for ``gates=``, and for each the options, best first, with which the
    engine is made and its bytes are counted."""
    keeps: ClassVar[bool] = False
    """Whether the engine keeps the maps J and J*."""
    recomputed: ClassVar[tuple[str, ...]] = ()
    """Attributes that are cheaper to recompute than to pickle."""
    can_be_recorded = True
    """Whether the loops over time may be recorded on a GPU."""

    @property
    def remark(self) -> str:
        """What else the repr says about how matvecs are computed."""
        failure = self._recorder.failure
        return "" if failure is None else f"loops over time are not recorded: {failure}"

    def __init__(
        self, recurrence: Recurrence, parameters: dict[str, Tensor], trajectory: Trajectory
    ) -> None:
        self.recurrence = recurrence
        self.parameters = parameters
        self.trajectory = trajectory
        self._recorder = cuda_graph.Recorder()

    @classmethod
    def refuses(cls, recurrence: Recurrence, device: torch.device) -> str | None:
        """Why this engine cannot linearise the recurrence on the device, or None."""
        if isinstance(recurrence, cls.serves):
            return None
        return (
            f"{type(recurrence.module).__name__} is not known {cls.known_as}: register a "
            f"kpops.models.{cls.serves.__name__} for it"
        )

    @staticmethod
    @abstractmethod
    def bytes_needed(
        recurrence: Recurrence, names: Sequence[str], trajectory: Trajectory, *, exact: bool = False
    ) -> int:
        """Bytes kept beside the trajectory, for matvecs with J of the parameters `names`.

        An upper bound, at no cost; or, if `exact`, the number, at the cost of about a matvec.
        """

    @staticmethod
    def bytes_of_copies(recurrence: Recurrence, trajectory: Trajectory) -> int:
        """Bytes of recordings, or of weights in an order of the engine's own, at most."""
        states = trajectory.states
        return cuda_graph.recorded_bytes(states) if states.device.type in cuda_graph.RECORD else 0

    @abstractmethod
    def _recur(self, q: Block, *, backwards: bool) -> Block:
        """P q, or P* q if `backwards`."""

    @abstractmethod
    def _jvp_steps(self, v: Block) -> Block:
        """A[t] v[t] for every step; the caller has shifted v."""

    @abstractmethod
    def _vjp_steps(self, a: Block) -> Block:
        """A[t]^T a[t] for every step."""

    @cached_property
    def rows(self) -> Rowwise:
        """The step at every (trial, time) of the trajectory."""
        x, h = self.trajectory.inputs.flatten(0, 1), self.trajectory.previous.flatten(0, 1)
        return Rowwise(self.recurrence.step, self.parameters, x, h, keep=self.keeps)

    def step_jacobians(self, t: int) -> Float[Tensor, "trial unit unit"]:
        """A of the step at position t."""
        x, h = self.trajectory.inputs[:, t], self.trajectory.previous[:, t]
        return Rowwise(self.recurrence.step, self.parameters, x, h).state_jacobians()

    def propagate(self, q: Block) -> Block:
        """P q."""
        return self._through_time(q, backwards=False)

    def backpropagate(self, a: Block) -> Block:
        """P* a."""
        return self._through_time(a, backwards=True)

    def difference(self, v: Block) -> Block:
        """P^-1 v: what is left of v when each step's past is propagated away."""
        return self._restricted(lambda u: u - self._jvp_steps(F.pad(u, (0, 0, 1, -1))), v)

    def difference_adjoint(self, a: Block) -> Block:
        """P^-* a."""
        return self._restricted(lambda u: u - F.pad(self._vjp_steps(u), (0, 0, -1, 1)), a)

    def parameter_jvp(
        self, dtheta: Float[Tensor, "block parameter"], names: Sequence[str]
    ) -> Block:
        """J dtheta, for the parameters `names`."""
        return self.trajectory.restrict_(self._unflatten(self.rows.parameter_jvp(dtheta, names)))

    def parameter_vjp(self, q: Block, names: Sequence[str]) -> Float[Tensor, "block parameter"]:
        """J* q, for the parameters `names`."""
        return self.rows.parameter_vjp(self.trajectory.restrict(q).flatten(1, 2), names)

    def parameter_gram(self, q: Block, names: Sequence[str]) -> Block:
        """J J* q. An engine that knows the structure of K may do better."""
        return self.parameter_jvp(self.parameter_vjp(q, names), names)

    def second_order(
        self,
        adjoint: Float[Tensor, "trial time unit"],
        dtheta: Float[Tensor, "block parameter"],
        dh: Block,
        names: Sequence[str],
    ) -> tuple[Float[Tensor, "block parameter"], Block]:
        """The second derivative of sum_t a[t] . f(theta, h[t-1]) applied to (dtheta, dh).

        The adjoint a is zero at steps that are not valid.
        """
        c, previous = adjoint.flatten(0, 1), F.pad(dh, (0, 0, 1, -1)).flatten(1, 2)
        by_theta, by_previous = self.rows.second_order(c, dtheta, previous, names)
        return by_theta, F.pad(self._unflatten(by_previous), (0, 0, -1, 1))

    def flow(self, q: Block, names: Sequence[str]) -> Block:
        """P J J* P* q, for the parameters `names`."""
        return self.propagate(self.parameter_gram(self.backpropagate(q), names))

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__}  # at once: other threads may add to it while it is pickled
        return {key: value for key, value in state.items() if key not in self.recomputed}

    def factor_size(self, names: Sequence[str]) -> int | None:
        """Number of columns of a factor F with K = F F* that is thinner than J; None without."""
        return None

    def factor_jvp(self, w: Float[Tensor, "block coefficient"], names: Sequence[str]) -> Block:
        """F w."""
        raise NotImplementedError

    def factor_vjp(self, q: Block, names: Sequence[str]) -> Float[Tensor, "block coefficient"]:
        """F* q."""
        raise NotImplementedError

    def unit_blocks(self, names: Sequence[str]) -> Blocks | None:
        """K unit by unit, where it is known to couple no two of them; else None."""
        return None

    def check_derivatives(self, names: Sequence[str], wrong: str, remedy: str) -> None:
        """Compare A^T, and J* of the parameters `names`, with automatic differentiation.

        Raises
        ------
        ValueError
            If they differ by more than rounding. It says what is `wrong` with the module; ``{}``
            there stands for the kind of recurrence.
        """
        states, rows = self.trajectory.states, self.rows
        q = torch.arange(states.numel()).to(states).cos().view(1, *states.shape)
        learning = {name: rows.parameters[name] for name in names}
        at = rows.function, learning, rows.x, rows.h
        by_state, by_parameter = plain_gradients(*at, q.flatten(0, 2))
        pairs = [(self._vjp_steps(q), {"h": rows.h}, {"h": by_state})]
        if names:
            pairs.append((self.parameter_vjp(q, names), learning, by_parameter))
        for ours, values, gradients in pairs:
            every = ((value, gradients[name]) for name, value in values.items())
            parts = [torch.zeros_like(v) if g is None else g for v, g in every]
            reference = torch.cat([part.flatten() for part in parts])
            gap, size = (ours.flatten() - reference).norm(), reference.norm()
            if not gap <= torch.finfo(ours.dtype).eps ** 0.5 * size:
                wrong = wrong.format(type(self.recurrence).__name__)
                raise ValueError(
                    f"{type(self.recurrence.module).__name__} {wrong} (derivatives differ by "
                    f"{float(gap / size):.2g}): {remedy}"
                )

    def _through_time(self, q: Block, *, backwards: bool, **options: Any) -> Block:
        """The recursion of P or P*, restricted to the valid steps, and recorded on a GPU."""
        name = " ".join(["P*" if backwards else "P", *options])
        act = partial(self._recur, backwards=backwards, **options)
        return self._restricted(partial(self._record, name, act), q)

    def _record(self, name: str, action: cuda_graph.Action, q: Block) -> Block:
        records = self.can_be_recorded and q.device.type in cuda_graph.RECORD
        return self._recorder(name, action, q) if records else action(q)

    def _restricted(self, action: Callable[[Tensor], Tensor], q: Block) -> Block:
        return self.trajectory.restrict_(action(self.trajectory.restrict(q)))

    def _unflatten(self, rows: Float[Tensor, "block row unit"]) -> Block:
        return rows.unflatten(1, self.trajectory.states.shape[:2])
