"""Derivatives of a function of rows, at all rows at once.

A step of a recurrence at its own trajectory, and a readout of it, are the same kind of thing: a
map ``y[r] = f(theta, x[r], h[r])`` of independent rows r = (trial, time). Time plays no part, so
one call covers the whole trajectory and every vector of a block.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from kpops.engines.differential import Differential
from kpops.engines.threads import enough_for

RowFunction = Callable[[dict[str, Tensor], Tensor, Tensor], Tensor]

# One call covers a chunk of rows small enough for its temporaries to stay in the cache and in the
# allocator's hands (fresh pages cost more than the arithmetic on them), and a chunk of vectors
# that bounds all temporaries together. A GPU wants few and large launches instead.
_ROW_BYTES = defaultdict(lambda: 2**26, cpu=2**20)
_BLOCK_BYTES = defaultdict(lambda: 2**32, cpu=2**26)
# Temporaries of the size of the rows that a cell's gates and their tangents take, about.
TEMPORARIES = 24


class _Maps(NamedTuple):
    """D and D^T on a chunk of rows."""

    where: slice
    rows: Rowwise
    D: Differential


class Rowwise:
    """Jacobian actions of ``f(theta, x, h)`` by torch.func.

    Parameters
    ----------
    function : callable
        ``function(parameters, x, h) -> y`` on rows: (row, feature), (row, unit) -> (row, output).
    parameters : dict of str to Tensor
        The parameters that learn.
    x, h : Tensor, shapes (row, feature) and (row, unit)
        Where the derivatives are taken.
    keep : bool
        Keep the linear maps D and D^T once they are made, which saves half of the work of each
        product and costs some `TEMPORARIES` numbers per row and unit. Else nothing is stored but
        the rows.

    Notes
    -----
    With ``A[r] = dy[r]/dh[r]`` and ``D[r] = dy[r]/dtheta``:

    ============== ========================= =====================
    verb           action                    shapes
    ============== ========================= =====================
    state_jvp      v -> A[r] v[r]            (k, R, S) -> (k, R, O)
    state_vjp      a -> A[r]^T a[r]          (k, R, O) -> (k, R, S)
    parameter_jvp  dtheta -> D[r] dtheta     (k, p) -> (k, R, O)
    parameter_vjp  q -> sum_r D[r]^T q[r]    (k, R, O) -> (k, p)
    ============== ========================= =====================
    """

    def __init__(
        self,
        function: RowFunction,
        parameters: dict[str, Tensor],
        x: Tensor,
        h: Tensor,
        *,
        keep: bool = False,
    ) -> None:
        self.function = function
        self.parameters = parameters
        self.x = x
        self.h = h
        self.keep = keep
        self._kept: tuple[tuple[str, ...], list[_Maps]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}  # closures cannot be pickled

    def state_jvp(self, v: Tensor) -> Tensor:
        """Apply A to every vector of the block."""

        def on_chunk(part: Rowwise, v: Tensor) -> Tensor:
            return part._each(part._state_differential().jvp, v)

        return torch.cat([on_chunk(part, v[:, s]) for s, part in self._chunks()], dim=1)

    def state_vjp(self, a: Tensor) -> Tensor:
        """Apply A^T to every vector of the block."""

        def on_chunk(part: Rowwise, a: Tensor) -> Tensor:
            return part._each(part._state_differential().vjp, a)

        return torch.cat([on_chunk(part, a[:, s]) for s, part in self._chunks()], dim=1)

    def parameter_jvp(self, dtheta: Tensor, names: Sequence[str]) -> Tensor:
        """Apply D, restricted to the parameters `names` in this order."""

        def on_chunk(maps: _Maps) -> Tensor:
            jvp = maps.D.jvp
            return maps.rows._each(lambda u: jvp(self._split(u, names)), dtheta)

        return torch.cat([on_chunk(maps) for maps in self._parameter_maps(names)], dim=1)

    def parameter_vjp(self, q: Tensor, names: Sequence[str]) -> Tensor:
        """Apply D^T, restricted to the parameters `names` in this order."""

        def on_chunk(maps: _Maps) -> Tensor:
            def flat(u: Tensor) -> Tensor:
                gradients = maps.D.vjp(u)
                return torch.cat([gradients[name].reshape(-1) for name in names])

            return maps.rows._each(flat, q[:, maps.where])

        total = q.new_zeros(len(q), sum(self.sizes(names)))
        for maps in self._parameter_maps(names):
            total += on_chunk(maps)
        return total

    def state_jacobians(self) -> Tensor:
        """All A[r] at once, shape (row, output, unit)."""
        n_outputs = self._n_outputs()
        n_rows, n_units = self.h.shape
        jacobians = self.h.new_empty(n_rows, n_outputs, n_units)
        basis = torch.eye(n_outputs, dtype=self.h.dtype, device=self.h.device)
        # Each row is differentiated n_outputs times. These many small products share one forward
        # pass, which pays for temporaries somewhat larger than the cache.
        for s, part in self._chunks(copies=max(1, n_outputs // 16)):
            A = part._state_differential()
            cotangents = basis[:, None].expand(-1, len(part.h), -1)
            # With out_dims=1, vmap fails where the function does not depend on h.
            jacobians[s] = vmap(A.vjp)(cotangents).transpose(0, 1)
        return jacobians

    def sizes(self, names: Sequence[str]) -> list[int]:
        """Number of entries of each of the parameters `names`."""
        return [self.parameters[name].numel() for name in names]

    def _n_outputs(self) -> int:
        return Rowwise(self.function, {}, self.x[:1], self.h[:1])._of_state(self.h[:1]).shape[1]

    def _state_differential(self) -> Differential:
        return Differential(self._of_state, self.h)

    def _of_state(self, h: Tensor) -> Tensor:
        return self.function(self.parameters, self.x, h)

    def _of_parameters(self, parameters: dict[str, Tensor]) -> Tensor:
        return self.function({**self.parameters, **parameters}, self.x, self.h)

    def _parameter_maps(self, names: Sequence[str]) -> Iterable[_Maps]:
        """D and D^T of every chunk: kept from the last call, or made when asked for."""
        if not self.keep:
            return self._make_parameter_maps(names)
        if self._kept is None or self._kept[0] != tuple(names):
            self._kept = tuple(names), list(self._make_parameter_maps(names))
        return self._kept[1]

    def _make_parameter_maps(self, names: Sequence[str]) -> Iterator[_Maps]:
        point = {name: self.parameters[name] for name in names}
        for where, part in self._chunks():
            yield _Maps(where, part, Differential(part._of_parameters, point))

    def _split(self, dtheta: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        parts = dtheta.split(self.sizes(names))
        shaped = (p.reshape(self.parameters[n].shape) for n, p in zip(names, parts, strict=True))
        return dict(zip(names, shaped, strict=True))

    def _chunks(self, copies: int = 1) -> Iterator[tuple[slice, Rowwise]]:
        """Chunks of rows whose size allows for so many `copies` of each."""
        per_row = copies * self.h.shape[1] * self.h.element_size()
        size = max(1, _ROW_BYTES[self.h.device.type] // per_row)
        for start in range(0, len(self.h), size):
            s = slice(start, start + size)
            yield s, Rowwise(self.function, self.parameters, self.x[s], self.h[s])

    def _each(self, action: Callable[[Tensor], Tensor], block: Tensor) -> Tensor:
        per_vector = TEMPORARIES * self.h.numel() * self.h.element_size()
        chunk = max(1, _BLOCK_BYTES[self.h.device.type] // per_vector)
        with enough_for(2 * min(len(block), chunk) * self.h.numel() * self.h.shape[1]):
            if len(block) == 1:  # no vmap: its bookkeeping would double the cost of few flops
                return action(block[0])[None]
            return vmap(action, chunk_size=chunk)(block)
