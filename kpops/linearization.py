"""Run a model once, keep its trajectory, hand out the operators."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import xarray as xr
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from kpops import snapshot
from kpops.arrays import to_numpy
from kpops.derivatives import is_declared
from kpops.distributed.agreement import in_step
from kpops.engines.classification import classify
from kpops.engines.exclusive import exclusive_compute
from kpops.engines.rowwise import RowFunction, Rowwise
from kpops.engines.select import ENGINES, choose_engine, memory_estimate
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
from kpops.precision import check_precision, in_full_precision
from kpops.precision import remark as precision_remark
from kpops.read_inputs import Reading, read_inputs, read_state


@in_full_precision
@torch.inference_mode(False)
def linearize(
    model: Any,
    inputs: Any,
    *,
    h0: Any = None,
    parameters: Iterable[str] | Callable[[str], bool] | None = None,
    readout: nn.Module | Callable[[Tensor], Tensor] | None = None,
    mask: Any = None,
    measure: str = "sum",
    engine: str = "auto",
    gates: str = "auto",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    precision: str = "highest",
    process_group: ProcessGroup | None = None,
) -> Linearization:
    """Linearise a recurrent model about its trajectories for `inputs`.

    The model is run once, and left as it is. The result is a snapshot, which later training of the
    model does not change.

    Parameters
    ----------
    model : nn.RNN, nn.GRU, nn.LSTM, their Cell classes, or any nn.Module
        A cell has ``forward(x_t, h)``, which returns the next state, trial by trial. A module over
        whole sequences is taken apart into its recurrent part and its readout; if it has more
        parts, the error shows the call for them. Wrappers are taken off.
    inputs : Tensor, array_like, DataArray, PackedSequence or list of array_like
        Shape (trial, time, feature); for a module with ``batch_first=False`` (time, trial,
        feature), as the module itself takes it. A DataArray is read by its dimensions ``trial`` and
        ``time``, and its coordinates label every result. A list of trials (time, feature) of
        several lengths is padded, and brings its mask. Integers and booleans become numbers of the
        model's dtype. No gradient flows back to the inputs.
    h0 : array_like or DataArray, optional
        Initial state (trial, unit) or (unit,), or what the module itself takes. Default: zero.
    parameters : iterable of str or callable, optional
        Names of the parameters of the recurrent part that learn, with or without its path in
        `model`, or a predicate on names. Default: all that require grad.
    readout : nn.Linear or callable, optional
        ``y = C(h)``, on rows (row, hidden) of the module's outputs (for an LSTM: h without c);
        default: the model's own, if it has one. A module is copied; another callable is used as it
        is, and has no parameters that learn.
    mask : array_like of bool, optional
        Shape (trial, time), True at valid steps, which precede the padding. The operators are
        restricted to the valid steps. Inputs may bring it as a coordinate ``mask``, as results do.
    measure : {"sum", "mean"}
        The measure of trials and time: ``"mean"`` divides K by the number of valid steps, as in
        the KPFlow paper.
    engine : {"auto", "gated_numba", "gated", "scan", "jacobian", "autodiff"}
        How the actions are computed; see :meth:`Linearization.memory_estimate`.
    gates : {"auto", "stored", "float32", "recomputed"}
        Whether the gated engines keep the derivatives of the gates, keep them in float32 (half the
        memory of a float64 model, relative errors of about 1e-7), or compute them from the
        trajectory in each matvec. ``"auto"`` stores them where they fit.
    dtype : torch.dtype, optional
        float32 or float64, to which model and inputs are converted. Default: the model's, and
        inputs of another floating dtype are refused.
    device : torch.device or str, optional
        Where to compute. Default: where the model is.
    precision : {"highest", "tf32x3", "tf32"}
        ``"highest"`` computes in the precision of the dtype, whatever torch is set to. ``"tf32"``
        lets a GPU compute the matrix products in P, K and their like by TF32, faster and to about
        three digits; ``"tf32x3"`` takes three such products for one of float32, with its error,
        in the engine ``gated``. See :doc:`/gpu`. Both are for float32; a CPU has no TF32.
    process_group : torch.distributed.ProcessGroup, optional
        Spread the trials over the processes of a group, each of which passes its own `inputs`,
        `h0` and `mask`, and the same of all else. The trials of all are in the order of the ranks.
        See :doc:`/many_processes`.

    Returns
    -------
    Linearization

    Raises
    ------
    TypeError
        If dtypes are mixed, a tensor is complex, or an argument is of a wrong kind.
    ValueError
        If a shape, a name or an option is wrong; if it is unclear which dimension of an array is
        time; if the model is random in its present mode, mixes trials, learns nothing or cannot be
        taken apart; if inputs or states are not finite.
    MemoryError
        If the chosen engine does not fit.
    DistributedError
        If the processes of the group disagree in anything but their trials, or one of them fails.

    Notes
    -----
    All arrays of a call have one order. If inputs are (time, trial, feature), for a module with
    ``batch_first=False`` or as a DataArray, `mask` is (time, trial), and targets of
    :func:`kpops.gradient_flow` are (time, trial, output), unless they have labels, which they need
    if both sizes are equal. Results are always (trial, time, unit).

    Examples
    --------
    >>> import torch, kpops
    >>> gru = torch.nn.GRU(3, 8, batch_first=True)
    >>> lin = kpops.linearize(gru, torch.randn(5, 10, 3))
    >>> lin.flow
    <P K P* (trial: 5, time: 10, unit: 8), float32 on cpu, PSD>
    >>> (lin.flow @ torch.randn(5, 10, 8)).shape
    torch.Size([5, 10, 8])
    """
    with in_step(process_group) as processes:
        if measure not in ("sum", "mean"):
            raise ValueError(f"measure={measure!r}: choose 'sum' or 'mean'")
        if isinstance(model, Linearization):
            raise TypeError("model is a Linearization already: use it as it is")
        parts = snapshot.take_apart(model, inputs, dtype, readout=readout, h0=h0)
        snapshot.refuse_tied(parts.recurrent, parts.readout)
        recurrence = snapshot.of_model(parts, dtype, device)
        learning = snapshot.learning_parameters(recurrence, parts.own_names(parameters))
        like = next(iter(learning.values()))
        check_precision(precision, like.dtype)
        convert = dtype is not None
        x, valid, coords, reading = read_inputs(inputs, mask, recurrence, like, convert=convert)
        recurrence.requires_grad_(False)  # no autograd graph is ever needed
        with exclusive_compute(like.device):
            h = recurrence.initial_state(read_state(h0, dtype, coords), len(x), x[:, 0])
            trajectory = snapshot.run_from(recurrence, x, h, valid, learning)
            trajectory = replace(trajectory, precision=precision)
            readout, own = snapshot.of_readout(parts, recurrence, trajectory.states, convert)
        trajectory, space = snapshot.spread(
            processes, trajectory, coords, recurrence, readout, measure, learning
        )
        linearization = Linearization(
            recurrence=recurrence,
            parameters=learning,
            trajectory=trajectory,
            space=space,
            reading=reading,
            readout=readout,
            readout_parameters=own,
            measure=measure,
            engine_asked=engine,
            gates_asked=gates,
            remark=parts.remark,
        )
        processes.agree({"engine": linearization.engine.name})
        return linearization


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

    def __post_init__(self) -> None:
        with exclusive_compute(self.device):
            parts = self.recurrence, self.parameters, self.trajectory
            engine, gates = self.engine_asked, self.gates_asked
            name, self._options, self.engine_reason = choose_engine(engine, gates, *parts)
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
        outputs = self.trajectory.restrict(rows.unflatten(0, self.space.shape[:2])[None])[0]
        return self.output_space.label(to_numpy(outputs), name="outputs", long_name="output y")

    @property
    def attrs(self) -> dict[str, str]:
        """Provenance, which every result carries."""
        found = {
            "model": type(self.recurrence.module).__name__,
            "measure": self.measure,
            "engine": self.engine.name,
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        found |= {} if self.precision == "highest" else {"precision": self.precision}
        dt = self.forcing_step
        return found if dt == 1 else found | {"forcing": f"rate, dt {dt:.6g}"}

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
    def output_ntk(self) -> TrajectoryOperator:
        """C P K P* C*, and J_C J_C* if the readout has parameters that learn: the output NTK."""
        through_states = self.C @ self.flow @ self.C.H
        own = self.readout_parameters
        if not own:
            return through_states
        rows = Rowwise(self._readout_map(), own, *self._readout_rows())
        space = parameter_space({n: p.numel() for n, p in own.items()})
        J_C = ReadoutParameterJacobian(rows, self.trajectory, space, self.output_space)
        own_part = J_C @ J_C.H
        return through_states + (own_part if self._scale == 1 else self._scale * own_part)

    def _rescaled(self, operator: Any, power: int = 0) -> TrajectoryOperator:
        """`operator` times a power of the forcing step, with its provenance."""
        factor = self.forcing_step**power
        operator = operator if factor == 1 else factor * operator
        operator.attrs = self.attrs
        return operator

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

    def memory_estimate(self) -> dict[str, int]:
        """Return the bytes that each engine able to linearise the model keeps, by its name.

        They are on top of the trajectory. For each vector, a matvec takes its argument, its result
        and one or two more of the size of the trajectory.
        """
        names = tuple(self.parameters)
        with exclusive_compute(self.device):
            return memory_estimate(self.recurrence, names, self.trajectory, self._options)

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
            f"<Linearization of {type(self.recurrence.module).__name__} {self.space}, "
            f"{n_parameters} learning parameters{readout}{parts}\n"
            f" measure {self.measure}{forcing}{self.reading}, {dtype} on {self.device}, "
            f"engine {self.engine.name}: {self.engine_reason}{remark}\n"
            f" structure: {known}>"
        )
