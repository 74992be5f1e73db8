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
from kpops.models.recurrence import Recurrence

# Rows of a task at most: their buffers, beside the weights, should fit in a core's second cache.
_ROWS = 192
# Units of a task of K at least.
_UNITS = 16
# Sums over (trial, time) of a group of vectors that K holds together.
_SUMS_BYTES = 2**27


class GatedNumbaEngine(GatedEngine):
    """The engine `gated` with P, P* and K compiled by Numba, parallel and without barriers."""

    name = "gated_numba"

    @staticmethod
    def refuses(recurrence: Recurrence, device: torch.device) -> str | None:
        """Why this engine cannot linearise the recurrence, or None."""
        if device.type != "cpu":
            return f"compiled for the CPU, the model is on {device}: use engine='gated'"
        return GatedEngine.refuses(recurrence, device)

    def _propagate_layer(self, layer: Layer, q: Tensor, v: Tensor) -> None:
        self._recur("propagate_rows", layer, layer.recurrent_weight.mT, q, v, layer.segments())

    def _backpropagate_layer(self, layer: Layer, a: Tensor, v: Tensor) -> None:
        segments = layer.segments()[::-1]
        self._recur("backpropagate_rows", layer, layer.recurrent_weight, a, v, segments)

    def _recur(
        self,
        kernel: str,
        layer: Layer,
        weight: Tensor,
        q: Tensor,
        v: Tensor,
        segments: list[slice],
    ) -> None:
        """Run the recursion of a kernel over segments of time, rows in parallel."""
        from kpops.engines import blas, gated_kernels, threads

        n_rows = q.shape[0] * q.shape[1]
        # Room for the state, the features and the maps of every row; tasks share none of it.
        state = q.new_zeros(layer.variables, n_rows, layer.hidden)
        features = torch.empty_like(state[0])
        maps = q.new_empty(n_rows, layer.pattern.n_recurrent * layer.hidden)
        buffers = [b.numpy() for b in (state, features, maps)]
        arrays = [a.numpy() for a in (weight.contiguous(), q.contiguous(), v)]
        gemm = blas.gemm_address(arrays[0].dtype)
        run, pattern = getattr(gated_kernels, kernel), _pattern(layer)
        bounds = _split(n_rows, torch.get_num_threads(), _ROWS)
        for segment in segments:
            d, start = layer.diagonals(segment).numpy(), segment.start

            def task(i: int, d: np.ndarray = d, start: int = start) -> None:
                rows = bounds[i], bounds[i + 1]
                run(gemm, *arrays, d, start, layer.units.start, *pattern, *buffers, rows)

            threads.each(task, len(bounds) - 1)

    def _apply_gram(self, layer: Layer, gram: Gram, q: Tensor, into: Tensor) -> None:
        moved = {v for part in gram.parts for v, _ in part.gains}
        for v in set(range(layer.variables)) - moved:
            first = layer.units.start + v * layer.hidden
            into[..., first : first + layer.hidden] = 0
        per_vector = len(gram.parts) * layer.hidden * q.element_size()
        per_vector *= sum(z.shape[-1] for z in gram.factors)
        group = max(1, _SUMS_BYTES // max(1, per_vector))
        q = q.contiguous()
        for start in range(0, len(q), group):
            self._apply_gram_to(layer, gram, q[start : start + group], into[start : start + group])

    def _apply_gram_to(self, layer: Layer, gram: Gram, q: Tensor, into: Tensor) -> None:
        from kpops.engines import blas, gated_kernels, threads

        factors = [*gram.factors, *[q.new_empty(*q.shape[1:3], 0)] * (2 - len(gram.factors))]
        sums = [q.new_empty(len(q), len(gram.parts), z.shape[-1], layer.hidden) for z in factors]
        gains, of_parts = _gains(gram)
        gemm = blas.gemm_address(q.numpy().dtype)
        # As many pieces of the units as give all threads the same number of tasks.
        pieces = torch.get_num_threads() // math.gcd(torch.get_num_threads(), len(q))
        units = _split(layer.hidden, pieces, layer.hidden, multiple=_UNITS)
        n_pieces = len(units) - 1
        for kernel in (gated_kernels.gather_units, gated_kernels.spread_units):
            for segment in layer.segments():
                arrays = _as_one_axis(layer.diagonals(segment), factors, q, into)

                def task(
                    i: int,
                    kernel: Any = kernel,
                    arrays: tuple[np.ndarray, ...] = arrays,
                    start: int = segment.start,
                ) -> None:
                    k, piece = divmod(i, n_pieces)
                    first, last = units[piece], units[piece + 1]
                    where = k, start, layer.units.start, first, last
                    y = q.new_empty(gated_kernels.CHUNK, last - first).numpy()
                    of_vector = (s[k].numpy() for s in sums)
                    kernel(gemm, *arrays, *of_vector, gains, of_parts, y, where)

                threads.each(task, len(q) * n_pieces)


def _as_one_axis(
    d: Tensor, factors: list[Tensor], q: Tensor, into: Tensor
) -> tuple[np.ndarray, ...]:
    """The arrays of K's kernels; whole trials side by side as one, for larger products."""
    if d.shape[2] == q.shape[2]:
        d, q, into = (x.flatten(1, 2).unsqueeze(1) for x in (d, q, into))
        factors = [z.flatten(0, 1).unsqueeze(0) for z in factors]
    return tuple(x.numpy() for x in (d, *factors, q, into))


def _split(size: int, pieces: int, largest: int, multiple: int = 1) -> list[int]:
    """Bounds of nearly equal parts, a multiple of `pieces` in number, none above `largest`."""
    rounds = math.ceil(size / (pieces * largest))
    n = max(1, min(size // multiple, pieces * rounds))
    return [round(i * size / n / multiple) * multiple for i in range(n)] + [size]


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
