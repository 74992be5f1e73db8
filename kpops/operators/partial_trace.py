"""Partial traces: operators on some dimensions, summed over equal positions of the others.

With positions k of the dimensions that are kept and s of the others, the partial trace of A has the
entries ``R[k, k'] = sum_s A[(k, s), (k', s)]``. It is exact and matrix-free, or an estimate from
random vectors that are drawn once, so that the estimate is an operator, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kpops.engines.gated.unit_blocks import UnitBlocks
from kpops.engines.memory import check_allocation
from kpops.engines.random_vectors import RandomVectors
from kpops.labels import Space
from kpops.operators.base import TrajectoryOperator, as_method, bracketed
from kpops.operators.dense import DenseOperator
from kpops.operators.shapes import InDomain
from kpops.precision import in_full_precision
from kpops.scalars import generator as random_generator

Action = Callable[[Tensor], Tensor]

DENSE_SIZE = 4096
"""Up to this many entries of a kept vector, the matrix is made where that is cheap."""
_BLOCK = 64
"""Vectors that A is applied to at a time."""


@as_method
@in_full_precision
def partial_trace(
    op: TrajectoryOperator, keep: Any, *, num_probes: Any = None, rng: Any = None
) -> TrajectoryOperator:
    """Reduce to fewer dimensions by summing over equal positions of the others.

    Parameters
    ----------
    op : TrajectoryOperator
        A, from a space to itself.
    keep : tuple of str
        Dimensions to keep, for example ``("time",)``.
    num_probes : int, optional
        Estimate the sum without bias from this many random probes, drawn once. Default: exact, one
        matvec for each coupled position.
    rng : int, Generator or None
        Source of the probes.

    Returns
    -------
    TrajectoryOperator
        On the kept dimensions, as symmetric and as positive as A; `op` itself if all are kept.
        Exact: a :class:`DenseOperator` where K is known unit by unit and the matrix is small, else
        a :class:`PartialTrace`. Estimated: a :class:`ProbedGram` where A has a root, else a
        :class:`ProbedTrace`.

    Raises
    ------
    TypeError
        If `num_probes` is not an int.
    ValueError
        If domain and codomain differ, a dimension is unknown or `num_probes` is less than 1.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(3, 4, batch_first=True), torch.zeros(5, 6, 3))
    >>> float(lin.P.partial_trace(keep=("time",)).to_dense()[0, 0])  # 5 trials of 4 units
    20.0
    """
    op.parts.refuse_spread(op)
    keep = (keep,) if isinstance(keep, str) else tuple(keep)
    if op.domain != op.codomain:
        raise ValueError(
            f"{op!r} maps one space to another: a partial trace needs the same space on both "
            "sides; use op @ op.H"
        )
    kept = op.domain.keep(keep)
    if num_probes is not None:
        if isinstance(num_probes, bool) or not isinstance(num_probes, int | np.integer):
            raise TypeError(f"num_probes={num_probes!r}: give an int, or None for exact")
        if num_probes < 1:
            raise ValueError(f"num_probes={num_probes}: give 1 or more, or None for exact")
    if kept.dims == op.domain.dims:
        return op
    if num_probes is None:
        blocks = op.unit_blocks() if kept.size <= DENSE_SIZE else None
        if isinstance(blocks, UnitBlocks):
            return _of_unit_blocks(op, blocks, kept)
        return PartialTrace(op, kept)
    rng = random_generator(rng)  # refuses what is no seed, before the root of op costs a matvec
    estimate = ProbedTrace if op.root is None else ProbedGram
    return estimate.draw(op, kept, num_probes, rng)


class PartialTrace(TrajectoryOperator):
    """The exact partial trace, by one matvec of A for each position of the traced dimensions.

    A dimension over which A is block diagonal needs no loop: copying a vector along it and summing
    the image over it takes all of its positions at once.

    Parameters
    ----------
    op : TrajectoryOperator
        A, from a space to itself; the attribute `parent`.
    kept : Space
        The dimensions that remain; see :meth:`Space.keep`.

    Attributes
    ----------
    num_vectors : int
        Matvecs of A in each matvec of the partial trace.
    """

    def __init__(self, op: TrajectoryOperator, kept: Space) -> None:
        traced = [d for d in op.domain.dims if d not in kept.dims]
        known = {"self_adjoint": op.self_adjoint, "positive": op.positive, **op.alike()}
        super().__init__(kept, kept, symbol=_symbol(op, kept), **known)
        self.parent = op
        self.block_diagonal_dims = tuple(d for d in kept.dims if d in op.block_diagonal_dims)
        # Shapes that broadcast against the dims of A.
        sizes = op.domain.sizes.items()
        self._kept_shape = [n if d in kept.dims else 1 for d, n in sizes]
        self._loop_shape = [
            n if d in traced and d not in op.block_diagonal_dims else 1 for d, n in sizes
        ]
        self._axes = [2 + op.domain.dims.index(d) for d in traced]
        self.num_vectors = math.prod(self._loop_shape)
        self.weight = 1.0

    def _vectors(self, chosen: range) -> Float[Tensor, "vector ..."]:
        """Vectors z of the traced dimensions such that R is sum z* A z."""
        shape = len(chosen), self.num_vectors
        basis = torch.zeros(shape, dtype=self.torch_dtype, device=self.device)
        basis.diagonal(chosen.start).fill_(1)
        return basis.reshape(len(chosen), *self._loop_shape)

    def _quotients(self, act: Action, block: InDomain) -> Iterator[Tensor]:
        """z* A z, (vector, block, *kept), of some vectors z at a time."""
        inside = block.reshape(len(block), 1, *self._kept_shape)
        size = max(1, _BLOCK // len(block))
        for start in range(0, self.num_vectors, size):
            z = self._vectors(range(start, min(start + size, self.num_vectors)))
            q = (inside * z).expand(-1, -1, *self.parent.domain.shape)
            images = act(q.flatten(0, 1)).unflatten(0, q.shape[:2])
            yield (images * z).sum(self._axes).transpose(0, 1)

    def _sum(self, act: Action, block: InDomain) -> InDomain:
        total = torch.zeros_like(block)
        for quotients in self._quotients(act, block):
            total += quotients.sum(0)
        return total if self.weight == 1 else self.weight * total

    def _apply(self, q: InDomain) -> InDomain:
        return self._sum(self.parent.apply, q)

    def _apply_adjoint(self, q: InDomain) -> InDomain:
        return self._sum(self.parent.apply_adjoint, q)


class ProbedTrace(PartialTrace):
    """An unbiased estimate of the partial trace: the mean of ``z* A z`` over random signs z.

    The signs run over the traced dimensions, without those over which A is block diagonal. They are
    fixed, so that the estimate is an operator, self-adjoint or positive where A is.

    Parameters
    ----------
    op, kept
        As for :class:`PartialTrace`.
    probes : Tensor, shape (probe, positions that are traced by probes)
        Entries +1 or -1.

    Notes
    -----
    The entries ``R[k, k']`` have the variance of Hutchinson's estimate of a trace, for the block
    ``A[k, k']`` (Hutchinson 1990): twice the sum of squares off the diagonal of its symmetric part.
    """

    def __init__(
        self, op: TrajectoryOperator, kept: Space, probes: Float[Tensor, "probe ..."]
    ) -> None:
        super().__init__(op, kept)
        self.probes = probes
        self.num_vectors = len(probes)
        self.weight = 1 / len(probes)

    @classmethod
    def draw(
        cls, op: TrajectoryOperator, kept: Space, num_probes: int, rng: np.random.Generator
    ) -> ProbedTrace:
        """Draw the signs."""
        shape = PartialTrace(op, kept)._loop_shape
        return cls(op, kept, signs((num_probes, *shape), op, RandomVectors(rng)))

    def _vectors(self, chosen: range) -> Float[Tensor, "vector ..."]:
        return self.probes[chosen.start : chosen.stop]

    def without(self, probe: int) -> ProbedTrace:
        """Return the estimate from the other probes, for a jackknife."""
        return ProbedTrace(self.parent, self.domain, _others(self.probes, probe))

    def dense_per_probe(self) -> Float[Tensor, "probe kept kept"]:
        """Return the matrix that each probe estimates; R is their mean."""
        _check_dense(self, len(self.probes))
        n = self.domain.size
        result = torch.empty(len(self.probes), n, n, dtype=self.torch_dtype, device=self.device)
        identity = torch.eye(n, dtype=self.torch_dtype, device=self.device)
        for columns in torch.arange(n, device=self.device).split(_BLOCK):
            block = identity[columns].reshape(-1, *self.domain.shape)
            images = torch.cat(list(self._quotients(self.parent.apply, block)))
            result[:, :, columns] = images.flatten(2).mT
        return result


class ProbedGram(TrajectoryOperator):
    """An unbiased estimate of the partial trace of ``A = R R*``, positive like A.

    With random signs w from the domain of R, ``Y = R w`` is written as a matrix with a row for each
    position of the kept dimensions and a column for each of the others; the estimate is the mean of
    ``Y Y^T``. Its entries have the variance of :class:`ProbedTrace`, but one matvec of R makes all
    of them, and matvecs of the estimate no longer need A.

    Parameters
    ----------
    op, kept
        As for :class:`PartialTrace`.
    images : Tensor, shape (probe, kept, traced)
        The matrices Y.
    """

    def __init__(
        self, op: TrajectoryOperator, kept: Space, images: Float[Tensor, "probe kept traced"]
    ) -> None:
        known = {"self_adjoint": True, "positive": True, **op.alike()}
        super().__init__(kept, kept, symbol=_symbol(op, kept), **known)
        self.parent = op
        self.images = images

    @classmethod
    def draw(
        cls, op: TrajectoryOperator, kept: Space, num_probes: int, rng: np.random.Generator
    ) -> ProbedGram:
        """Draw the signs and apply the root of A to them."""
        assert op.root is not None
        n_bytes = 2 * num_probes * op.shape[0] * op.dtype.itemsize
        check_allocation(f"{num_probes} probes of {op!r}", n_bytes, op.device)
        axes = [1 + op.domain.dims.index(d) for d in kept.dims]
        rest = [i for i in range(1, 1 + len(op.domain.dims)) if i not in axes]
        parts, source = [], RandomVectors(rng)
        for start in range(0, num_probes, _BLOCK):
            size = min(_BLOCK, num_probes - start)
            images = op.root.apply(signs((size, *op.root.domain.shape), op, source))
            parts.append(images.permute(0, *axes, *rest).reshape(size, kept.size, -1))
        return cls(op, kept, torch.cat(parts))

    def _apply(self, q: InDomain) -> InDomain:
        images = ((q.flatten(1) @ self.images) @ self.images.mT).mean(0)
        return images.reshape(-1, *self.domain.shape)

    def _numbers_per_vector(self) -> int:
        n_probes, n_kept, n_traced = self.images.shape
        return super()._numbers_per_vector() + n_probes * (n_kept + n_traced)

    def without(self, probe: int) -> ProbedGram:
        """Return the estimate from the other probes, for a jackknife."""
        return ProbedGram(self.parent, self.domain, _others(self.images, probe))

    def dense_per_probe(self) -> Float[Tensor, "probe kept kept"]:
        """Return the matrix that each probe estimates; R is their mean."""
        _check_dense(self, len(self.images))
        return self.images @ self.images.mT


def signs(
    shape: tuple[int, ...], op: TrajectoryOperator, source: RandomVectors
) -> Float[Tensor, "*shape"]:
    """Random +1 and -1, in the dtype and on the device of `op`."""
    like = torch.empty(0, dtype=op.torch_dtype, device=op.device)
    n, *rest = shape
    return source.signs(n, range(math.prod(rest)), like).reshape(shape)


def _symbol(op: TrajectoryOperator, kept: Space) -> str:
    traced = [d for d in op.domain.dims if d not in kept.dims]
    return f"tr[{', '.join(traced)}] {bracketed(op)}"


def _check_dense(op: TrajectoryOperator, num_probes: int) -> None:
    n_bytes = num_probes * op.domain.size**2 * op.dtype.itemsize
    check_allocation(f"{op!r} probe by probe", n_bytes, op.device)


def _others(probes: Tensor, left_out: int) -> Tensor:
    if len(probes) < 2:
        raise ValueError("the only probe cannot be left out: draw with num_probes=2 or more")
    return torch.cat([probes[:left_out], probes[left_out + 1 :]])


def _of_unit_blocks(op: TrajectoryOperator, blocks: UnitBlocks, kept: Space) -> DenseOperator:
    """The partial trace of a K that does not couple units.

    The part of unit i is ``M_i M_i^T``, with rows (variable, trial, time). Move the traced ones of
    these to the columns: the partial trace is the Gram matrix of the result. If units are kept, it
    has a block for each unit, else it is the sum of the blocks.
    """
    n_bytes = 2 * kept.size**2 * op.dtype.itemsize
    check_allocation(f"the partial trace of {op!r}", n_bytes, op.device)
    layer = blocks.gram.layer
    shape = (layer.variables, *layer.previous.shape[:2])
    by_unit = "unit" in kept.dims
    axes = {"unit": 1, "trial": 2, "time": 3}  # of M
    rows = sorted(axes[d] for d in kept.dims)
    rest = [a for a in axes.values() if a not in rows]
    matrix = torch.zeros(kept.size, kept.size, dtype=op.torch_dtype, device=op.device)
    places = torch.arange(kept.size, device=op.device).reshape(kept.shape)
    if by_unit:  # (unit of the layer, variable, trial or time that is kept)
        of_layer = places[..., blocks.units].unflatten(-1, (layer.variables, blocks.n_units))
        places = of_layer.movedim((-1, -2), (0, 1)).flatten(1)
    for units in blocks.chunks():
        m = blocks.factors(units).unflatten(1, shape)
        n_rows = math.prod(m.shape[a] for a in rows)
        m = m.permute(0, *rows, *rest, 4).reshape(len(m), n_rows, -1)
        if by_unit:
            here = places[units]
            matrix[here[:, :, None], here[:, None, :]] = m @ m.mT
        else:
            m = m.transpose(0, 1).flatten(1)
            matrix += m @ m.T
    symbol = _symbol(op, kept)
    result = DenseOperator(matrix, kept, kept, symbol=symbol, positive=True, attrs=op.attrs)
    result.block_diagonal_dims = ("unit",) if by_unit and layer.variables == 1 else ()
    return result
