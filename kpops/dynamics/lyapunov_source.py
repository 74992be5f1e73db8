"""Trajectories for Lyapunov exponents: stored, or run chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kpops import snapshot
from kpops.dynamics.given import like_what, read_model
from kpops.engines.trajectory import Trajectory
from kpops.labels import Coordinate, Space
from kpops.linearization import Linearization
from kpops.models.gated import GatedRecurrence
from kpops.models.recurrence import Recurrence, as_recurrence
from kpops.read_inputs import read_inputs, read_state, trajectory_space
from kpops.scalars import check_count, check_real

# Steps from which a run is compiled: loading compiled code takes as long as torch's overhead in so
# many. The first compilation of a machine takes seconds.
COMPILED_FROM = 2000
_CHECKED = 8  # steps that compiled code repeats


@dataclass(frozen=True)
class Source:
    """A private copy of a model with its trajectories, which come in chunks of time.

    `space` is (trial, time, unit), `start` (trial, unit) the initial state, and `inputs` (trial,
    time, feature) what the steps read; `stored` are the trajectories if they are kept.
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
        later = self.inputs[:, 1:]  # the first step may read something else
        return "autonomous" if bool((later == later[:, :1]).all()) else "driven"

    @property
    def compiles(self) -> bool:
        """Whether the run is long enough for code compiled for the CPU."""
        return self.start.device.type == "cpu" and self.space.shape[1] >= COMPILED_FROM

    def chunks(self, size: int) -> Iterator[tuple[int, Trajectory, list[Tensor] | None]]:
        """Consecutive pieces of at most `size` steps, each after the position of its first step.

        With each come the diagonals of its layers (trial, time, role, hidden), if it was compiled.
        """
        n_steps = self.space.shape[1]
        h, whole = self.start, self.stored
        for first in range(0, n_steps, size):
            time = slice(first, min(first + size, n_steps))
            diagonals = None
            if whole is None:
                piece, diagonals = self._run(h, time)
                h = piece.states[:, -1]
            else:
                mask = None if whole.mask is None else whole.mask[:, time]
                inputs, previous = whole.inputs[:, time], whole.previous[:, time]
                piece = Trajectory(inputs, previous, whole.states[:, time], mask)
            yield first, piece, diagonals

    def _run(self, h: Tensor, time: slice) -> tuple[Trajectory, list[Tensor] | None]:
        inputs, known = self.inputs[:, time], self._known
        if time.start == 0 and known is None:
            return snapshot.run_from(self.recurrence, inputs, h, None), None
        try:
            if known is None:
                return snapshot.run_on(self.recurrence, inputs, h, None), None
            return self._run_compiled(known, h, inputs, check=time.start == 0)
        except ValueError as error:
            if time.start == 0:
                raise
            raise ValueError(f"{error}; here steps count from step {time.start + 1}") from error

    @property
    def _known(self) -> GatedRecurrence | None:
        """The recurrence, if its run is compiled."""
        recurrence = self.recurrence
        if not self.compiles or not isinstance(recurrence, GatedRecurrence):
            return None
        return None if recurrence.formula is None else recurrence

    def _run_compiled(
        self, recurrence: GatedRecurrence, h: Tensor, inputs: Tensor, *, check: bool
    ) -> tuple[Trajectory, list[Tensor]]:
        from kpops.engines.cpu import states as compiled

        snapshot.refuse_nonfinite(inputs, "inputs")
        states, diagonals = compiled.run(recurrence, inputs, h)
        if check:
            begun = snapshot.run_from(recurrence, inputs[:, :_CHECKED], h, None).states
            compiled.assert_near(states[:, :_CHECKED], begun, "states")
        snapshot.refuse_nonfinite(states, "the state")
        previous = torch.cat([h[:, None], states[:, :-1]], dim=1)
        return Trajectory(inputs, previous, states, None), diagonals

    def labels(self, positions: Sequence[int], k: int, dt: float | None) -> Space:
        """Space (trial, time, unit, mode) of k modes at the states after `positions` steps."""
        ends = np.asarray(positions)
        some = self.space.take({"time": ends - 1})
        coords = {**some.coords, "mode": Coordinate(("mode",), np.arange(1, k + 1))}
        if dt is not None:
            coords["time"] = Coordinate(("time",), ends * dt)
        return Space((*some.dims, "mode"), (*some.shape, k), coords)


@torch.inference_mode(False)
def read_source(
    lin_or_model: Any,
    k: int | None,
    inputs: Any,
    h0: Any,
    n_steps: int | None,
    dt: float | None,
    dtype: torch.dtype | None,
) -> tuple[Source, int]:
    """Check the arguments; return the trajectories and the number of modes, all by default."""
    if dt is not None:
        check_real("dt", dt)
        if not 0 < dt < math.inf:
            raise ValueError(f"dt={dt}: pass the time that a step takes, above 0")
    if isinstance(lin_or_model, Linearization):
        lin_or_model.space.parts.refuse_spread(lin_or_model.P)
        lin, stored = lin_or_model, lin_or_model.trajectory
        given = {"inputs": inputs, "h0": h0, "n_steps": n_steps, "dtype": dtype}
        extra = [name for name, value in given.items() if value is not None]
        if extra:
            raise ValueError(f"{extra} given, but a linearization has its own: leave them out")
        recurrence = lin.recurrence
        start = stored.previous[:, 0]
        source = Source(recurrence, lin.space, start, stored.inputs, stored, lin.attrs)
    else:
        source = _of_model(lin_or_model, inputs, h0, n_steps, dtype)
    n_units = source.space.sizes["unit"]
    if k is not None:
        check_count("k", k, 1, n_units)
    return source, n_units if k is None else int(k)


def _of_model(model: Any, inputs: Any, h0: Any, n_steps: Any, dtype: torch.dtype | None) -> Source:
    if not isinstance(model, nn.Module):
        as_recurrence(model)  # refuses it by name
    if (inputs is None) == (n_steps is None):
        raise ValueError(
            f"n_steps={n_steps} with{'out' if inputs is None else ''} inputs: pass inputs, which "
            "set the number of steps, or n_steps to run without"
        )
    if n_steps is not None:
        check_count("n_steps", n_steps, 1)
    recurrence = read_model(model, dtype, inputs=inputs, h0=h0)
    like = like_what(recurrence, {"h0": h0, "inputs": inputs}, dtype)
    coords: dict[str, Coordinate] = {}
    if inputs is None:
        x = like.new_zeros(()).expand(_n_trials(h0), n_steps, recurrence.input_size or 0)
        x = recurrence.prepare_inputs(x)
    else:
        read = read_inputs(inputs, None, recurrence, like, convert=dtype is not None)
        if read.valid is not None:
            raise ValueError(
                "inputs has trials of different lengths: pass kpops.linearize(model, inputs)"
            )
        x, coords = read.x, read.coords
    n_trials, total = x.shape[:2]
    start = recurrence.initial_state(read_state(h0, dtype, coords), n_trials, like)
    space = trajectory_space(recurrence, (n_trials, total, start.shape[1]), coords)
    attrs = {
        "model": type(recurrence.module).__name__,
        "dtype": str(like.dtype).removeprefix("torch."),
    }
    return Source(recurrence, space, start, x, None, attrs)


def _n_trials(h0: Any) -> int:
    """Number of trials of an initial state, in any of its shapes."""
    shape = tuple(np.shape(h0[0] if isinstance(h0, tuple) else h0)) if h0 is not None else ()
    return shape[-2] if len(shape) > 1 else 1
