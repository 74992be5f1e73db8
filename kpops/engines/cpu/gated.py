"""The gated engine compiled for the CPU; the loops are in `gated_kernels`.

The recursions of P and P* are split by rows, the pairs of a trial and a vector of the block: a
task takes its rows through the whole of time, one product with the weights per step, and never
waits for another. K is split by units and vectors, over which it is block diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kpops.arrays import numpy_dtype
from kpops.engines import threads
from kpops.engines.gated.engine import GatedEngine
from kpops.engines.gated.gram import Gram
from kpops.engines.gated.layer import Layer, Pairs
from kpops.engines.memory import uninitialised_like
from kpops.models.gated import GatedRecurrence
from kpops.models.recurrence import Recurrence

# Rows of a task of P at most: what a task works on, beside the weights, should fit in a core's
# second cache.
_ROWS = 192
# Vectors from which the Jacobian of a step is assembled: with weights that stay in a core's cache,
# and with larger ones, which assembling reads from afar for every trial.
_CACHE_BYTES = 2**20
_WIDE, _WIDE_OUTSIDE = 32, 128


class GatedNumbaEngine(GatedEngine):
    """The engine `gated` with P, P* and K compiled by Numba, parallel and without barriers."""

    name = "gated_numba"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._room: dict[tuple[Any, ...], list[np.ndarray]] = {}  # of the last product
        self._transposed: dict[int, tuple[Tensor, Tensor]] = {}  # W^T and U^T of each layer

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_room": {}, "_transposed": {}}

    @staticmethod
    def refuses(recurrence: Recurrence, device: torch.device) -> str | None:
        """Why this engine cannot linearise the recurrence, or None."""
        if device.type != "cpu":
            return f"compiled for the CPU, the model is on {device}: use engine='gated'"
        return GatedEngine.refuses(recurrence, device)

    @staticmethod
    def bytes_of_weights(recurrence: Recurrence) -> int:
        """W^T of each layer, and U^T of those above the first."""
        assert isinstance(recurrence, GatedRecurrence)
        names = [maps.recurrent for maps in recurrence.layers]
        names += [maps.input for maps in recurrence.layers[1:] if maps.input is not None]
        return sum(recurrence.weight(name).nbytes for name in names)

    # Through time.

    def _propagate_layers(self, q: Tensor, *, full_state: bool = False) -> Tensor:
        return self._recur_layers("propagate", self.layers, q.contiguous(), full_state)

    def _backpropagate_layers(self, a: Tensor, *, full_state: bool = False) -> Tensor:
        return self._recur_layers("backpropagate", self.layers[::-1], a.contiguous(), full_state)

    def transport(self, v: Tensor, time: slice) -> Tensor:
        """Product of A over the steps of a slice of time, on tangent vectors (block, trial, unit).

        It is P of a push before the first of these steps, seen at the last.
        """
        shape = *v.shape[:2], time.stop - time.start + 1, v.shape[2]
        # NumPy's zeros: threads of torch would spin on, in the way of ours.
        q = torch.from_numpy(np.zeros(shape, numpy_dtype(v.dtype)))
        q[:, :, 0] = v
        return self._recur_layers("propagate", self.layers, q, window=time)[:, :, -1]

    def _recur_layers(
        self,
        verb: str,
        layers: list[Layer],
        q: Tensor,
        full_state: bool = False,
        window: slice | None = None,
    ) -> Tensor:
        """Run a recursion over all of time, or over a push and the steps of a window."""
        v = uninitialised_like(q)
        n_block, n_trials, n_steps, _ = q.shape
        stacked = len(layers) > 1
        shape = (n_steps, n_block * n_trials, layers[0].hidden) if stacked else (0, 0, 0)
        passed = q.new_empty(shape)
        for layer in layers:
            if self._assembles(layer, n_block, n_trials):
                self._recur_by_trials(verb, layer, q, v, window)
            else:
                self._recur_by_rows(verb, layer, q, v, passed, full_state, window)
        return v

    def _recur_by_rows(
        self,
        verb: str,
        layer: Layer,
        q: Tensor,
        v: Tensor,
        passed: Tensor,
        full_state: bool,
        window: slice | None,
    ) -> None:
        """Run a recursion with all weights of the gates; layers hand on what is `passed`."""
        from kpops.engines.cpu import gated_kernels

        n_rows = q.shape[0] * q.shape[1]
        has_below, has_above = layer.index > 0, layer is not self.layers[-1]
        gains, n_maps = _gains_through_time(layer, has_below=has_below)
        shapes = [
            (n_rows, layer.variables, layer.hidden),
            (n_rows, layer.hidden),
            (n_rows, n_maps, layer.hidden),
        ]
        column = (n_maps - layer.pattern.n_inputs) * layer.hidden if has_below else 0
        kernel = getattr(gated_kernels, f"{verb}_rows")
        weights = tuple(w.numpy() for w in self._weights(verb, layer))
        rest = _pairs(layer.pattern.carry), gains, _slopes(layer), *self._buffers(q, shapes)
        work = 2 * n_rows * q.shape[2] * n_maps * layer.hidden**2
        bounds = threads.split(n_rows, threads.enough(work), _ROWS)

        def run(gemm: int, d: np.ndarray, start: int, part: tuple[int, int]) -> None:
            where = start, layer.first_variable, has_below, has_above, full_state, column
            arrays = layer.by_variable(q).numpy(), layer.by_variable(v).numpy(), passed.numpy(), d
            kernel(gemm, weights, *arrays, *rest, where, part)

        self._over_time(_diagonals(layer, verb, window), bounds, run)

    def _recur_by_trials(
        self, verb: str, layer: Layer, q: Tensor, v: Tensor, window: slice | None
    ) -> None:
        """Run a recursion with the Jacobian of each step, assembled."""
        from kpops.engines.cpu import gated_assembled_kernels

        n_block, n_trials = q.shape[:2]
        columns = layer.variables * layer.hidden
        shape = n_block * n_trials, layer.variables, layer.hidden
        kernel = getattr(gated_assembled_kernels, f"{verb}_trials")
        weight = self._weights(verb, layer)[0].numpy()
        pattern = _pairs(layer.pattern.carry), _pairs(layer.pattern.recurrent), _slopes(layer)
        buffers = self._buffers(q, [shape, shape])
        few = math.ceil(n_trials / (4 * torch.get_num_threads()))
        bounds = threads.split(n_trials, torch.get_num_threads(), few)
        of_matrix = (layer.hidden, columns) if verb == "propagate" else (columns, layer.hidden)

        def run(gemm: int, d: np.ndarray, start: int, part: tuple[int, int]) -> None:
            matrix = q.new_empty(of_matrix).numpy()
            arrays = layer.by_variable(q).numpy(), layer.by_variable(v).numpy(), d
            kernel(gemm, weight, *arrays, *pattern, *buffers, matrix, start, part)

        self._over_time(_diagonals(layer, verb, window), bounds, run)

    def _over_time(
        self,
        diagonals: Iterator[tuple[int, np.ndarray]],
        bounds: list[int],
        run: Callable[[int, np.ndarray, int, tuple[int, int]], None],
    ) -> None:
        """Call run(gemm, diagonals, first step, part) for all segments, and parts on all cores."""
        from kpops.engines.cpu import blas

        gemm = blas.gemm_address(numpy_dtype(self.trajectory.states.dtype))
        for start, d in diagonals:

            def task(i: int, d: np.ndarray = d, start: int = start) -> None:
                run(gemm, d, start, (bounds[i], bounds[i + 1]))

            threads.each(task, len(bounds) - 1)

    def _weights(self, verb: str, layer: Layer) -> tuple[Tensor, Tensor]:
        """W and U of a layer, U empty for the first; to propagate W^T and U^T."""
        below = layer.input_weight if layer.index > 0 else None
        both = layer.recurrent_weight, layer.previous.new_empty(0, 0) if below is None else below
        if verb == "backpropagate":
            return both[0].contiguous(), both[1].contiguous()
        if layer.index not in self._transposed:
            w, u = (w.mT.clone(memory_format=torch.contiguous_format) for w in both)
            self._transposed[layer.index] = w, u
        return self._transposed[layer.index]

    # Single steps.

    def _pass_up(self, increment: Tensor) -> Tensor:
        for below, layer in zip(self.layers[:-1], self.layers[1:], strict=True):
            self._pass("up", "propagate", below, layer, increment)
        return increment

    def _pass_down(self, cotangent: Tensor) -> Tensor:
        if len(self.layers) == 1:
            return cotangent
        cotangent = cotangent.clone(memory_format=torch.contiguous_format)
        pairs = zip(self.layers[-2::-1], self.layers[:0:-1], strict=True)
        for below, layer in pairs:
            self._pass("down", "backpropagate", below, layer, cotangent)
        return cotangent

    def _pass(self, way: str, verb: str, below: Layer, layer: Layer, v: Tensor) -> None:
        """Add to v in one layer what it takes from the other in the same step."""
        from kpops.engines.cpu import gated_kernels

        kernel = getattr(gated_kernels, f"pass_{way}_rows")
        weight = self._weights(verb, layer)[1].numpy()
        inputs = _pairs(layer.pattern.inputs)
        shape = gated_kernels.CHUNK, layer.pattern.n_inputs, layer.hidden

        def run(gemm: int, d: np.ndarray, start: int, part: tuple[int, int]) -> None:
            where = start, layer.first_variable, below.first_variable
            room = v.new_empty(shape).numpy()
            kernel(gemm, weight, layer.by_variable(v).numpy(), d, inputs, room, where, part)

        n_rows = v.shape[0] * v.shape[1]
        bounds = threads.split(n_rows, torch.get_num_threads(), n_rows)
        self._over_time(_diagonals(layer, verb), bounds, run)

    def assembled_from(self, layer: Layer) -> int | None:
        """Size of blocks from which the Jacobians of a layer are assembled; None for never."""
        if len(self.layers) > 1:
            return None  # layers would have to wait for each other's whole trajectories
        if layer.pattern.n_recurrent <= layer.variables or len(layer.pattern.slopes) != 1:
            return None  # nothing would be saved
        return _WIDE if layer.recurrent_weight.nbytes <= _CACHE_BYTES else _WIDE_OUTSIDE

    def _assembles(self, layer: Layer, n_block: int, n_trials: int) -> bool:
        wide = self.assembled_from(layer)
        return wide is not None and n_block >= wide and n_trials >= torch.get_num_threads()

    @property
    def remark(self) -> str:
        """How blocks are taken."""
        wide = self.assembled_from(self.layers[0])
        return "" if wide is None else f"in blocks from {wide} vectors by assembled Jacobians"

    def _buffers(self, like: Tensor, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
        """Room of these shapes, kept for the next product; the first is set to zero."""
        key = tuple(shapes)
        if key not in self._room:
            self._room = {key: [like.new_empty(shape).numpy() for shape in shapes]}
        self._room[key][0].fill(0)  # NumPy's way: threads of torch would spin on, in ours
        return self._room[key]

    # K.

    def _apply_gram(self, layer: Layer, gram: Gram, q: Tensor, into: Tensor) -> None:
        from kpops.engines.cpu.gram import CompiledGram

        moved = {v for part in gram.parts for v, _ in part.gains}
        for v in set(range(layer.variables)) - moved:
            first = layer.units.start + v * layer.hidden
            into[..., first : first + layer.hidden] = 0
        CompiledGram(gram).apply(q.contiguous(), into)

    def _factor_vjp(self, layer: Layer, gram: Gram, q: Tensor) -> Tensor:
        from kpops.engines.cpu.gram import CompiledGram

        return gram.flat(CompiledGram(gram).vjp(q.contiguous()))

    def _factor_jvp(self, layer: Layer, gram: Gram, w: Tensor, into: Tensor) -> None:
        from kpops.engines.cpu.gram import CompiledGram

        CompiledGram(gram).jvp(gram.split(w), into)


def _diagonals(
    layer: Layer, verb: str, window: slice | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """First steps and diagonals of the segments, in the order of `verb`; or of a window.

    Before the steps of a window stands the push that they take along, whose own are not used.
    """
    if window is not None:
        d = layer.diagonals(slice(max(0, window.start - 1), window.stop))
        d = d if window.start > 0 else torch.cat([d[:, :, :1], d], dim=2)
        yield 0, d.movedim(0, 2).contiguous().numpy()
        return
    for segment in layer.segments()[:: -1 if verb == "backpropagate" else 1]:
        yield segment.start, layer.diagonals(segment).movedim(0, 2).contiguous().numpy()


def _gains_through_time(layer: Layer, *, has_below: bool) -> tuple[np.ndarray, int]:
    """Diagonals that recurrent maps, and input maps from a layer below, meet; number of maps.

    Input maps have numbers behind the recurrent ones, or the same where they meet the same
    diagonals, so that their sum is all that counts.
    """
    pattern = layer.pattern
    n_maps = pattern.n_recurrent
    same = pattern.inputs == pattern.recurrent and pattern.n_inputs == n_maps
    if same or not has_below:
        return _pairs(pattern.recurrent), n_maps
    shifted = tuple((v, n_maps + g, p) for v, g, p in pattern.inputs)
    return _pairs(pattern.recurrent + shifted), n_maps + pattern.n_inputs


def _pairs(pairs: Pairs) -> np.ndarray:
    return np.array(pairs, dtype=np.int64).reshape(-1, 3)


def _slopes(layer: Layer) -> np.ndarray:
    """Pairs (variable, diagonal); -1 stands for the identity."""
    slopes = [(w, -1 if p is None else p) for w, p in layer.pattern.slopes]
    return np.array(slopes, dtype=np.int64).reshape(-1, 2)
