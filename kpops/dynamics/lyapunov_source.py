"""Where Lyapunov exponents are taken: stored trajectories, or a model that is run as one goes."""

from __future__ import annotations

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
from kpops.models.recurrence import Recurrence, as_recurrence
from kpops.read_inputs import read_inputs, read_state, trajectory_space
from kpops.scalars import check_count


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
        inputs = self.inputs[:, time]
        if time.start == 0:
            return snapshot.run_from(self.recurrence, inputs, h, None)
        try:
            return snapshot.run_on(self.recurrence, inputs, h, None)
        except ValueError as error:
            raise ValueError(f"{error}; here steps count from step {time.start + 1}") from error

    def labels(self, positions: Sequence[int], k: int, dt: float | None) -> Space:
        """Space (trial, time, unit, mode) of k modes at the states after so many steps."""
        ends = np.asarray(positions)
        some = self.space.take({"time": ends - 1})
        coords = {**some.coords, "mode": Coordinate(("mode",), np.arange(1, k + 1))}
        if dt is not None:
            coords["time"] = Coordinate(("time",), ends * dt)
        return Space((*some.dims, "mode"), (*some.shape, k), coords)


def _cut(whole: Trajectory, time: slice) -> Trajectory:
    mask = None if whole.mask is None else whole.mask[:, time]
    return Trajectory(whole.inputs[:, time], whole.previous[:, time], whole.states[:, time], mask)


@torch.inference_mode(False)
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


def _of_model(model: Any, inputs: Any, h0: Any, n_steps: Any, dtype: torch.dtype | None) -> Source:
    if not isinstance(model, nn.Module):
        as_recurrence(model)  # which says what it is
    if (inputs is None) == (n_steps is None):
        raise ValueError(
            f"n_steps={n_steps} with{'out' if inputs is None else ''} inputs: pass inputs, whose "
            "steps are counted, or the number n_steps of steps to run without"
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
    """Number of trials that an initial state is for, in any of the shapes that are taken."""
    shape = tuple(np.shape(h0[0] if isinstance(h0, tuple) else h0)) if h0 is not None else ()
    return shape[-2] if len(shape) > 1 else 1
