"""K of one gated layer compiled for the CPU.

K is split by vectors and, where these are too few for all cores, by rows (trial and time). Each
task of rows then has sums of its own, which are added between the two halves ``w = Z^T (D q)`` and
``D (Z w)``. To split by units would be slower, since matrix products with few columns are slow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kpops.arrays import numpy_dtype
from kpops.engines import threads
from kpops.engines.cpu import blas, gated_kernels
from kpops.engines.cpu.arguments import Span, by_variable, terms
from kpops.engines.gated.gram import Cotangent, Gram
from kpops.engines.gated.layer import Layer
from kpops.engines.trajectory import Block

# Bytes of a chunk of rows, and its least number of rows: it should fit in a core's second cache,
# beside the factors and the sums.
_CHUNK_BYTES, _LEAST_ROWS = 2**18, 64
# Bytes of the sums over (trial, time) of the vectors that a thread takes at a time, likewise.
_SUMS_BYTES = 2**20


class CompiledGram(Gram):
    """K of a layer, compiled and parallel."""

    def __init__(self, layer: Layer, weights: dict[str, tuple[bool, bool]]) -> None:
        super().__init__(layer, weights)
        self.dtype = numpy_dtype(layer.previous.dtype)
        self.gemm = blas.gemm_address(self.dtype)
        self.columns = len(self.parts) * layer.hidden
        self.size_of_factors = sum(z.numel() for z in self.factors)
        places = [(i, v, p) for i, part in enumerate(self.parts) for v, p in part.gains]
        gains = [(i, layer.first_variable + v, p) for i, v, p in places]
        self.gathered = terms(gains, swapped=False, first=True)
        self.spread = terms(gains, swapped=True, first=True)
        self.runs = np.array(_runs(self), dtype=np.int64)
        self.unmoved = set(range(layer.variables)) - {v for _, v, _ in places}

    def apply(self, q: Block, into: Block) -> None:
        """Write K q into `into`."""
        q, layer = q.contiguous(), self.layer
        for v in self.unmoved:
            first = layer.units.start + v * layer.hidden
            into[..., first : first + layer.hidden] = 0
        for some in self._groups(q.shape[0]):
            self._run(gated_kernels.spread, self.spread, into[some], self._gather(q[some]))

    def vjp(self, q: Block) -> Cotangent:
        """F* q."""
        q = q.contiguous()
        cotangent = [
            [q.new_empty(len(q), z.shape[-1], self.layer.hidden) for z in self.of(part)]
            for part in self.parts
        ]
        for some in self._groups(len(q)):
            for w, total in self._views(cotangent, self._gather(q[some])):
                w[some] = torch.from_numpy(total)
        return cotangent

    def jvp(self, cotangent: Cotangent, into: Block) -> None:
        """Write F w into `into`, which is zero there."""
        for some in self._groups(len(into)):
            sums = self._room(1, len(into[some]))
            for w, total in self._views(cotangent, sums):
                total[:] = w[some].numpy()
            self._run(gated_kernels.spread, self.spread, into[some], sums)

    def _gather(self, q: Block) -> list[np.ndarray]:
        """The sums of all vectors, as of one task of rows."""
        sums = self._room(self._tasks(q.shape[0])[1], q.shape[0])
        self._run(gated_kernels.gather, self.gathered, q, sums)
        return [total.sum(0, keepdims=True) if len(total) > 1 else total for total in sums]

    def _run(
        self, kernel: Callable[..., Any], added: np.ndarray, q: Block, sums: list[np.ndarray]
    ) -> None:
        """Run a kernel over tasks of vectors and rows, segment after segment."""
        layer = self.layer
        n_vectors = q.shape[0]
        bounds, by_rows = self._tasks(n_vectors)
        vectors = [Span(*pair) for pair in pairwise(bounds)]
        n_rows = max(_LEAST_ROWS, _CHUNK_BYTES // (self.columns * self.dtype.itemsize))
        factors = tuple(z.numpy() for z in self.factors)
        for start, d in layer.by_step():
            (x,), arrays = by_variable(layer, q), (d, *factors)
            if d.shape[1] == q.shape[2]:  # whole trials side by side as one, for larger products
                arrays = tuple(a.reshape(1, -1, *a.shape[2:]) for a in arrays)
                x = x.reshape(n_vectors, 1, -1, *x.shape[3:])
            n_chunks = len(arrays[0]) * -(-arrays[0].shape[1] // n_rows)
            bounds = threads.split(n_chunks, by_rows, 2**62)
            tasks = [(k, r, c) for k in vectors for r, c in enumerate(pairwise(bounds))]

            def task(i: int, arrays: tuple[Any, ...], start: int, tasks: list[Any]) -> None:
                span, r, chunks = tasks[i]
                y = np.empty((n_rows, len(self.parts), layer.hidden), self.dtype)
                own = tuple(total[r % len(total)] for total in sums)
                kernel(self.gemm, *arrays, own, added, self.runs, y, start, span, Span(*chunks))

            given = arrays[0], arrays[1:], x
            run = partial(task, arrays=given, start=start, tasks=tasks)
            threads.each(run, len(tasks), self._flops(n_vectors))

    def _tasks(self, n_vectors: int) -> tuple[list[int], int]:
        """Bounds of the vectors of a task, and into how many tasks the rows are split."""
        n = threads.enough(self._flops(n_vectors))
        if n_vectors % n == 0 or n_vectors >= 4 * n:
            return threads.split(n_vectors, n, n_vectors), 1
        return [0, n_vectors], n

    def _flops(self, n_vectors: int) -> int:
        """Operations of one half of K on so many vectors."""
        return 2 * n_vectors * self.size_of_factors * self.columns

    def _groups(self, n_vectors: int) -> Iterator[slice]:
        """Vectors of the block that are taken together; none if nothing learns."""
        if not self.parts:
            return
        rank = sum(z.shape[-1] for z in self.factors)
        per_vector = rank * self.columns * self.dtype.itemsize
        size = max(1, torch.get_num_threads() * _SUMS_BYTES // per_vector)
        for start in range(0, n_vectors, size):
            yield slice(start, start + size)

    def _room(self, n_tasks: int, n_vectors: int) -> list[np.ndarray]:
        """Zeros for each factor, (task of rows, vector, rank, part * hidden)."""
        shapes = [(n_tasks, n_vectors, z.shape[-1], self.columns) for z in self.factors]
        return [np.zeros(shape, self.dtype) for shape in shapes]

    def _views(
        self, cotangent: Cotangent, sums: list[np.ndarray]
    ) -> Iterator[tuple[Tensor, np.ndarray]]:
        """Views of the same coefficients of F, part by part."""
        hidden = self.layer.hidden
        for p, part in enumerate(self.parts):
            for w, factor in zip(cotangent[p], part.factors, strict=True):
                yield w, sums[factor][0, ..., p * hidden : (p + 1) * hidden]


def _runs(gram: Gram) -> list[tuple[int, int, int, bool]]:
    """Products with a factor: (factor, first part, last part + 1, whether the parts' first).

    Parts that follow each other are taken side by side.
    """
    runs: list[tuple[int, int, int, bool]] = []
    for factor in range(len(gram.factors)):
        for p, part in enumerate(gram.parts):
            if factor not in part.factors:
                continue
            begins = part.factors[0] == factor
            last = runs[-1] if runs else None
            if last is not None and (last[0], last[2], last[3]) == (factor, p, begins):
                runs[-1] = (factor, last[1], p + 1, begins)
            else:
                runs.append((factor, p, p + 1, begins))
    return runs
