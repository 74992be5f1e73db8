"""Frames of tangent vectors moved on by many steps; the loops are in `tangent_kernels`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kpops.arrays import numpy_dtype
from kpops.engines import threads
from kpops.engines.cpu import blas
from kpops.engines.cpu.arguments import Span
from kpops.engines.cpu.gated import GatedNumbaEngine
from kpops.engines.cpu.states import Diagonals, assert_near, by_role
from kpops.engines.gated.gates import Pattern
from kpops.engines.gated.layer import Layer

Frames = Float[Tensor, "trial mode unit"]
Move = Callable[[Span, Span], None]
"""Moves rows, or trials, on by some steps."""

# Operations between two chances for Ctrl-C, and steps that a layer takes before the next one does.
_FLOPS, _STEPS = 1e10, 16


class TangentEngine(GatedNumbaEngine):
    """The engine `gated_numba`, which also moves frames from one QR to the next."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._known: list[Diagonals] | None = None
        self._moves: dict[tuple[int, ...], tuple[Tensor, list[Move], int]] = {}

    def know(self, diagonals: list[Diagonals], *, check: bool) -> None:
        """Take the diagonals that :func:`kpops.engines.cpu.states.run` has made.

        With `check`, those of the first steps are compared with torch's.
        """
        formula = self.recurrence.formula
        assert formula is not None
        for layer, d in zip(self.layers, diagonals, strict=True):
            plain, layer.pattern = layer.pattern, by_role(formula.cell, layer.pattern)
            if check:
                first = Layer(self.recurrence, layer.index, self.trajectory.beginning, "stored")
                ours, theirs = d[:1, :8].movedim(2, 0), first.diagonals(slice(None))
                for p, place in _same(plain, layer.pattern):
                    assert_near(ours[place], theirs[p], "diagonals")
        self._known, self._passages = diagonals, {}

    def move(self, frames: Frames, time: slice) -> Frames:
        """A of these steps, one after the other, on every vector; 1 after the end of a trial."""
        shape = frames.shape[:2]
        if shape not in self._moves:
            self._moves = {shape: self._prepare(*shape)}
        state, moves, size = self._moves[shape]
        state.copy_(frames)
        flops = sum(layer.flops(shape[1]) for layer in self.layers)
        n_tasks = threads.enough(flops * (time.stop - time.start))
        parts = [Span(*pair) for pair in pairwise(threads.split(size, n_tasks, size))]
        for steps in _spans(time.start, time.stop, max(1, int(_FLOPS / max(1, flops)))):

            def task(i: int, steps: Span = steps) -> None:
                # A layer hands on its vectors of some steps, which should stay in the cache.
                for some in _spans(*steps, _STEPS) if len(moves) > 1 else [steps]:
                    for move in moves:
                        move(some, parts[i])

            threads.each(task, len(parts))
        return state.clone()

    def jacobians(self, t: int) -> Float[Tensor, "trial unit unit"]:
        """A of one step of a single layer; 1 after the end of a trial."""
        (layer,), d = self.layers, torch.from_numpy(self._diagonals(self.layers[0])[:, t])
        weights = layer.recurrent_weight.unflatten(0, (-1, layer.hidden))
        gains = [d.new_zeros(()) for _ in range(layer.variables)]
        for v, g, p in layer.pattern.recurrent:
            gains[v] = torch.addcmul(gains[v], d[:, p, :, None], weights[g])
        slopes, n = dict(layer.pattern.slopes), layer.hidden
        result = d.new_empty(len(d), layer.variables, n, layer.variables, n)
        for v, w in product(range(layer.variables), repeat=2):
            place = slopes.get(w)
            slope = d.new_tensor(float(w in slopes)) if place is None else d[:, place, None]
            torch.mul(gains[v], slope, out=result[:, v, :, w])
        for v, w, p in layer.pattern.carry:
            result[:, v, :, w].diagonal(dim1=1, dim2=2).add_(d[:, p])
        result, mask = result.flatten(3).flatten(1, 2), self.trajectory.mask
        if mask is None:
            return result
        return torch.where(mask[:, t, None, None], result, torch.eye(result.shape[1]).to(d))

    def _prepare(self, n_trials: int, n_modes: int) -> tuple[Tensor, list[Move], int]:
        """Room for frames, the moves of every layer, and what is split: rows, or trials."""
        state = self.trajectory.states.new_empty(n_trials, n_modes, self.trajectory.states.shape[2])
        rows = state.view(n_trials * n_modes, -1, self.layers[0].hidden).numpy()
        wide = self.assembled_from(self.layers[0])
        if wide is not None and n_modes >= wide:
            return state, [self._by_trials(rows)], n_trials
        passed = np.empty((_STEPS * (len(self.layers) > 1), *rows[:, 0].shape), rows.dtype)
        return state, [self._by_rows(layer, rows, passed) for layer in self.layers], len(rows)

    def _by_rows(self, layer: Layer, state: np.ndarray, passed: np.ndarray) -> Move:
        """Moves of a layer with all weights of its gates, split by rows (trial and mode)."""
        from kpops.engines.cpu.tangent_kernels import move_rows

        weights, lists, n_maps = self._passage(layer, backwards=False)
        features = np.zeros((len(state), 1, layer.hidden), state.dtype)
        maps = np.empty((len(state), n_maps, layer.hidden), state.dtype)
        place = self._place(layer, n_maps, full_state=True)
        vectors = self._gemm, weights, state, passed
        given = *vectors, self._diagonals(layer), self._ends, lists, features, maps
        kernel: Callable[..., None] = move_rows

        def move(steps: Span, rows: Span) -> None:
            kernel(*given, np.empty(state.shape[1:], state.dtype), place, steps, rows)

        return move

    def _by_trials(self, state: np.ndarray) -> Move:
        """Moves of a single layer with the Jacobian of each step, assembled."""
        from kpops.engines.cpu.tangent_kernels import move_trials

        (layer,) = self.layers
        (weight, _), lists, n_maps = self._passage(layer, backwards=False)
        place = self._place(layer, n_maps, full_state=True)
        weight = weight.reshape(layer.hidden, -1, layer.hidden)
        given = self._gemm, weight, state, self._diagonals(layer), self._ends, lists
        moved = np.empty_like(state)
        kernel: Callable[..., None] = move_trials

        def move(steps: Span, trials: Span) -> None:
            matrix = np.empty((layer.hidden, *state.shape[1:]), state.dtype)
            kernel(*given, moved, matrix, place, steps, trials)

        return move

    @cached_property
    def _gemm(self) -> int:
        return blas.gemm_address(numpy_dtype(self.trajectory.states.dtype))

    @cached_property
    def _ends(self) -> np.ndarray:
        """Number of valid steps of every trial."""
        n_trials, n_steps = self.trajectory.states.shape[:2]
        mask = self.trajectory.mask
        return np.full(n_trials, n_steps) if mask is None else mask.sum(1).numpy()

    def _diagonals(self, layer: Layer) -> np.ndarray:
        """Diagonals (trial, time, diagonal, hidden), as they lie in memory."""
        if self._known is not None:
            return self._known[layer.index].numpy()
        return layer.diagonals(slice(None)).movedim(0, 2).numpy()


def _same(one: Pattern, other: Pattern) -> Iterator[tuple[int, int]]:
    """Places of the same diagonal in two patterns."""
    for name in ("carry", "recurrent", "inputs", "slopes"):
        for a, b in zip(getattr(one, name), getattr(other, name), strict=True):
            if a[-1] is not None:
                yield a[-1], b[-1]


def _spans(start: int, stop: int, size: int) -> list[Span]:
    return [Span(t, min(t + size, stop)) for t in range(start, stop, size)]
