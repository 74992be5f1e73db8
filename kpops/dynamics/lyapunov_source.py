"""Where Lyapunov exponents are taken: stored trajectories, or a model that is run as one goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops import snapshot
from kpops.engines.base import Trajectory
from kpops.labels import Coordinate, Space, as_tensor, numpy_dtype
from kpops.linearization import Linearization
from kpops.models.network import Network
from kpops.models.recurrence import Recurrence


@dataclass(frozen=True)
class Source:
    """A recurrence with what it runs on; trajectories come in chunks of time.

    Parameters
    ----------
    recurrence : Recurrence
        Snapshot of the model.
    space : Space
        Of the whole trajectories (trial, time, unit).
    start : Tensor, shape (trial, unit)
        The initial state.
    inputs : Tensor, shape (trial, time, feature)
        What the steps read.
    stored : Trajectory or None
        The trajectories, where they have been kept.
    attrs : dict of str to str
        Provenance.
    """

    recurrence: Recurrence
    space: Space
    start: Tensor
    inputs: Tensor
    stored: Trajectory | None
    attrs: dict[str, str]

    @property
    def lengths(self) -> Tensor:
        """Valid steps of every trial."""
        n_trials, n_steps, _ = self.space.shape
        if self.stored is None or self.stored.mask is None:
            return torch.full((n_trials,), n_steps)
        return self.stored.mask.sum(1).cpu()

    @property
    def dynamics(self) -> str:
        """``"driven"`` where inputs change in time, else ``"autonomous"``."""
        later = self.inputs[:, 1:]  # the first step may be told from the others
        return "autonomous" if bool((later == later[:, :1]).all()) else "driven"

    def chunks(self, size: int) -> Iterator[tuple[int, Trajectory]]:
        """Consecutive pieces of at most `size` steps, each with the position of its first step."""
        n_steps = self.space.shape[1]
        h = self.start
        for first in range(0, n_steps, size):
            time = slice(first, min(first + size, n_steps))
            piece = self._run(h, time) if self.stored is None else _cut(self.stored, time)
            h = piece.states[:, -1]
            yield first, piece

    def _run(self, h: Tensor, time: slice) -> Trajectory:
        try:
            return snapshot.run(_From(self.recurrence, h), self.inputs[:, time], None, None)
        except ValueError as error:
            if time.start == 0:
                raise
            raise ValueError(f"{error}; here steps count from step {time.start + 1}") from error

    def labels(self, positions: Sequence[int], k: int, dt: float | None) -> Space:
        """Space (trial, time, unit, mode) of k modes at the states after so many steps."""
        ends = np.asarray(positions)
        some = self.space.take({"time": ends - 1})
        coords = {**some.coords, "mode": (("mode",), np.arange(1, k + 1))}
        if dt is not None:
            coords["time"] = (("time",), ends * dt)
        return Space((*some.dims, "mode"), (*some.shape, k), coords)


class _From(Recurrence):
    """A recurrence that goes on from a state, whatever the model says of its start."""

    def __init__(self, recurrence: Recurrence, state: Tensor) -> None:
        super().__init__(recurrence.module)
        self.step_of = (recurrence,)  # in a tuple, lest its parameters be registered twice
        self.state = state

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state of every row."""
        return self.step_of[0](x, h)

    def initial_state(self, h0: Any, n_trials: int, like: Tensor) -> Tensor:
        """The state to go on from."""
        return self.state


def _cut(whole: Trajectory, time: slice) -> Trajectory:
    mask = None if whole.mask is None else whole.mask[:, time]
    return Trajectory(whole.inputs[:, time], whole.previous[:, time], whole.states[:, time], mask)


def read_source(
    lin_or_model: Any, inputs: Any, h0: Any, n_steps: int | None, dtype: torch.dtype | None
) -> Source:
    """Source of a linearization, or of a model with inputs or with a number of steps."""
    if isinstance(lin_or_model, Linearization):
        given = {"inputs": inputs, "h0": h0, "n_steps": n_steps, "dtype": dtype}
        extra = [name for name, value in given.items() if value is not None]
        if extra:
            raise ValueError(f"{extra} given, but a linearization has its own: leave them out")
        stored = lin_or_model.trajectory
        return Source(
            lin_or_model.recurrence,
            lin_or_model.space,
            stored.previous[:, 0],
            stored.inputs,
            stored,
            lin_or_model.attrs,
        )
    return _of_model(lin_or_model, inputs, h0, n_steps, dtype)


def _of_model(
    model: Any, inputs: Any, h0: Any, n_steps: int | None, dtype: torch.dtype | None
) -> Source:
    if (inputs is None) == (n_steps is None):
        raise ValueError(
            f"n_steps={n_steps} with{'out' if inputs is None else ''} inputs: pass inputs, whose "
            "steps are counted, or the number n_steps of steps to run without"
        )
    is_network = isinstance(model, Network)
    if is_network:
        snapshot.refuse_changed_network(model)
        model = model.recurrent
    recurrence = snapshot.of_model(model, dtype, None).requires_grad_(False)
    recurrence.time_major &= not is_network  # a Network takes (trial, time, feature)
    like = _like(recurrence, h0, inputs, dtype)
    coords: dict[str, Coordinate] = {}
    if inputs is None:
        x = like.new_zeros(()).expand(_n_trials(h0), _steps(n_steps), recurrence.input_size or 0)
        x = recurrence.prepare_inputs(x)
    else:
        x, coords = snapshot.read_inputs(inputs, recurrence, like, convert=dtype is not None)
    n_trials, total = x.shape[:2]
    start = recurrence.initial_state(snapshot.convert_state(h0, dtype), n_trials, like)
    n_units = start.shape[1]
    coords = {
        "trial": (("trial",), np.arange(n_trials)),
        "time": (("time",), np.arange(1, total + 1)),
        "unit": (("unit",), np.arange(n_units)),
        **{k: (("unit",), v) for k, v in recurrence.unit_coords(n_units).items()},
        **coords,
    }
    space = Space(("trial", "time", "unit"), (n_trials, total, n_units), coords)
    attrs = {
        "model": type(recurrence.module).__name__,
        "dtype": str(like.dtype).removeprefix("torch."),
    }
    return Source(recurrence, space, start, x, None, attrs)


def _like(recurrence: Recurrence, h0: Any, inputs: Any, dtype: torch.dtype | None) -> Tensor:
    """A tensor of the dtype and on the device of the computation.

    They are those of the model's parameters and buffers; a model without any computes in what its
    initial state or its inputs are in.
    """
    own = [*recurrence.module.parameters(), *recurrence.module.buffers()]
    given = h0[0] if isinstance(h0, tuple) else h0
    inputs = inputs.data if isinstance(inputs, xr.DataArray) else inputs
    data = [as_tensor(a) for a in (given, inputs) if a is not None]
    floating = [a for a in (*own, *data) if a.is_floating_point()]
    like = floating[0].new_empty(0) if floating else torch.empty(0)
    like = like if dtype is None else like.to(dtype)
    numpy_dtype(like.dtype)  # refuses what is not computed in
    return like


def _steps(n_steps: Any) -> int:
    if isinstance(n_steps, bool) or not isinstance(n_steps, int | np.integer) or n_steps < 1:
        raise ValueError(f"n_steps={n_steps!r}: choose an int of 1 or more")
    return int(n_steps)


def _n_trials(h0: Any) -> int:
    """Number of trials that an initial state is for, in any of the shapes that are taken."""
    shape = tuple(np.shape(h0[0] if isinstance(h0, tuple) else h0)) if h0 is not None else ()
    return shape[-2] if len(shape) > 1 else 1
