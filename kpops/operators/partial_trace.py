"""Partial traces: operators on some of the dims, summed over equal positions of the others.

With k the positions of the dims that are kept and s those of the others, the partial trace of A has
the entries ``R[k, k'] = sum_s A[(k, s), (k', s)]``. Here it is exact and matrix-free, or estimated
with random vectors that are drawn once, so that the estimate is an operator of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kpops.engines.gated.unit_blocks import UnitBlocks
from kpops.engines.memory import check_allocation
from kpops.labels import Space
from kpops.operators.base import TrajectoryOperator, as_method, bracketed
from kpops.operators.dense import DenseOperator
from kpops.scalars import generator as random_generator

Action = Callable[[Tensor], Tensor]

# Up to this many entries of a kept vector the matrix of the reduction is made if that is cheap.
DENSE_SIZE = 4096
# Vectors that A is applied to at a time.
_BLOCK = 64


@as_method
def partial_trace(
    op: TrajectoryOperator, keep: Any, *, num_probes: int | None = None, rng: Any = None
) -> TrajectoryOperator:
    """Reduce to fewer dims by summing over equal positions of the others.

    Parameters
    ----------
    op : TrajectoryOperator
        A, from a space to itself.
    keep : tuple of str
        Dims to keep, for example ``("time",)``.
    num_probes : int, optional
        Estimate the sum without bias with so many random probes, drawn once. Default: exact, a
        product for each coupled position.
    rng : int, Generator or None
        Source of the probes.

    Returns
    -------
    TrajectoryOperator
        On the kept dims, as symmetric and as positive as A; `op` itself if all dims are kept.
        Exact: a :class:`DenseOperator` where K is known unit by unit and the matrix is small, else
        a :class:`PartialTrace`. Estimated: a :class:`ProbedGram` where A has a root, else a
        :class:`ProbedTrace`.

    Raises
    ------
    TypeError
        If `num_probes` is not an int.
    ValueError
        If domain and codomain differ, a dim is unknown or `num_probes` is less than 1.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(3, 4, batch_first=True), torch.zeros(5, 6, 3))
    >>> float(lin.P.partial_trace(keep=("time",)).to_dense()[0, 0])  # 5 trials of 4 units
    20.0
    """
    keep = (keep,) if isinstance(keep, str) else tuple(keep)
    if op.domain != op.codomain:
        raise ValueError(
            f"{op!r} leads from one space to another: a partial trace needs the same space on "
            "both sides; use op @ op.H"
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
        if blocks is not None:
            return _of_unit_blocks(op, blocks, kept)
        return PartialTrace(op, kept)
    rng = random_generator(rng)
    if op.root is not None:
        return ProbedGram.draw(op, kept, num_probes, rng)
    return ProbedTrace.draw(op, kept, num_probes, rng)


class PartialTrace(TrajectoryOperator):
    """The exact partial trace, one product with A for each position of the traced dims.

    Parameters
    ----------
    op : TrajectoryOperator
        A, from a space to itself.
    kept : Space
        The dims that remain; see :meth:`Space.keep`.

    Attributes
    ----------
    parent : TrajectoryOperator
        A.
    num_vectors : int
        Products with A in each product with the partial trace.

    Notes
    -----
    A dim over which A is block diagonal needs no loop: copying a vector along it and summing the
    image over it takes all of its positions at once.
    """

    weight = 1.0

    def __init__(self, op: TrajectoryOperator, kept: Space) -> None:
        traced = [d for d in op.domain.dims if d not in kept.dims]
        super().__init__(
            kept,
            kept,
            symbol=_symbol(op, kept),
            self_adjoint=op.self_adjoint,
            positive=op.positive,
            **op.alike(),
        )
        self.parent = op
        self.block_diagonal_dims = tuple(d for d in kept.dims if d in op.block_diagonal_dims)
        # Shapes that broadcast against the dims of A.
        sizes = op.domain.sizes.items()
        self._kept_shape = [n if d in kept.dims else 1 for d, n in sizes]
        self._loop_shape = [
            n if d in traced and d not in op.block_diagonal_dims else 1 for d, n in sizes
        ]
        self._axes = [2 + op.domain.dims.index(d) for d in traced]

    @property
    def num_vectors(self) -> int:
        """Products with A in each product with the partial trace."""
        return math.prod(self._loop_shape)

    def _vectors(self, chosen: range) -> Tensor:
        """Vectors z of the traced dims, (vector, *shape), such that R is sum z* A z."""
        n = math.prod(self._loop_shape)
        basis = torch.zeros(len(chosen), n, dtype=self.torch_dtype, device=self.device)
        basis[range(len(chosen)), chosen] = 1
        return basis.reshape(len(chosen), *self._loop_shape)

    def _quotients(self, act: Action, block: Tensor) -> Iterator[Tensor]:
        """z* A z of some vectors z after the others, (vector, block, *kept)."""
        inside = block.reshape(len(block), 1, *self._kept_shape)
        size = max(1, _BLOCK // len(block))
        for start in range(0, self.num_vectors, size):
            z = self._vectors(range(start, min(start + size, self.num_vectors)))
            q = (inside * z).expand(-1, -1, *self.parent.domain.shape)
            images = act(q.flatten(0, 1)).unflatten(0, q.shape[:2])
            yield (images * z).sum(self._axes).transpose(0, 1)

    def _sum(self, act: Action, block: Tensor) -> Tensor:
        total = torch.zeros_like(block)
        for quotients in self._quotients(act, block):
            total += quotients.sum(0)
        return total if self.weight == 1 else self.weight * total

    def _apply(self, block: Tensor) -> Tensor:
        return self._sum(self.parent.apply, block)

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        return self._sum(self.parent.apply_adjoint, block)


class ProbedTrace(PartialTrace):
    """An unbiased estimate of the partial trace: the mean of ``z* A z`` over random signs z.

    The signs run over the traced dims, without those over which A is block diagonal. They are
    fixed, so that the estimate is an operator, self-adjoint or positive where A is.

    Parameters
    ----------
    op : TrajectoryOperator
        A.
    kept : Space
        The dims that remain.
    probes : Tensor, shape (probe, positions that are traced by probes)
        Entries +1 or -1.

    Notes
    -----
    The entries ``R[k, k']`` have the variance of Hutchinson's estimate of a trace, for the block
    ``A[k, k']`` (Hutchinson 1990): twice the sum of squares off the diagonal of its symmetric part.
    """

    def __init__(self, op: TrajectoryOperator, kept: Space, probes: Tensor) -> None:
        super().__init__(op, kept)
        self.probes = probes
        self.weight = 1 / len(probes)

    @classmethod
    def draw(
        cls, op: TrajectoryOperator, kept: Space, num_probes: int, rng: np.random.Generator
    ) -> ProbedTrace:
        """Draw the signs."""
        shape = PartialTrace(op, kept)._loop_shape
        return cls(op, kept, signs((num_probes, *shape), op, rng))

    @property
    def num_vectors(self) -> int:
        """Products with A in each product with the estimate."""
        return len(self.probes)

    def _vectors(self, chosen: range) -> Tensor:
        return self.probes[chosen.start : chosen.stop]

    def without(self, probe: int) -> ProbedTrace:
        """Return the estimate that the other probes make, for a jackknife."""
        return ProbedTrace(self.parent, self.domain, _others(self.probes, probe))

    def dense_per_probe(self) -> Tensor:
        """Return what each probe makes of the matrix, (probe, kept, kept); R is their mean."""
        n = self.domain.size
        n_bytes = len(self.probes) * n**2 * self.dtype.itemsize
        check_allocation(f"{self!r} probe by probe", n_bytes, self.device)
        result = torch.empty(len(self.probes), n, n, dtype=self.torch_dtype, device=self.device)
        identity = torch.eye(n, dtype=self.torch_dtype, device=self.device)
        for columns in torch.arange(n, device=self.device).split(_BLOCK):
            block = identity[columns].reshape(-1, *self.domain.shape)
            images = torch.cat(list(self._quotients(self.parent.apply, block)))
            result[:, :, columns] = images.flatten(2).mT
        return result


class ProbedGram(TrajectoryOperator):
    """An unbiased estimate of the partial trace of ``A = R R*``, positive as A is.

    With random signs w from the domain of R, ``Y = R w`` is written as a matrix with a row for each
    position of the kept dims and a column for each of the others; the estimate is the mean of
    ``Y Y^T``. Its entries have the variance of :class:`ProbedTrace`, but one product with R makes
    all of them, and products with the estimate need no more of A.

    Parameters
    ----------
    op : TrajectoryOperator
        A.
    kept : Space
        The dims that remain.
    images : Tensor, shape (probe, kept, traced)
        The matrices Y.
    """

    def __init__(self, op: TrajectoryOperator, kept: Space, images: Tensor) -> None:
        super().__init__(
            kept,
            kept,
            symbol=_symbol(op, kept),
            self_adjoint=True,
            positive=True,
            **op.alike(),
        )
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
        parts = []
        for start in range(0, num_probes, _BLOCK):
            size = min(_BLOCK, num_probes - start)
            images = op.root.apply(signs((size, *op.root.domain.shape), op, rng))
            parts.append(images.permute(0, *axes, *rest).reshape(size, kept.size, -1))
        return cls(op, kept, torch.cat(parts))

    def _apply(self, block: Tensor) -> Tensor:
        rows = block.flatten(1)
        images = ((rows @ self.images) @ self.images.mT).mean(0)
        return images.reshape(-1, *self.domain.shape)

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        return self._apply(block)

    def _numbers_per_vector(self) -> int:
        n_probes, n_kept, n_traced = self.images.shape
        return super()._numbers_per_vector() + n_probes * (n_kept + n_traced)

    def without(self, probe: int) -> ProbedGram:
        """Return the estimate that the other probes make, for a jackknife."""
        return ProbedGram(self.parent, self.domain, _others(self.images, probe))

    def dense_per_probe(self) -> Tensor:
        """Return what each probe makes of the matrix, (probe, kept, kept); R is their mean."""
        n_bytes = len(self.images) * self.domain.size**2 * self.dtype.itemsize
        check_allocation(f"{self!r} probe by probe", n_bytes, self.device)
        return self.images @ self.images.mT


def signs(shape: tuple[int, ...], op: TrajectoryOperator, rng: np.random.Generator) -> Tensor:
    """Random +1 and -1, in the dtype and on the device of `op`."""
    values = 2 * rng.integers(0, 2, size=shape, dtype=np.int8) - 1
    return torch.from_numpy(values).to(dtype=op.torch_dtype, device=op.device)


def _symbol(op: TrajectoryOperator, kept: Space) -> str:
    traced = [d for d in op.domain.dims if d not in kept.dims]
    return f"tr[{', '.join(traced)}] {bracketed(op)}"


def _others(probes: Tensor, left_out: int) -> Tensor:
    if len(probes) < 2:
        raise ValueError("the only probe cannot be left out: draw with num_probes=2 or more")
    chosen = torch.ones(len(probes), dtype=torch.bool)
    chosen[left_out] = False
    return probes[chosen.to(probes.device)]


def _of_unit_blocks(op: TrajectoryOperator, blocks: UnitBlocks, kept: Space) -> DenseOperator:
    """The partial trace of a K that couples no two units.

    The part of unit i is ``M_i M_i^T``. With the kept ones of its rows (variable, trial, time) as
    rows of a matrix, and the traced ones beside the columns, the partial trace is its Gram matrix:
    a block of its own for each unit if units are kept, the sum of all blocks if not.
    """
    check_allocation(
        f"the partial trace of {op!r}", 2 * kept.size**2 * op.dtype.itemsize, op.device
    )
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
