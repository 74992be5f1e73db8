"""The gated engine compiled for the CPU; the loops are in `gated_kernels`.

The recursions of P and P* are split by rows, the pairs of a trial and a vector of the block. A task
takes its rows through the whole of time, with one matrix product per step, and never waits for
another. How K is split stands in :mod:`kpops.engines.cpu.gram`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kpops.arrays import numpy_dtype
from kpops.engines import threads
from kpops.engines.cpu.arguments import Lists, Place, Span, Weights, by_variable, terms
from kpops.engines.gated.engine import GatedEngine
from kpops.engines.gated.gates import Pairs
from kpops.engines.gated.gram import Gram
from kpops.engines.gated.layer import Layer, Segments
from kpops.engines.memory import uninitialised_like
from kpops.engines.trajectory import Block, Trajectory
from kpops.models.gated import GatedRecurrence
from kpops.models.recurrence import Recurrence

Kernel = Callable[..., None]

# Rows of a task of P at most: what a task works on, beside the weights, should fit in a core's
# second cache.
_ROWS = 192
# Vectors from which the Jacobian of a step is assembled: with weights that stay in a core's cache,
# and with larger ones, which assembling reads from afar for every trial.
_CACHE_BYTES = 2**20
_WIDE, _WIDE_OUTSIDE = 16, 128


class Passage(NamedTuple):
    """What a recursion through a layer takes in one direction, whatever the block."""

    weights: Weights
    lists: Lists
    n_maps: int


class GatedNumbaEngine(GatedEngine):
    """The engine `gated` with P, P* and K compiled by Numba, parallel and without barriers."""

    name = "gated_numba"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._room: dict[tuple[Any, ...], list[np.ndarray]] = {}  # of the last matvec
        self._passages: dict[tuple[int, bool], Passage] = {}  # of each layer, by direction

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_room": {}, "_passages": {}}

    @classmethod
    def refuses(cls, recurrence: Recurrence, device: torch.device) -> str | None:
        """Why this engine cannot linearise the recurrence on the device, or None."""
        if device.type != "cpu":
            return f"compiled for the CPU, the model is on {device}: use engine='gated'"
        return super().refuses(recurrence, device)

    @staticmethod
    def bytes_of_copies(recurrence: Recurrence, trajectory: Trajectory) -> int:
        """W^T of each layer, and U^T of those above the first."""
        assert isinstance(recurrence, GatedRecurrence)
        names = [maps.recurrent for maps in recurrence.layers]
        names += [maps.input for maps in recurrence.layers[1:] if maps.input is not None]
        return sum(recurrence.weight(name).nbytes for name in names)

    # Through time.

    def flow(self, q: Block, names: Sequence[str]) -> Block:
        """P J J* P* q, in the memory of the result.

        Each kernel has read an entry before it writes there. To get fresh memory for the result of
        each takes longer than the arithmetic of a cheap cell.
        """
        if not self._direct(names):
            return super().flow(q, names)
        v = self._through_time(q, backwards=True, full_state=True)
        self.trajectory.restrict_(self._apply_grams(v, names, into=v))
        return self.trajectory.restrict_(self._recur(v, backwards=False, full_state=True, into=v))

    def _recur(
        self, q: Block, *, backwards: bool, full_state: bool = False, into: Block | None = None
    ) -> Block:
        """Run a recursion over all of time.

        The result is written `into` a block. It may be q itself, if there is one layer or layers
        pass on full states: then every entry of q has been read before.
        """
        q = q.contiguous()
        v = uninitialised_like(q) if into is None else into
        n_block, n_trials, n_steps, _ = q.shape
        stacked = len(self.layers) > 1
        shape = (n_steps, n_block * n_trials, self.layers[0].hidden) if stacked else (0, 0, 0)
        passed = q.new_empty(shape)
        for layer in self.layers[:: -1 if backwards else 1]:
            segments = layer.by_step(backwards=backwards)
            if self._assembles(layer, n_block, n_trials):
                self._recur_by_trials(layer, q, v, segments, backwards)
            else:
                self._recur_by_rows(layer, q, v, passed, segments, backwards, full_state)
        return v

    def _recur_by_rows(
        self,
        layer: Layer,
        q: Block,
        v: Block,
        passed: Float[Tensor, "_ row hidden"],
        segments: Segments,
        backwards: bool,
        full_state: bool,
    ) -> None:
        """Run a recursion with all weights of the gates; layers hand on what is `passed`."""
        from kpops.engines.cpu.gated_kernels import backpropagate_rows, propagate_rows

        n_rows = q.shape[0] * q.shape[1]
        weights, lists, n_maps = self._passage(layer, backwards)
        n_variables = layer.variables * len(self.layers)
        shapes = [(n_rows, n, layer.hidden) for n in (n_variables, 1, n_maps)]
        room = self._buffers(q, shapes)  # states, features and maps
        kernel: Kernel = backpropagate_rows if backwards else propagate_rows
        work = 2 * n_rows * q.shape[2] * n_maps * layer.hidden**2
        bounds = threads.split(n_rows, threads.enough(work), _ROWS)
        vectors = *by_variable(layer, q, v), passed.numpy()
        place = self._place(layer, n_maps, full_state=full_state)

        def run(gemm: int, d: np.ndarray, start: int, rows: Span) -> None:
            new, at = np.empty(shapes[0][1:], room[0].dtype), place._replace(start=start)
            kernel(gemm, weights, *vectors, d, lists, *room, new, at, rows)

        self._over_time(segments, bounds, run, work)

    def _recur_by_trials(
        self, layer: Layer, q: Block, v: Block, segments: Segments, backwards: bool
    ) -> None:
        """Run a recursion with the Jacobian of each step, assembled."""
        from kpops.engines.cpu import gated_assembled_kernels

        n_block, n_trials = q.shape[:2]
        shape = n_block * n_trials, layer.variables, layer.hidden
        (weight, _), lists, n_maps = self._passage(layer, backwards)
        if backwards:
            kernel: Kernel = gated_assembled_kernels.backpropagate_trials
            size: tuple[int, ...] = layer.variables * layer.hidden, layer.hidden
        else:
            kernel = gated_assembled_kernels.propagate_trials
            size = layer.hidden, layer.variables, layer.hidden
            weight = weight.reshape(layer.hidden, -1, layer.hidden)
        buffers = self._buffers(q, [shape, shape])
        few = math.ceil(n_trials / (4 * torch.get_num_threads()))
        bounds = threads.split(n_trials, torch.get_num_threads(), few)
        vectors = by_variable(layer, q, v)
        place = self._place(layer, n_maps, full_state=False)

        def run(gemm: int, d: np.ndarray, start: int, trials: Span) -> None:
            matrix, at = q.new_empty(size).numpy(), place._replace(start=start)
            kernel(gemm, weight, *vectors, d, lists, *buffers, matrix, at, trials)

        self._over_time(segments, bounds, run)

    def _place(self, layer: Layer, n_maps: int, *, full_state: bool) -> Place:
        has_below = layer.index > 0
        return Place(
            start=0,
            variable=layer.first_variable,
            has_below=has_below,
            has_above=layer is not self.layers[-1],
            full_state=full_state,
            n_variables=layer.variables,
            n_recurrent=layer.pattern.n_recurrent,
            first_input=n_maps - layer.pattern.n_inputs if has_below else 0,
            source=_only_source(layer),
        )

    def _over_time(
        self,
        segments: Segments,
        bounds: list[int],
        run: Callable[[int, np.ndarray, int, Span], None],
        flops: float = math.inf,
    ) -> None:
        """Call run(gemm, diagonals, first step, part) for all segments, and parts on all cores."""
        from kpops.engines.cpu import blas

        gemm = blas.gemm_address(numpy_dtype(self.trajectory.states.dtype))
        parts = [Span(*pair) for pair in pairwise(bounds)]
        for start, d in segments:

            def task(i: int, d: np.ndarray = d, start: int = start) -> None:
                run(gemm, d, start, parts[i])

            threads.each(task, len(parts), flops)

    def _passage(self, layer: Layer, backwards: bool) -> Passage:
        key = layer.index, backwards
        if key not in self._passages:
            below = layer.input_weight if layer.index > 0 else None
            none = layer.previous.new_empty(0, 0)
            w, u = layer.recurrent_weight, none if below is None else below
            both = (w, u) if backwards else (w.mT, u.mT)
            gains, n_maps = _gains_through_time(layer)
            weights = Weights(*(x.contiguous().numpy() for x in both))
            self._passages[key] = Passage(weights, _lists(layer, gains, backwards), n_maps)
        return self._passages[key]

    # Single steps.

    def _pass(self, below: Layer, layer: Layer, v: Block, *, up: bool) -> None:
        from kpops.engines.cpu import gated_kernels

        kernel: Kernel = gated_kernels.pass_rows
        weight = self._passage(layer, not up).weights.input
        inputs = [(layer.first_variable + v, g, p) for v, g, p in layer.pattern.inputs]
        added = terms(inputs, swapped=not up, first=False)
        shape = gated_kernels.CHUNK, layer.pattern.n_inputs, layer.hidden

        def run(gemm: int, d: np.ndarray, start: int, rows: Span) -> None:
            maps, (vectors,) = v.new_empty(shape).numpy(), by_variable(layer, v)
            kernel(gemm, weight, vectors, d, added, maps, start, below.first_variable, rows, up)

        n_rows = v.shape[0] * v.shape[1]
        bounds = threads.split(n_rows, torch.get_num_threads(), n_rows)
        self._over_time(layer.by_step(backwards=not up), bounds, run)

    def assembled_from(self, layer: Layer) -> int | None:
        """Size of blocks from which the gains of a step are assembled; None for never."""
        if len(self.layers) > 1:
            return None  # layers would have to wait for each other's whole trajectories
        if layer.pattern.n_recurrent <= layer.variables or len(layer.pattern.slopes) != 1:
            return None  # nothing would be saved
        return _WIDE if layer.recurrent_weight.nbytes <= _CACHE_BYTES else _WIDE_OUTSIDE

    def _assembles(self, layer: Layer, n_block: int, n_trials: int) -> bool:
        wide = self.assembled_from(layer)
        return wide is not None and n_block >= wide and n_trials >= torch.get_num_threads()

    def _buffers(self, like: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """Workspaces of these shapes, kept for the next matvec; the first is set to zero.

        New ones are zeros, as features remain that depend on no state.
        """
        key = tuple(shapes)
        if key not in self._room:
            dtype = numpy_dtype(like.dtype)
            self._room = {key: [np.zeros(shape, dtype) for shape in shapes]}
        self._room[key][0].fill(0)  # by NumPy: torch's threads would spin on and hold up ours
        return self._room[key]

    def _gram(self, layer: Layer, learn: dict[str, tuple[bool, bool]]) -> Gram:
        from kpops.engines.cpu.gram import CompiledGram

        return CompiledGram(layer, learn)


def _gains_through_time(layer: Layer) -> tuple[Pairs, int]:
    """Diagonals that recurrent maps, and input maps from a layer below, meet; number of maps.

    Input maps are numbered after the recurrent ones, or as these where they meet the same
    diagonals, so that only their sum matters.
    """
    pattern = layer.pattern
    n_maps = pattern.n_recurrent
    same = pattern.inputs == pattern.recurrent and pattern.n_inputs == n_maps
    if same or layer.index == 0:
        return pattern.recurrent, n_maps
    shifted = tuple((v, n_maps + g, p) for v, g, p in pattern.inputs)
    return pattern.recurrent + shifted, n_maps + pattern.n_inputs


def _only_source(layer: Layer) -> int:
    """The variable that is what the recurrent maps multiply, or -1 if they multiply features."""
    (w, p), *others = layer.pattern.slopes or ((-1, 0),)
    return layer.first_variable + w if p is None and not others else -1


def _lists(layer: Layer, gains: Pairs, backwards: bool) -> Lists:
    """The terms of a layer, by the variables of the stack."""
    first = layer.first_variable
    carry = [(first + v, first + w, p) for v, w, p in layer.pattern.carry]
    slopes = [(0, first + w, p) for w, p in layer.pattern.slopes if p is not None]
    return Lists(
        terms(carry, swapped=backwards, first=False),
        terms([(first + v, g, p) for v, g, p in gains], swapped=backwards, first=False),
        terms(slopes, swapped=backwards, first=not backwards),
    )
