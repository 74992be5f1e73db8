"""The gated engine compiled for the CPU.

The recursions of P and P* are split by rows, the pairs of a trial and a vector of the block: a
task takes its rows through the whole of time, one product with the weights per step, and never
waits for another. K is split by units and vectors, over which it is block diagonal.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kpops.engines.gated import GatedEngine
from kpops.engines.gated_layer import Layer
from kpops.engines.gram import Gram
from kpops.models.gated import GatedRecurrence
from kpops.models.recurrence import Recurrence

# Rows of a task of P, and units of a task of K, at most: what a task works on, beside the weights,
# should fit in a core's second cache.
_ROWS = 192
_UNITS = 256
# Vectors from which the Jacobian of a step is assembled: with weights that stay in a core's cache,
# and with larger ones, which assembling reads from afar for every trial.
_CACHE_BYTES = 2**20
_WIDE, _WIDE_OUTSIDE = 32, 128
# Bytes of the sums over (trial, time) of the vectors that a thread of K takes at a time; the same.
_SUMS_BYTES = 2**20


class GatedNumbaEngine(GatedEngine):
    """The engine `gated` with P, P* and K compiled by Numba, parallel and without barriers."""

    name = "gated_numba"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._room: dict[tuple, list[np.ndarray]] = {}  # of the last product
        self._transposed: dict[int, Tensor] = {}  # W^T of each layer

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_room": {}, "_transposed": {}}

    @staticmethod
    def refuses(recurrence: Recurrence, device: torch.device) -> str | None:
        """Why this engine cannot linearise the recurrence, or None."""
        if device.type != "cpu":
            return f"compiled for the CPU, the model is on {device}: use engine='gated'"
        return GatedEngine.refuses(recurrence, device)

    @staticmethod
    def bytes_of_weights(recurrence: Recurrence) -> int:
        """W^T of each layer."""
        assert isinstance(recurrence, GatedRecurrence)
        return sum(recurrence.weight(maps.recurrent).nbytes for maps in recurrence.layers)

    def _propagate_layer(self, layer: Layer, q: Tensor, v: Tensor) -> None:
        if layer.index not in self._transposed:
            weight = layer.recurrent_weight
            self._transposed[layer.index] = weight.mT.clone(memory_format=torch.contiguous_format)
        self._recur("propagate", layer, self._transposed[layer.index], q, v, layer.segments())

    def _backpropagate_layer(self, layer: Layer, a: Tensor, v: Tensor) -> None:
        self._recur("backpropagate", layer, layer.recurrent_weight, a, v, layer.segments()[::-1])

    def _recur(
        self, verb: str, layer: Layer, weight: Tensor, q: Tensor, v: Tensor, segments: list[slice]
    ) -> None:
        """Run a recursion over segments of time: by rows or, in wide blocks, by trials."""
        from kpops.engines import blas, gated_assembled, gated_kernels, threads

        n_block, n_trials = q.shape[:2]
        assembled = self._assembles(layer, n_block, n_trials)
        # Tasks share none of the rows: room for their state, and for what the kernel makes of it.
        shapes: list[tuple[int, ...]] = [(layer.variables, n_block * n_trials, layer.hidden)]
        if assembled:
            kernel = getattr(gated_assembled, f"{verb}_trials")
            few = math.ceil(n_trials / (4 * torch.get_num_threads()))
            bounds = _split(n_trials, torch.get_num_threads(), few)
            shapes.append((n_block * n_trials, layer.variables * layer.hidden))
        else:
            kernel = getattr(gated_kernels, f"{verb}_rows")
            bounds = _split(n_block * n_trials, torch.get_num_threads(), _ROWS)
            shapes.append((n_block * n_trials, layer.hidden))
            shapes.append((n_block * n_trials, layer.pattern.n_recurrent * layer.hidden))
        buffers = self._buffers(q, shapes)
        arrays = [a.numpy() for a in (weight.contiguous(), q.contiguous(), v)]
        gemm, pattern = blas.gemm_address(arrays[0].dtype), _pattern(layer)
        for segment in segments:
            d, start = layer.diagonals(segment).numpy(), segment.start

            def task(i: int, d: np.ndarray = d, start: int = start) -> None:
                room = [self._matrix(layer, verb)] if assembled else []
                part = bounds[i], bounds[i + 1]
                kernel(gemm, *arrays, d, start, layer.units.start, *pattern, *buffers, *room, part)

            threads.each(task, len(bounds) - 1)

    def assembled_from(self, layer: Layer) -> int | None:
        """Size of blocks from which the Jacobians of a layer are assembled; None for never."""
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

    def _matrix(self, layer: Layer, verb: str) -> np.ndarray:
        rows, columns = layer.hidden, layer.variables * layer.hidden
        shape = (rows, columns) if verb == "propagate" else (columns, rows)
        return layer.previous.new_empty(shape).numpy()

    def _buffers(self, like: Tensor, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
        """Room of these shapes, kept for the next product; the first is set to zero."""
        key = tuple(shapes)
        if key not in self._room:
            self._room = {key: [like.new_empty(shape).numpy() for shape in shapes]}
        self._room[key][0].fill(0)  # NumPy's way: threads of torch would spin on, in ours
        return self._room[key]

    def _apply_gram(self, layer: Layer, gram: Gram, q: Tensor, into: Tensor) -> None:
        moved = {v for part in gram.parts for v, _ in part.gains}
        for v in set(range(layer.variables)) - moved:
            first = layer.units.start + v * layer.hidden
            into[..., first : first + layer.hidden] = 0
        for some in self._groups(gram, q):
            self._over_units(layer, gram, ("gather", "spread"), q[some], into[some])

    def _pull_factor(self, layer: Layer, gram: Gram, q: Tensor) -> Tensor:
        room = q.new_empty(len(q), gram.width)
        for some in self._groups(gram, q):
            sums = self._over_units(layer, gram, ("gather",), q[some], q[some])
            room[some] = gram.flat(
                [[sums[i][:, p] for i in part.factors] for p, part in enumerate(gram.parts)]
            )
        return room

    def _push_factor(self, layer: Layer, gram: Gram, w: Tensor, into: Tensor) -> None:
        for some in self._groups(gram, into):
            self._over_units(layer, gram, ("spread",), into[some], into[some], gram.split(w[some]))

    @staticmethod
    def _groups(gram: Gram, q: Tensor) -> list[slice]:
        """Vectors of the block that are taken together."""
        ranks = [gram.factors[i].shape[-1] for part in gram.parts for i in part.factors]
        per_vector = sum(ranks) * gram.layer.hidden * q.element_size()
        size = max(1, torch.get_num_threads() * _SUMS_BYTES // per_vector)
        return [slice(start, start + size) for start in range(0, len(q), size)]

    def _over_units(
        self,
        layer: Layer,
        gram: Gram,
        verbs: tuple[str, ...],
        q: Tensor,
        into: Tensor,
        given: list[list[Tensor]] | None = None,
    ) -> list[Tensor]:
        """Run kernels of K over tasks of units and vectors.

        "gather" sums over time what the units ask of the weights, "spread" hands out what they
        get; between them stand the sums of each factor (vector, part, rank, hidden), which are
        `given` or made here, and returned.
        """
        from kpops.engines import blas, gated_kernels, threads

        q = q.contiguous()
        factors = [*gram.factors, *[q.new_empty(*q.shape[1:3], 0)] * (2 - len(gram.factors))]
        sums = [q.new_empty(len(q), len(gram.parts), z.shape[-1], layer.hidden) for z in factors]
        for part, of_part in enumerate(given or []):
            for i, w in zip(gram.parts[part].factors, of_part, strict=True):
                sums[i][:, part] = w
        rooms = [total.numpy() for total in sums]
        gains, of_parts = _gains(gram)
        gemm = blas.gemm_address(q.numpy().dtype)
        units, vectors = _split_for_gram(layer.hidden, len(q), torch.get_num_threads())
        n_units = len(units) - 1
        kernels = tuple(getattr(gated_kernels, f"{verb}_units") for verb in verbs)
        segments = layer.segments()
        # A task sums over all of time before it spreads; units never wait for each other.
        for now in [kernels] if len(segments) == 1 else [(kernel,) for kernel in kernels]:
            for segment in segments:
                arrays = _as_one_axis(layer.diagonals(segment), factors, q, into)

                def task(
                    i: int,
                    now: tuple = now,
                    arrays: tuple[np.ndarray, ...] = arrays,
                    start: int = segment.start,
                ) -> None:
                    k, u = divmod(i, n_units)
                    y = q.new_empty(gated_kernels.CHUNK, units[u + 1] - units[u]).numpy()
                    where = start, layer.units.start, *units[u : u + 2], *vectors[k : k + 2]
                    for kernel in now:
                        kernel(gemm, *arrays, *rooms, gains, of_parts, y, where)

                threads.each(task, n_units * (len(vectors) - 1))
        return sums


def _as_one_axis(
    d: Tensor, factors: list[Tensor], q: Tensor, into: Tensor
) -> tuple[np.ndarray, ...]:
    """The arrays of K's kernels; whole trials side by side as one, for larger products."""
    if d.shape[2] == q.shape[2]:
        d, q, into = (x.flatten(1, 2).unsqueeze(1) for x in (d, q, into))
        factors = [z.flatten(0, 1).unsqueeze(0) for z in factors]
    return tuple(x.numpy() for x in (d, *factors, q, into))


def _split(size: int, threads: int, largest: int) -> list[int]:
    """Bounds of nearly equal parts: as many for each thread, none above `largest`."""
    n = max(1, min(size, threads * math.ceil(size / (threads * largest))))
    return [round(i * size / n) for i in range(n + 1)]


def _split_for_gram(hidden: int, n_vectors: int, threads: int) -> tuple[list[int], list[int]]:
    """Bounds of the units and of the vectors of the tasks of K.

    Wide rows are faster, so that vectors are shared out where there are enough of them.
    """
    if n_vectors % threads == 0 or n_vectors >= 4 * threads:
        return _split(hidden, 1, _UNITS), _split(n_vectors, threads, n_vectors)
    return _split(hidden, threads, _UNITS), [0, n_vectors]


def _pattern(layer: Layer) -> tuple[np.ndarray, ...]:
    """The pattern as arrays of ints; -1 stands for the identity."""
    slopes = [(w, -1 if p is None else p) for w, p in layer.pattern.slopes]
    return tuple(
        np.array(pairs, dtype=np.int64).reshape(-1, width)
        for pairs, width in ((layer.pattern.carry, 3), (layer.pattern.recurrent, 3), (slopes, 2))
    )


def _gains(gram: Gram) -> tuple[np.ndarray, np.ndarray]:
    """The gains as the kernels of K take them, and which factors each part has."""
    gains: list[tuple[int, int, int, bool]] = []
    for i, part in enumerate(gram.parts):
        for v, p in part.gains:
            gains.append((i, v, p, v not in [g[1] for g in gains]))
    of_parts = [[factor in part.factors for factor in range(2)] for part in gram.parts]
    return np.array(gains, dtype=np.int64), np.array(of_parts)
