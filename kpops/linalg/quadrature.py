"""Gauss rules of an operator's spectrum: Lanczos from many random vectors at once.

From a unit vector z, s steps of Lanczos make the tridiagonal matrix T whose eigenvalues t_k and
first eigenvector components c_k are the nodes and, squared, the weights of the Gauss rule of the
spectral measure of z, ``sum_k c_k^2 f(t_k) ~ z* f(A) z``: exact for polynomials f of degree below
2 s, and for all f once the vectors span an invariant space. For z uniform on the sphere the mean
of ``n z* f(A) z`` is tr f(A).

All vectors take each step together. Where the operator is block diagonal over some dims, as P is
over trials, every block has a recursion of its own at no further cost, and so is resolved as
finely as if it stood alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kpops import work
from kpops.engines.memory import free_bytes
from kpops.linalg.probes import Act, random_block
from kpops.linalg.problem import SpectralProblem
from kpops.linalg.rounding import noise_floor
from kpops.linalg.scaling import normalized
from kpops.linalg.symmetry import refuse_indefinite
from kpops.operators.base import TrajectoryOperator
from kpops.scalars import check_count
from kpops.scalars import generator as seeded

_SEEKING = 32
"""Steps of Lanczos that look for a negative eigenvalue."""


@dataclass(frozen=True)
class Tridiagonal:
    """The matrices T of many recursions, of one size, zero where a recursion has ended.

    Attributes
    ----------
    diagonal : Tensor
        Shape (recursion, step), float64.
    beside : Tensor
        Shape (recursion, step), float64: what couples a step to the next, also the last.
    """

    diagonal: Tensor
    beside: Tensor

    def gauss(self, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Nodes, weights and residuals (recursion, node) of the first steps.

        Weights add up to 1. An eigenvalue lies within the residual of each node.
        """
        steps = min(steps, self.diagonal.shape[1])
        off = torch.diag_embed(self.beside[:, : steps - 1], 1)
        t = torch.diag_embed(self.diagonal[:, :steps]) + off + off.mT
        nodes, vectors = torch.linalg.eigh(t)
        first, last = vectors[:, 0], vectors[:, -1]
        # What couples to a recursion that has ended is rounding.
        weights = torch.where(first.abs() > 1e-14, first, 0).square()
        return nodes, weights, self.beside[:, steps - 1, None] * last.abs()


def tridiagonalized(
    apply: Act, starts: Tensor, steps: int, off: Tensor | None = None
) -> Tridiagonal:
    """Run Lanczos from every row of `starts`, with full reorthogonalisation.

    Parameters
    ----------
    apply : callable
        Symmetric action on rows (recursion, entry), of about one.
    starts : Tensor
        Shape (recursion, entry), not zero; need not be of unit length.
    steps : int
        Steps at most. A recursion ends before when its vectors span an invariant space, to the
        noise floor of the dtype: then its rule is exact.
    off : Tensor, optional
        Orthonormal rows (mode, entry) that span an invariant space, which all vectors stay off.

    Returns
    -------
    Tridiagonal
        In float64.
    """
    count, n = starts.shape
    off = starts.new_zeros(0, n) if off is None else off
    steps = min(steps, max(1, n - len(off)))
    for _ in range(2):  # once leaves a part of the order of what it takes away
        starts = starts - (starts @ off.mT) @ off
    diagonal = torch.zeros(count, steps, dtype=torch.float64, device=starts.device)
    beside = torch.zeros_like(diagonal)
    basis = starts.new_zeros(count, steps, n)
    basis[:, 0] = starts / starts.norm(dim=1, keepdim=True)
    largest = starts.new_zeros(count)
    for step in range(steps):
        image = apply(basis[:, step])
        diagonal[:, step] = (basis[:, step] * image).sum(1)
        spanned = basis[:, : step + 1]
        before = image.norm(dim=1)
        for _ in range(2):  # once leaves a part of the order of what it takes away
            image = image - (spanned.mT @ (spanned @ image[..., None]))[..., 0]
            image = image - (image @ off.mT) @ off
        length = image.norm(dim=1)
        largest = torch.maximum(largest, before)
        going = length > noise_floor(starts.dtype) * largest
        beside[:, step] = torch.where(going, length, 0)
        if work.interrupted():
            diagonal, beside = diagonal[:, : step + 1], beside[:, : step + 1]
            break
        if step + 1 == steps or not going.any():
            break
        basis[:, step + 1] = torch.where(going, 1 / length, 0)[:, None] * image
    return Tridiagonal(diagonal, beside)


@dataclass(frozen=True)
class Rule:
    """Gauss rules of random vectors: what the spectrum looks like from each.

    Attributes
    ----------
    nodes, weights : Tensor
        Shape (probe, node), float64: values, and how many of the operator's each stands for.
    low, high : Tensor
        Shape (probe, node): between them lies a value of the operator, for each node.
    n_zeros : int
        Structural zeros that no node stands for.
    num_matvecs : int
        Products with the operator that it took.
    coarse : Rule or None
        The same from three quarters of the steps: the distance tells the error of the rule.
    """

    nodes: Tensor
    weights: Tensor
    low: Tensor
    high: Tensor
    n_zeros: int
    num_matvecs: int
    coarse: Rule | None = None

    def times(self, unit: float) -> Rule:
        """The rule of a multiple of the operator."""
        nodes, low, high = (unit * part for part in (self.nodes, self.low, self.high))
        coarse = self.coarse and self.coarse.times(unit)
        return replace(self, nodes=nodes, low=low, high=high, coarse=coarse)

    def sums(self, function: Act) -> Tensor:
        """Sum of `function` over the spectrum as every probe sees it, shape (probe,)."""
        # Nodes without weight are where a recursion has ended; a logarithm may be infinite there.
        values = torch.where(self.weights > 0, self.weights * function(self.nodes), 0).sum(1)
        if self.n_zeros:
            values = values + self.n_zeros * float(function(self.nodes.new_zeros(1)))
        return values


def gauss_rule(
    op: TrajectoryOperator,
    *,
    num_probes: int,
    steps: int,
    rng: Any,
    symmetric: bool,
    off: Tensor | None = None,
) -> Rule:
    """Gauss rules of the eigenvalues of a symmetric operator, the singular values of another.

    Parameters
    ----------
    op : TrajectoryOperator
        The operator, of about one (:func:`kpops.linalg.scaling.normalized`).
    num_probes, steps : int
        Random vectors, and steps of Lanczos from each.
    rng : int, Generator or None
        Source of the random vectors.
    symmetric : bool
        Whether `op` is self-adjoint.
    off : Tensor, optional
        Modes (mode, *domain.shape) with non-zero values, which the rules leave out: of `op`, or its
        right singular vectors.

    Returns
    -------
    Rule
    """
    given = off is not None and len(off)
    # Modes mix the blocks, and so does a projection off them.
    problem = SpectralProblem(op, symmetric, together=bool(given))
    batches = problem.sides
    modes = _orthonormal(problem.bring(off)[0]) if off is not None and given else None
    rng = seeded(rng)
    work.expect(num_probes * min(steps, batches.size) * (1 if problem.factor is None else 2))
    recursions: list[Tridiagonal] = []
    room = free_bytes(op.device) // 4
    size = max(1, room // (2 * min(steps, batches.size) * problem.G.shape[0] * op.dtype.itemsize))
    for first in range(0, num_probes, size):
        some = min(size, num_probes - first)
        if work.interrupted() and first > 1:
            num_probes = first
            break
        start = random_block(problem.G, some, rng)
        rows = batches.split(start).flatten(0, 1)
        recursions.append(tridiagonalized(partial(_act, problem), rows, steps, modes))
    n_rest = batches.size - (0 if modes is None else len(modes))

    def rule(steps: int, coarse: Rule | None = None) -> Rule:
        # Recursions run (block, probe) in each group of probes; an interrupted one is shorter.
        steps = min([steps, *(r.diagonal.shape[1] for r in recursions)])
        parts = [r.gauss(steps) for r in recursions]
        nodes, weights, residuals = (
            torch.cat([p[i].unflatten(0, (batches.count, -1)) for p in parts], dim=1)
            .transpose(0, 1)
            .flatten(1)
            for i in range(3)
        )
        values, low, high = map(problem.values, (nodes, nodes - residuals, nodes + residuals))
        used = problem.cost * num_probes * recursions[0].diagonal.shape[1]
        return Rule(values, n_rest * weights, low, high, problem.n_zeros, used, coarse)

    steps = min(steps, recursions[-1].diagonal.shape[1])
    return rule(steps, rule(max(1, 3 * steps // 4)))


def _act(problem: SpectralProblem, rows: Tensor) -> Tensor:
    return problem.act(rows.unflatten(0, (problem.sides.count, -1))).flatten(0, 1)


def _orthonormal(modes: Tensor) -> Tensor:
    """Modes (mode, entry), not of unit length, as an orthonormal basis."""
    return torch.linalg.qr((modes / modes.norm(dim=1, keepdim=True)).T)[0].T.contiguous()


def seek_negative(op: TrajectoryOperator, rng: Any, remedy: str) -> int:
    """Refuse a self-adjoint operator if Lanczos sees a negative eigenvalue; return its products.

    The mean of positive quadratic forms is blind for a few negative eigenvalues. After s steps
    from a random vector the least Ritz value is within about ``0.1 (log(n s^4) / s)^2`` of the
    spectrum's extent (Kuczynski and Wozniakowski 1992): 5 % at 32 steps and n = 2000, and far less
    for an eigenvalue that stands off the others.
    """
    if op.positive:
        return 0
    scaled, _ = normalized(op)
    rule = gauss_rule(scaled, num_probes=1, steps=_SEEKING, rng=rng, symmetric=True)
    refuse_indefinite(op, rule.nodes.flatten(), remedy)
    return rule.num_matvecs + 1


def check_probes(num_probes: int, steps: int) -> None:
    """Refuse numbers of probes and steps that make no rule or no error bar."""
    check_count("num_probes", num_probes, 2)
    check_count("steps", steps, 1)
