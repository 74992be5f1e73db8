"""Derivatives of a function of rows, at all rows at once.

A step of a recurrence at its own trajectory, and a readout of it, are the same kind of thing: a
map ``y[r] = f(theta, x[r], h[r])`` of independent rows r = (trial, time). One call covers the whole
trajectory and every vector of a block.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, vjp, vmap

from kpops.engines.differential import Differential
from kpops.engines.matrix_exponential import PreparedExponentials
from kpops.engines.threads import enough_for
from kpops.models.sites import Rows
from kpops.precision import in_full_precision

RowFunction = Callable[[dict[str, Tensor], Any, Tensor], Tensor]
Inputs = Float[Tensor, "row feature"] | Rows
States = Float[Tensor, "row unit"]
Tangents = Float[Tensor, "block row unit"]
Outputs = Float[Tensor, "block row output"]
Parameters = Float[Tensor, "block parameter"]

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
    """Jacobian actions of ``function(theta, x, h)``, on rows (row, output), by torch.func.

    With ``A[r] = dy[r]/dh[r]`` and ``D[r] = dy[r]/dtheta``, for `parameters` that learn:

    ============== ========================
    verb           action
    ============== ========================
    state_jvp      v -> A[r] v[r]
    state_vjp      a -> A[r]^T a[r]
    parameter_jvp  dtheta -> D[r] dtheta
    parameter_vjp  q -> sum_r D[r]^T q[r]
    ============== ========================

    :meth:`second_order` differentiates once more. With `keep`, the maps D and D^T are kept once
    they are made, which saves half of the work of each matvec and costs some `TEMPORARIES` numbers
    per row and unit. Otherwise nothing is stored but the rows.
    """

    def __init__(
        self,
        function: RowFunction,
        parameters: dict[str, Tensor],
        x: Inputs,
        h: States,
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

    def state_jvp(self, v: Tangents) -> Outputs:
        """Apply A to every vector of the block."""
        chunks = self._chunks()
        return torch.cat([part._each(part._of_h().jvp, v[:, s]) for s, part in chunks], dim=1)

    def state_vjp(self, a: Outputs) -> Tangents:
        """Apply A^T to every vector of the block."""
        chunks = self._chunks()
        return torch.cat([part._each(part._of_h().vjp, a[:, s]) for s, part in chunks], dim=1)

    def parameter_jvp(self, dtheta: Parameters, names: Sequence[str]) -> Outputs:
        """Apply D, restricted to the parameters `names` in this order."""

        def on_chunk(maps: _Maps) -> Tensor:
            jvp = maps.D.jvp
            return maps.rows._each(lambda u: jvp(self._split(u, names)), dtheta)

        return torch.cat([on_chunk(maps) for maps in self._parameter_maps(names)], dim=1)

    def parameter_vjp(self, q: Outputs, names: Sequence[str]) -> Parameters:
        """Apply D^T, restricted to the parameters `names` in this order."""

        def flat(maps: _Maps, u: Tensor) -> Tensor:
            gradients = maps.D.vjp(u)
            return torch.cat([gradients[name].reshape(-1) for name in names])

        chunks = self._parameter_maps(names)
        return reduce(
            torch.add, (maps.rows._each(partial(flat, maps), q[:, maps.where]) for maps in chunks)
        )

    def parameter_gram(self, q: Outputs, names: Sequence[str]) -> Outputs:
        """Apply D D^T, restricted to the parameters `names`."""
        return self.parameter_jvp(self.parameter_vjp(q, names), names)

    def second_order(
        self,
        c: Float[Tensor, "row output"],
        dtheta: Parameters,
        dh: Tangents,
        names: Sequence[str],
    ) -> tuple[Parameters, Tangents]:
        """Apply the second derivative of ``sum_r c[r] . y[r]`` by (theta, h) to (dtheta, dh)."""
        n, by_theta, by_h = dtheta.shape[1], torch.zeros_like(dtheta), []
        for where, part in self._chunks():
            point = {name: self.parameters[name] for name in names}, part.h
            # Twice in reverse, since the second derivative is its own transpose.
            slope = grad(partial(part._weighted, c[where]))
            pullback: Any = vjp(slope, point)[1]
            act = partial(part._second_order, pullback, names)
            image = part._each(act, torch.cat([dtheta, dh[:, where].flatten(1)], 1))
            by_theta += image[:, :n]
            by_h.append(image[:, n:].unflatten(1, part.h.shape))
        return by_theta, torch.cat(by_h, 1)

    def _weighted(self, c: Tensor, at: tuple[dict[str, Tensor], Tensor]) -> Tensor:
        theta, h = at
        return (c * self.function({**self.parameters, **theta}, self.x, h)).sum()

    def _second_order(
        self, pullback: Callable[..., Any], names: Sequence[str], u: Tensor
    ) -> Tensor:
        n = sum(self.sizes(names))
        given = self._split(u[:n], names), u[n:].reshape(self.h.shape)
        ((by_theta, by_h),) = pullback(given)
        return torch.cat([*(by_theta[name].reshape(-1) for name in names), by_h.reshape(-1)])

    @in_full_precision  # they are kept, and serve more than products
    def state_jacobians(self) -> Float[Tensor, "row output unit"]:
        """All A[r] at once."""
        n_outputs = self.function({}, self.x[:1], self.h[:1]).shape[1]
        n_rows, n_units = self.h.shape
        jacobians = self.h.new_empty(n_rows, n_outputs, n_units)
        basis = torch.eye(n_outputs, dtype=self.h.dtype, device=self.h.device)
        # Each row is differentiated n_outputs times. These many small matvecs share one forward
        # pass, which pays for temporaries somewhat larger than the cache.
        for s, part in self._chunks(copies=max(1, n_outputs // 16)):
            cotangents = basis[:, None].expand(-1, len(part.h), -1)
            # With out_dims=1, vmap fails where the function does not depend on h.
            jacobians[s] = vmap(part._of_h().vjp)(cotangents).transpose(0, 1)
        return jacobians

    def sizes(self, names: Sequence[str]) -> list[int]:
        """Number of entries of each of the parameters `names`."""
        return [self.parameters[name].numel() for name in names]

    def _of_h(self) -> Differential:
        """A."""
        return Differential(lambda h: self.function(self.parameters, self.x, h), self.h)

    def _of_parameters(self, parameters: dict[str, Tensor]) -> Tensor:
        return self.function({**self.parameters, **parameters}, self.x, self.h)

    def _parameter_maps(self, names: Sequence[str]) -> Iterable[_Maps]:
        """D and D^T of every chunk, kept from the last call or made now."""
        if not self.keep:
            return self._make_parameter_maps(names)
        if self._kept is None or self._kept[0] != tuple(names):
            self._kept = tuple(names), list(self._make_parameter_maps(names))
        return self._kept[1]

    def _make_parameter_maps(self, names: Sequence[str]) -> Iterator[_Maps]:
        point = {name: self.parameters[name] for name in names}
        for where, part in self._chunks():
            with PreparedExponentials():
                maps = Differential(part._of_parameters, point)
            yield _Maps(where, part, maps)

    def _split(
        self, dtheta: Float[Tensor, " parameter"], names: Sequence[str]
    ) -> dict[str, Tensor]:
        parts = zip(names, dtheta.split(self.sizes(names)), strict=True)
        return {name: part.reshape(self.parameters[name].shape) for name, part in parts}

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
            return on_each(action, block, chunk)


def on_each(
    action: Callable[[Tensor], Tensor], block: Tensor, chunk_size: int | None = None
) -> Tensor:
    """Apply an action on vectors to every vector of a block."""
    if len(block) == 1:  # no vmap: its bookkeeping would double the cost of few flops
        return action(block[0])[None]
    return vmap(action, chunk_size=chunk_size)(block)
