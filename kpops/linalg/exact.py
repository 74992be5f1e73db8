"""What is exact because of the structure of an operator, or because it is small.

An operator may couple no two positions of some dimensions, as P couples no two trials, so that a
basis of one block serves all blocks at once; and K may couple no two units, so that its whole
spectrum is that of small matrices (:mod:`kpops.engines.blocks`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kpops import work
from kpops.engines.blocks import Blocks
from kpops.linalg.budget import empty
from kpops.linalg.gramians import propagator_norm
from kpops.linalg.problem import SpectralProblem
from kpops.linalg.scaling import normalized_blocks, raised
from kpops.linalg.vectors import VectorSpace
from kpops.operators.base import Adjoint, Scaled, TrajectoryOperator
from kpops.operators.dense import batches, dense_blocks
from kpops.operators.propagator import InversePropagator, Propagator
from kpops.transfers import beside, on_device, on_host

# Up to this size of a block the dense matrix is cheaper and safer than any iteration.
DENSE_SIZE = 1024
# Most entries of all dense blocks together that are made by default.
DENSE_ENTRIES = 2**26


def is_cheap(size: int) -> bool:
    """Whether a matrix of that size is decomposed by default."""
    return size <= DENSE_SIZE


def is_small(op: TrajectoryOperator) -> bool:
    """Whether the dense blocks are made by default."""
    inside, outside = batches(op)
    few = is_cheap(min(inside.size, outside.size))
    return few and inside.total_count * inside.size * outside.size <= DENSE_ENTRIES


@dataclass(frozen=True)
class Spectrum:
    """All eigenvalues of a self-adjoint operator, or all singular values of any.

    Attributes
    ----------
    values
        Of falling magnitude, in float64.
    n_zeros
        How many more there are, all zero.
    num_matvecs
        Matvecs with the operator, or with the smaller one that has its spectrum.
    unit
        Position of the unit to which each belongs, where units are not coupled.
    """

    values: Float[Tensor, " value"]
    n_zeros: int
    how: str
    num_matvecs: int = 0
    unit: Int[Tensor, " value"] | None = None


def is_exact(op: TrajectoryOperator) -> bool:
    """Whether the whole spectrum is computed by default."""
    return is_small(op) or op.unit_blocks() is not None


def check_cost(
    op: TrajectoryOperator, count: int, shape: tuple[int, int], flops: float, insist: str
) -> None:
    """Refuse, or warn of, dense decompositions that would take more than ten minutes.

    There are `count` matrices of that shape, and `flops` is the number of operations for each as a
    multiple of ``rows * columns * min(rows, columns)``. `insist` is what the user can pass to have
    it done all the same; empty if that was passed already.
    """
    flops *= count * math.prod(shape) * min(shape)
    what = f"{count} matri{'x' if count == 1 else 'ces'} of shape {shape}, {flops:.1e} operations"
    seconds = work.estimate(flops, what)
    if seconds <= work.LONG:
        return
    remedy = (
        "take the leading modes (eigsh, svds), the distribution (spectral_density), or a part "
        "(op.select, op.expand_average)"
    )
    message = f"{op!r} takes the decomposition of {what}, {work.duration(seconds)}: {remedy}"
    if insist:
        raise ValueError(f"{message}, or pass {insist}")
    work.warn(message, work.LongWorkWarning)


def eigenvalues(op: TrajectoryOperator, insist: str = "") -> Spectrum:
    """All eigenvalues of a self-adjoint operator, from its structure or its dense blocks.

    `insist` is as for :func:`check_cost`.
    """
    blocks = op.unit_blocks()
    if blocks is not None and not smaller_dense(op, blocks):
        shape = blocks.n_rows, blocks.n_columns
        # Gram matrices, five times as fast as decompositions, and their decompositions.
        check_cost(op, blocks.n_distinct, shape, 0.4 + 4 / 3 * min(shape) / max(shape), insist)
        total = blocks.trace() or 1.0  # Gram matrices of small factors might vanish
        values, units, _ = blocks.scaled(1 / total).spectrum()
        values = values.double() * total
        order = values.argsort(descending=True)
        unit = blocks.positions(units[on_host(order)[0]])
        return Spectrum(values[order], op.shape[0] - values.numel(), _by_unit(blocks), unit=unit)
    problem = SpectralProblem(op)
    sides = batches(problem.G)[0]
    count, size = sides.total_count, sides.size
    check_cost(op, count, (size, size), 4 / 3, insist)
    work.expect(size if problem.factor is None else 2 * size)
    before = problem.G.num_matvecs
    dense, scale = normalized_blocks(problem.G)
    used = problem.G.num_matvecs - before
    gap = VectorSpace.of(problem.G, problem.G.domain).largest(dense - dense.mT)
    if gap > 2e3 * torch.finfo(dense.dtype).eps:
        raise ValueError(f"{op!r} is not self-adjoint: use kpops.svds, or eigsh of op @ op.H")
    each = torch.linalg.eigvalsh((dense + dense.mT) / 2).double()
    values = sides.everywhere(each).flatten() * scale
    how = f"{count} dense block(s) of size {size}"
    if problem.factor is not None:
        values = values.clamp_min(0)
        how = f"the Gram matrix of {problem.factor.symbol}, {how}"
    return Spectrum(_falling(values), problem.n_zeros, how, used)


def singular_values(op: TrajectoryOperator) -> Spectrum:
    """All min(m, n) singular values of an operator, from its structure or its dense blocks."""
    if op.self_adjoint:
        spectrum = eigenvalues(op)
        return replace(spectrum, values=spectrum.values.abs())
    inside, outside = batches(op)
    check_cost(op, inside.total_count, (outside.size, inside.size), 4, "")
    work.expect(min(outside.size, inside.size))
    before = op.num_matvecs
    dense, unit = normalized_blocks(op)
    values = inside.everywhere(torch.linalg.svdvals(dense).double()).flatten() * unit
    how = f"{inside.total_count} dense block(s) of shape {tuple(dense.shape[1:])}"
    n_zeros, used = min(op.shape) - values.numel(), op.num_matvecs - before
    return Spectrum(_falling(values), n_zeros, how, used)


def smaller_dense(op: TrajectoryOperator, blocks: Blocks) -> bool:
    """Whether the matrix itself is no larger than that of a unit."""
    return is_small(op) and batches(op)[0].size <= min(blocks.n_rows, blocks.n_columns)


def _by_unit(blocks: Blocks) -> str:
    return f"K couples no two of {blocks.n_units} units"


def _falling(values: Float[Tensor, " value"]) -> Float[Tensor, " value"]:
    return values[values.abs().argsort(descending=True)]


ENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "LM": torch.abs,
    "LA": torch.clone,
    "SA": torch.neg,
}
"""Which eigenvalues are the leading ones: those of which this is the largest."""


def leading(
    op: TrajectoryOperator, k: int, which: str = "LM", insist: str = ""
) -> tuple[Float[Tensor, " {k}"], Float[Tensor, " {k} *dims"], str, float]:
    """The k leading eigenvalues, eigenfunctions, how they were found, and the largest magnitude.

    The operator is of about one (:func:`kpops.linalg.scaling.normalized`). `insist` is as for
    :func:`check_cost`.
    """
    blocks = op.unit_blocks()
    if blocks is not None and (which == "SA" or k > blocks.n_values):
        blocks = None
    if blocks is not None and not smaller_dense(op, blocks):
        values, block = _of_units(op, blocks, k)
        return values, block, _by_unit(blocks), float(values[0])
    inside = batches(op)[0]
    check_cost(op, inside.total_count, (inside.size,) * 2, 9, insist)
    work.expect(inside.size + k)
    dense = dense_blocks(op)
    values, vectors = torch.linalg.eigh((dense + dense.mT) / 2)
    values = inside.everywhere(values).flatten()
    chosen = ENDS[which](values).argsort(descending=True)[:k]
    block = inside.place(vectors, chosen // inside.size, chosen % inside.size)
    how = f"{inside.total_count} dense block(s) of size {inside.size}"
    return values[chosen], block, how, float(values.abs().max())


def _of_units(
    op: TrajectoryOperator, blocks: Blocks, k: int
) -> tuple[Float[Tensor, " {k}"], Float[Tensor, " {k} *dims"]]:
    """Leading modes of K, each of which lives on one unit."""
    values, units, ranks = blocks.spectrum()
    chosen = values.argsort(descending=True)[:k]
    (places,) = on_host(chosen)
    units, ranks = units[places], ranks[places]
    whole = values.new_zeros(k, *op.domain.shape)
    space = replace(VectorSpace.of(op, op.domain), total=blocks.n_rows)
    last, axes, basis = None, whole, whole
    for unit in units.unique().tolist():
        here = torch.nonzero(units == unit).flatten()
        if last != blocks.same_factor(unit):
            basis, coords = space.orthonormal(blocks.factor(unit).mT)
            axes = torch.linalg.svd(coords.mT, full_matrices=False)[0].flip(1)
            last = blocks.same_factor(unit)
        fields = values.new_zeros(len(here), *op.domain.shape)
        blocks.place(beside(axes[:, ranks[here]].mT, basis) @ basis, unit, fields)
        whole[on_device(here, whole.device, here.dtype)] = fields
    return values[chosen], whole


def whole_spectrum(
    op: TrajectoryOperator, symmetric: bool, *, force: bool = False
) -> Spectrum | None:
    """All eigenvalues of a symmetric operator, all singular values of another.

    From its structure or its dense blocks; None if these are too large, unless `force` is set.
    """
    small = is_exact(op) or (symmetric and is_small(SpectralProblem(op).G))
    if not (small or force):
        return None
    return eigenvalues(op) if symmetric else singular_values(op)


def _unit_diagonal(op: TrajectoryOperator) -> tuple[float, Float[Tensor, "*dims"]] | None:
    """The factor and the valid entries, if `op` is a multiple of P, P^-1 or an adjoint."""
    if isinstance(op, Adjoint):
        return _unit_diagonal(op.parent)
    if isinstance(op, Scaled):
        inside = _unit_diagonal(op.operator)
        return inside and (op.factor * inside[0], inside[1])
    if isinstance(op, Propagator | InversePropagator):
        ones = torch.ones(1, *op.domain.shape, dtype=op.torch_dtype, device=op.device)
        return 1.0, op.engine.trajectory.restrict(ones)[0]
    return None


def exact_trace(op: TrajectoryOperator, method: str) -> tuple[float, str] | None:
    """Trace and how it was found; None if it is not cheap and `method` is not "exact"."""
    unit = _unit_diagonal(op)
    if unit is not None:
        ones = unit[1].double().sum()
        return unit[0] * float(op.domain.parts.sum(ones)), "P has a unit diagonal"
    blocks = op.unit_blocks()
    if blocks is not None:
        return blocks.trace(), _by_unit(blocks)
    found = _matrix_diagonal(op, method)
    return found and (float(op.domain.parts.sum(found[0].double().sum())), found[1])


def exact_diagonal(
    op: TrajectoryOperator, method: str
) -> tuple[Float[Tensor, "*dims"], str] | None:
    """Diagonal and how it was found; None as for :func:`exact_trace`."""
    unit = _unit_diagonal(op)
    if unit is not None:
        return unit[0] * unit[1], "P has a unit diagonal"
    blocks = op.unit_blocks()
    if blocks is not None:
        whole = empty(op).new_zeros(1, *op.domain.shape, dtype=torch.float64)
        blocks.write_diagonal(whole)
        return whole[0], _by_unit(blocks)
    return _matrix_diagonal(op, method)


def _matrix_diagonal(
    op: TrajectoryOperator, method: str
) -> tuple[Float[Tensor, "*dims"], str] | None:
    matrix = _matrix(op, method)
    if matrix is None:
        return None
    of, dense, unit, how = matrix
    sides = batches(of)[1]
    if of is op:
        found = dense.diagonal(dim1=1, dim2=2) * unit
    else:
        found = dense.square().sum(2) * raised(unit, 2)
    here = slice(sides.entries.start, sides.entries.stop)
    return sides.join(found[:, None, here])[0], how


def _matrix(
    op: TrajectoryOperator, method: str
) -> tuple[TrajectoryOperator, Float[Tensor, "problem row column"], float, str] | None:
    """The operator or F with ``A = F F*``, its blocks over their scale, the scale, and words.

    None if they are not small and `method` is not "exact".
    """
    factor = SpectralProblem(op).factor
    if factor is not None and is_small(factor):
        op, words = factor, " of a factor"
    elif method == "exact" or is_small(op):
        words = ""
    else:
        return None
    dense, unit = normalized_blocks(op)
    count = batches(op)[0].total_count
    how = f"{count} dense block(s) of shape {tuple(dense.shape[1:])}{words}"
    return op, dense.double(), unit, how


def exact_frobenius(op: TrajectoryOperator, method: str) -> tuple[float, str] | None:
    """The norm and how it was found; None if it is not cheap and `method` is not "exact"."""
    norm = propagator_norm(op)
    if norm is not None:
        return norm, "sum of the traces of the observability Gramians of P"
    blocks = op.unit_blocks()
    if blocks is not None:
        trace = blocks.trace() or 1.0
        scaled = blocks.scaled(1 / trace)
        return trace * math.sqrt(scaled.inner(scaled)), _by_unit(blocks)
    found = _matrix(op, method)
    if found is None:
        return None
    of, dense, unit, how = found
    squares = (dense if of is op else dense.mT @ dense).square().sum()
    norm = math.sqrt(batches(of)[0].between.sum(squares))
    return (unit if of is op else unit * unit) * norm, how
