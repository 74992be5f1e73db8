"""What :func:`kpops.linearize` returns: a trajectory and the operators at it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
import xarray as xr
from torch import Tensor

from kpops.arrays import to_numpy
from kpops.derivatives import is_declared
from kpops.engines.classification import classify
from kpops.engines.exclusive import exclusive_compute
from kpops.engines.rowwise import RowFunction, Rowwise
from kpops.engines.select import ENGINES, choose_engine, memory_estimate, memory_of_many
from kpops.engines.trajectory import Trajectory
from kpops.kinds import Shown
from kpops.labels import Space, parameter_space
from kpops.models.readout import RowReadout
from kpops.models.recurrence import Recurrence
from kpops.operators import (
    FlowOperator,
    InversePropagator,
    ParameterJacobian,
    ParameterOperator,
    Propagator,
    ReadoutJacobian,
    ReadoutParameterJacobian,
    TrajectoryOperator,
)
from kpops.precision import remark as precision_remark
from kpops.read_inputs import Reading
from kpops.scalars import check_count


@dataclass(eq=False)
class Linearization(Shown):
    """A model linearised about its trajectories; made by :func:`linearize`.

    Attributes
    ----------
    recurrence, readout : Recurrence, and callable or None
        Snapshots of the model and of the readout.
    parameters, readout_parameters : dict of str to Tensor
        Their parameters that learn, in the order of flat parameter vectors.
    trajectory : Trajectory
        Inputs and states as tensors.
    space : Space
        The trajectory space (trial, time, unit).
    reading : Reading
        How the inputs, and all arrays without labels, were read.
    measure : {"sum", "mean"}
        The measure of trials and time in K.
    engine_asked, gates_asked, remark : str
        `engine` and `gates` of :func:`linearize`; how a model was taken apart.
    """

    recurrence: Recurrence
    parameters: dict[str, Tensor]
    trajectory: Trajectory
    space: Space
    reading: Reading
    readout: Callable[[Tensor], Tensor] | None
    readout_parameters: dict[str, Tensor]
    measure: str
    engine_asked: str
    gates_asked: str
    remark: str = ""

    # Attached by learning/curvature.py, which knows losses.
    ggn: ClassVar[Callable[..., TrajectoryOperator]]
    hessian: ClassVar[Callable[..., TrajectoryOperator]]

    def __post_init__(self) -> None:
        with exclusive_compute(self.device):
            parts = self.recurrence, self.parameters, self.trajectory
            name, self._options, self.engine_reason = choose_engine(
                self.engine_asked, self.gates_asked, *parts
            )
            self.engine = ENGINES[name](*parts, **self._options)

    @property
    def dtype(self) -> torch.dtype:
        """float32 or float64, in which everything is computed."""
        return self.trajectory.states.dtype

    @property
    def device(self) -> torch.device:
        """Where everything is computed."""
        return self.trajectory.states.device

    @property
    def model(self) -> Any:
        """The snapshot of the user's model."""
        return self.recurrence.module

    @property
    def precision(self) -> str:
        """That of the products with its operators: ``"highest"``, ``"tf32x3"`` or ``"tf32"``."""
        return self.trajectory.precision

    @cached_property
    def states(self) -> xr.DataArray:
        """The states h, dims (trial, time, unit); zero where the mask is False."""
        states = self.trajectory.restrict(self.trajectory.states[None])[0]
        return self.space.label(to_numpy(states.clone()), name="states", long_name="state h")

    @cached_property
    def outputs(self) -> xr.DataArray:
        """The outputs y = C(h), dims (trial, time, output); zero where the mask is False."""
        with exclusive_compute(self.device):
            rows = self._readout_map()({}, *self._readout_rows())
        outputs = rows.unflatten(0, self.space.shape[:2])
        outputs = self.trajectory.restrict(outputs[None])[0]
        return self.output_space.label(to_numpy(outputs), name="outputs", long_name="output y")

    @property
    def attrs(self) -> dict[str, str]:
        """Provenance, which every result carries."""
        return (
            {
                "model": type(self.model).__name__,
                "measure": self.measure,
                "engine": self.engine.name,
                "dtype": str(self.dtype).removeprefix("torch."),
            }
            | ({} if self.precision == "highest" else {"precision": self.precision})
            | ({} if self.forcing_step == 1 else {"forcing": f"rate, dt {self.forcing_step:.6g}"})
        )

    @cached_property
    def parameter_space(self) -> Space:
        """The space of flat parameter vectors, with the coordinate ``parameter_name``."""
        return parameter_space({n: p.numel() for n, p in self.parameters.items()})

    @cached_property
    def output_space(self) -> Space:
        """The output trajectory space (trial, time, output)."""
        x, h = self._readout_rows()
        with exclusive_compute(self.device):
            n_outputs = self._readout_map()({}, x[:1], h[:1]).shape[1]
        coords = {k: c for k, c in self.space.coords.items() if "unit" not in c[0]}
        shape = (*self.space.shape[:2], n_outputs)
        return Space(("trial", "time", "output"), shape, coords, self.space.parts)

    # The operators of theory.

    @cached_property
    def P(self) -> TrajectoryOperator:
        """P, the linearized flow propagator (Green's operator); P.H backpropagates."""
        return self._rescaled(Propagator(self.engine, self.space), 1)

    @cached_property
    def P_inv(self) -> TrajectoryOperator:
        """P^-1, its inverse."""
        return self._rescaled(InversePropagator(self.engine, self.space), -1)

    @cached_property
    def J(self) -> TrajectoryOperator:
        """J, the parameter Jacobian of one step, at every step."""
        J = ParameterJacobian(self.engine, self.parameter_space, self.space, tuple(self.parameters))
        return self._rescaled(J, -1)

    @cached_property
    def K(self) -> TrajectoryOperator:
        """K = J J*, the parameter operator (over the number of valid steps for the mean)."""
        return self._parameter_operator(tuple(self.parameters), "K")

    @cached_property
    def K_by_parameter(self) -> dict[str, TrajectoryOperator]:
        """K_j of each learning parameter; K is their sum (Theorem 1 of the KPFlow paper)."""
        return {n: self._parameter_operator([n], f"K[{n}]") for n in self.parameters}

    def _parameter_operator(self, names: Sequence[str], symbol: str) -> TrajectoryOperator:
        K = ParameterOperator(self.engine, self.space, names, self._scale, symbol)
        return self._rescaled(K, -2)

    @cached_property
    def flow(self) -> TrajectoryOperator:
        """P K P*, the flow operator: the state-space neural tangent kernel."""
        return FlowOperator(self.P, self.K)

    @cached_property
    def sensitivity(self) -> TrajectoryOperator:
        """P J = dh/dtheta through time."""
        return self.P @ self.J

    @cached_property
    def C(self) -> TrajectoryOperator:
        """C, the readout linearised at the states."""
        rows = Rowwise(self._readout_map(), {}, *self._readout_rows())
        return self._rescaled(ReadoutJacobian(rows, self.trajectory, self.space, self.output_space))

    @cached_property
    def J_C(self) -> TrajectoryOperator | None:
        """J_C, of the outputs by the readout's own parameters; None if none of them learns."""
        own = self.readout_parameters
        if not own:
            return None
        rows = Rowwise(self._readout_map(), own, *self._readout_rows())
        space = parameter_space({n: p.numel() for n, p in own.items()})
        J_C = ReadoutParameterJacobian(rows, self.trajectory, space, self.output_space)
        return self._rescaled(J_C)

    @cached_property
    def output_ntk(self) -> TrajectoryOperator:
        """C P K P* C*, and J_C J_C* if the readout has parameters that learn: the output NTK."""
        through_states = self.C @ self.flow @ self.C.H
        if self.J_C is None:
            return through_states
        own_part = self.J_C @ self.J_C.H
        return through_states + (own_part if self._scale == 1 else self._scale * own_part)

    def _rescaled(self, operator: Any, power: int = 0) -> TrajectoryOperator:
        """`operator` times a power of the forcing step, with its provenance."""
        factor = self.forcing_step**power
        operator = operator if factor == 1 else factor * operator
        operator.attrs = self.attrs
        return operator

    def parameter_gradient(self, of_outputs: Tensor, adjoint: Tensor) -> Tensor:
        """The gradient by the parameters, from those by the outputs and P* Err; (1, parameter)."""
        return self.J.apply_adjoint(adjoint)

    def second_order(
        self, adjoint: Tensor, dtheta: Tensor, dh: Tensor, names: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """As of the engine: of the steps, weighted by the adjoint, applied to (dtheta, dh)."""
        return self.engine.second_order(adjoint, dtheta, dh, names)

    # The readout as a function of rows.

    def _readout_map(self) -> RowFunction:
        # Not a method of self: operators must not keep the linearization alive in a cycle.
        if self.readout is None:
            raise ValueError("this needs a readout: pass readout= to kpops.linearize")
        return RowReadout(self.recurrence, self.readout).step

    def _readout_rows(self) -> tuple[Tensor, Tensor]:
        return self.trajectory.inputs.flatten(0, 1), self.trajectory.states.flatten(0, 1)

    @property
    def forcing_step(self) -> float:
        """The factor of P, and divisor of J: dt where rates force a neural ODE, else 1."""
        return self.recurrence.forcing_step

    @property
    def structure(self) -> dict[str, bool]:
        """Which structure is known and used: blocks of P and K; a gated cell; a scan over time."""
        return classify(self.recurrence, tuple(self.parameters))

    @property
    def _scale(self) -> float:
        return 1.0 if self.measure == "sum" else 1.0 / self.trajectory.n_valid

    def memory_estimate(
        self, *, trials: int | None = None, vectors: int = 1, processes: int = 1
    ) -> dict[str, int]:
        """Return the bytes that each engine able to linearise the model takes, by its name.

        Parameters
        ----------
        trials : int, optional
            Estimate what so many trials of the same steps would take, on each process; nothing is
            allocated. By default, the bytes that the engine of these trials keeps on top of the
            trajectory. For each vector, a matvec takes its argument, its result and one or two
            more of the size of the trajectory.
        vectors : int
            Vectors in a block, which that estimate includes, as it does the trajectory.
        processes : int
            Over how many processes the trials are spread; see :doc:`/many_processes`.

        Examples
        --------
        >>> import torch, kpops
        >>> rnn = torch.nn.RNN(3, 256, batch_first=True)
        >>> few = kpops.linearize(rnn, torch.zeros(2, 400, 3), gates="recomputed")
        >>> for processes in (1, 2, 4):
        ...     needed = few.memory_estimate(trials=2000, processes=processes)
        ...     print(processes, f"{needed['gated'] / 2**30:.1f} GiB")
        1 5.4 GiB
        2 2.7 GiB
        4 1.4 GiB
        """
        names = tuple(self.parameters)
        self._check_estimate(trials, vectors, processes)
        if trials is not None:
            each = -(-trials // processes)
            parts = self.recurrence, names, self.trajectory, self._options
            with exclusive_compute(self.device):
                return memory_of_many(*parts, each, vectors)
        with exclusive_compute(self.device):
            return memory_estimate(self.recurrence, names, self.trajectory, self._options)

    def _check_estimate(self, trials: Any, vectors: Any, processes: Any) -> None:
        if trials is not None:
            for name, count in (("trials", trials), ("vectors", vectors), ("processes", processes)):
                check_count(name, count, 0 if name == "vectors" else 1)
        elif (vectors, processes) != (1, 1):
            raise ValueError(
                f"vectors={vectors} and processes={processes} are for an estimate of many trials: "
                "pass trials="
            )

    def __repr__(self) -> str:
        n_parameters = sum(p.numel() for p in self.parameters.values())
        readout = "" if self.readout is None else f", readout {self.output_space.shape[-1]}"
        parts = f"\n {self.remark}" if self.remark else ""
        remark = f"\n {self.engine.remark}" if self.engine.remark else ""
        known = ", ".join(name for name, holds in self.structure.items() if holds)
        declared = is_declared(self.recurrence) or is_declared(self.readout)
        known += "\n derivatives: those of a declared surrogate gradient" if declared else ""
        forcing = f", forcing {self.attrs['forcing']}" if "forcing" in self.attrs else ""
        dtype = self.attrs["dtype"] + precision_remark(self.precision)
        return (
            f"<{type(self).__name__} of {type(self.model).__name__} {self.space}, "
            f"{n_parameters} learning parameters{readout}{parts}\n"
            f" measure {self.measure}{forcing}{self.reading}, {dtype} on {self.device}, "
            f"engine {self.engine.name}: {self.engine_reason}{remark}\n"
            f" structure: {known}>"
        )
