"""K of one gated layer compiled for the CPU.

K is split by vectors and, where there are too few of those for all cores, by rows (trial and
time): each task of rows then has sums of its own, which are added up between the two halves
``w = Z^T (D q)`` and ``D (Z w)``. Split by units it would be slower, since products with few
columns are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kpops.arrays import numpy_dtype
from kpops.engines import threads
from kpops.engines.cpu import blas, gated_kernels
from kpops.engines.gated.gram import Gram

# Bytes of what a task makes of its rows at a time, of which there should be some: that should fit
# in a core's second cache, beside the factors and the sums.
_CHUNK_BYTES, _LEAST_ROWS = 2**18, 64
# Bytes of the sums over (trial, time) of the vectors that a thread takes at a time; the same.
_SUMS_BYTES = 2**20


class CompiledGram:
    """The actions of a :class:`kpops.engines.gated.gram.Gram`, parallel.

    Vectors (block, trial, time, unit) are those of the whole stack, in row-major order.

    Parameters
    ----------
    gram : Gram
        K of the layer.
    """

    def __init__(self, gram: Gram) -> None:
        self.gram = gram
        self.layer = gram.layer
        self.gemm = blas.gemm_address(numpy_dtype(self.layer.previous.dtype))
        gains: list[tuple[int, int, int, bool]] = []
        for i, part in enumerate(gram.parts):
            for v, p in part.gains:
                gains.append((i, v, p, v not in [g[1] for g in gains]))
        self.gains = np.array(gains, dtype=np.int64)
        self.runs = np.array(_runs(gram), dtype=np.int64)

    def apply(self, q: Tensor, into: Tensor) -> None:
        """Write K q into the layer's units of `into`."""
        for some in self._groups(len(q)):
            self._spread(self._gather(q[some]), into[some])

    def vjp(self, q: Tensor) -> list[list[Tensor]]:
        """F* q: for each part and each of its factors, (block, rank, hidden)."""
        cotangent = [
            [q.new_empty(len(q), z.shape[-1], self.layer.hidden) for z in self.gram.of(part)]
            for part in self.gram.parts
        ]
        for some in self._groups(len(q)):
            for w, total in self._pairs(cotangent, self._gather(q[some])):
                w[some] = torch.from_numpy(total)
        return cotangent

    def jvp(self, cotangent: list[list[Tensor]], into: Tensor) -> None:
        """Write F w into the layer's units of `into`."""
        for some in self._groups(len(into)):
            sums = self._room(1, len(into[some]))
            for w, total in self._pairs(cotangent, sums):
                total[:] = w[some].numpy()
            self._spread(sums, into[some])

    def _gather(self, q: Tensor) -> list[np.ndarray]:
        """The sums of all vectors, as of one task of rows."""
        sums = self._room(self._tasks(len(q))[1], len(q))
        self._run(gated_kernels.gather, q, sums)
        return [total.sum(0, keepdims=True) if len(total) > 1 else total for total in sums]

    def _spread(self, sums: list[np.ndarray], into: Tensor) -> None:
        """Hand them out."""
        self._run(gated_kernels.spread, into, sums)

    def _run(self, kernel: Callable[..., Any], q: Tensor, sums: list[np.ndarray]) -> None:
        """Run a kernel over tasks of vectors and rows, segment after segment."""
        layer = self.layer
        vectors, by_rows = self._tasks(len(q))
        per_row = len(self.gram.parts) * layer.hidden * q.element_size()
        n_rows = max(_LEAST_ROWS, _CHUNK_BYTES // per_row)
        for segment in layer.segments():
            d = layer.diagonals(segment).movedim(0, 2).contiguous()
            factors, x = self.gram.factors, q
            if d.shape[1] == q.shape[2]:  # whole trials side by side as one, for larger products
                d, *factors = (z.flatten(0, 1).unsqueeze(0) for z in (d, *factors))
                x = q.flatten(1, 2).unsqueeze(1)
            arrays = d.numpy(), tuple(z.numpy() for z in factors), layer.by_variable(x).numpy()
            chunks = threads.split(len(d) * -(-d.shape[1] // n_rows), by_rows, 2**62)
            n_vectors, n_chunks = len(vectors) - 1, len(chunks) - 1

            def task(
                i: int,
                arrays: tuple[Any, ...] = arrays,
                start: int = segment.start,
                chunks: list[int] = chunks,
                n_chunks: int = n_chunks,
            ) -> None:
                k, r = divmod(i, n_chunks)
                y = q.new_empty(n_rows, len(self.gram.parts), layer.hidden).numpy()
                of_task = tuple(total[r % len(total)] for total in sums)
                where = start, layer.first_variable, *vectors[k : k + 2], *chunks[r : r + 2]
                kernel(self.gemm, *arrays, of_task, self.gains, self.runs, y, where)

            threads.each(task, n_vectors * n_chunks)

    def _tasks(self, n_vectors: int) -> tuple[list[int], int]:
        """Bounds of the vectors of a task, and into how many tasks the rows are split."""
        n = torch.get_num_threads()
        if n_vectors % n == 0 or n_vectors >= 4 * n:
            return threads.split(n_vectors, n, n_vectors), 1
        return [0, n_vectors], n

    def _groups(self, n_vectors: int) -> Iterator[slice]:
        """Vectors of the block that are taken together."""
        per_vector = sum(total.nbytes for total in self._room(1, 1))
        size = max(1, torch.get_num_threads() * _SUMS_BYTES // per_vector)
        for start in range(0, n_vectors, size):
            yield slice(start, start + size)

    def _room(self, n_tasks: int, n_vectors: int) -> list[np.ndarray]:
        """Zeros for each factor, (task of rows, vector, rank, part * hidden)."""
        columns = len(self.gram.parts) * self.layer.hidden
        shapes = [(n_tasks, n_vectors, z.shape[-1], columns) for z in self.gram.factors]
        return [np.zeros(shape, numpy_dtype(self.layer.previous.dtype)) for shape in shapes]

    def _pairs(
        self, cotangent: list[list[Tensor]], sums: list[np.ndarray]
    ) -> Iterator[tuple[Tensor, np.ndarray]]:
        """Views of the same coefficients of F, part by part."""
        hidden = self.layer.hidden
        for p, part in enumerate(self.gram.parts):
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
