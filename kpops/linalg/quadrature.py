"""Gauss rules of an operator's spectrum: Lanczos from many random vectors at once.

From a unit vector z, s steps of Lanczos make the tridiagonal matrix T whose eigenvalues t_k and
first eigenvector components c_k are the nodes and, squared, the weights of the Gauss rule of the
spectral measure of z, ``sum_k c_k^2 f(t_k) ~ z* f(A) z``: exact for polynomials f of degree below
2 s, and for all f once the vectors span an invariant space. For z uniform on the sphere the mean
of ``n z* f(A) z`` is tr f(A).

All vectors take each step together. Where the operator is block diagonal over some dimensions, as P
is over trials, every block has its own recursion at no further cost, and is resolved as finely as
if it stood alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kpops import work
from kpops.engines.memory import free_bytes
from kpops.engines.random_vectors import RandomVectors
from kpops.linalg.probes import Act, Samples
from kpops.linalg.problem import SpectralProblem
from kpops.linalg.rounding import noise_floor
from kpops.linalg.scaling import normalized
from kpops.linalg.symmetry import refuse_indefinite
from kpops.linalg.vectors import VectorSpace
from kpops.operators.base import TrajectoryOperator
from kpops.scalars import check_count

_SEEKING = 32
"""Steps of Lanczos that look for a negative eigenvalue."""
_LOOK = 8
"""Steps after which Lanczos looks whether all recursions have ended."""
Nodes = Float[Tensor, "probe node"]


@dataclass(frozen=True)
class Tridiagonal:
    """The matrices T of many recursions, in float64, zero where a recursion has ended.

    `beside` couples each step to the next, also the last.
    """

    diagonal: Float[Tensor, "recursion step"]
    beside: Float[Tensor, "recursion step"]

    def gauss(self, steps: int) -> tuple[Nodes, Nodes, Nodes]:
        """Nodes, weights that add up to 1, and residuals of the rules of the first steps.

        An eigenvalue lies within the residual of each node.
        """
        steps = min(steps, self.diagonal.shape[1])
        off = torch.diag_embed(self.beside[:, : steps - 1], 1)
        t = torch.diag_embed(self.diagonal[:, :steps]) + off + off.mT
        nodes, vectors = torch.linalg.eigh(t)
        first, last = vectors[:, 0], vectors[:, -1]
        # Weights of nodes beyond the end of a recursion are rounding.
        weights = torch.where(first.abs() > 1e-14, first, 0).square()
        return nodes, weights, self.beside[:, steps - 1, None] * last.abs()


def tridiagonalized(
    apply: Act,
    starts: Float[Tensor, "recursion entry"],
    steps: int,
    space: VectorSpace,
    off: Float[Tensor, "mode entry"] | None = None,
) -> Tridiagonal:
    """Run Lanczos from every row of `starts`, vectors of a space, with full reorthogonalisation.

    `apply` is symmetric, of about one. A recursion ends before `steps` when its vectors span an
    invariant space, to the noise floor of the dtype: its rule is then exact. All vectors stay
    orthogonal to the rows of `off`, which are orthonormal and span an invariant space.
    """
    count, n = starts.shape
    off = starts.new_zeros(0, n) if off is None else off
    total = space.parts.sum
    steps = min(steps, max(1, space.total - len(off)))
    for _ in range(2):  # one pass leaves an error of the order of what it removes
        starts = starts - total(starts @ off.mT) @ off
    diagonal = torch.zeros(count, steps, dtype=torch.float64, device=starts.device)
    beside = torch.zeros_like(diagonal)
    basis = starts.new_zeros(count, steps, n)
    basis[:, 0] = starts / space.lengths(starts)[:, None].to(starts.dtype)
    largest = starts.new_zeros(count)
    for step in range(steps):
        image = apply(basis[:, step])
        spanned = basis[:, : step + 1]
        for again in (False, True):  # one pass leaves an error of the order of what it removes
            products = [(spanned @ image[..., None])[..., 0], image @ off.mT]
            products += [] if again else [image.square().sum(1)]
            along, modes, *squares = total(*products)
            if squares:
                diagonal[:, step] = along[:, step]
                largest = torch.maximum(largest, squares[0].sqrt())
            image = image - (spanned.mT @ along[..., None])[..., 0] - modes @ off
        length = space.lengths(image).to(image.dtype)
        going = length > noise_floor(starts.dtype) * largest
        beside[:, step] = torch.where(going, length, 0)
        if work.interrupted():
            diagonal, beside = diagonal[:, : step + 1], beside[:, : step + 1]
            break
        look = starts.device.type == "cpu" or step % _LOOK == _LOOK - 1  # a device waits for it
        if step + 1 == steps or (look and not space.worst(float(going.any()))):
            break
        basis[:, step + 1] = torch.where(going, 1 / length, 0)[:, None] * image
    return Tridiagonal(diagonal, beside)


@dataclass(frozen=True)
class Rule:
    """Gauss rules of random vectors: the spectrum as each sees it, in float64.

    Attributes
    ----------
    nodes, weights
        Values, and how many of the operator's each stands for.
    low, high
        For each node, a value of the operator lies between them.
    n_zeros
        Structural zeros that no node stands for.
    coarse
        The same from three quarters of the steps: the distance shows the error of the rule.
    """

    nodes: Nodes
    weights: Nodes
    low: Nodes
    high: Nodes
    n_zeros: int
    num_matvecs: int
    coarse: Rule | None = None

    def times(self, unit: float) -> Rule:
        """The rule of a multiple of the operator."""
        nodes, low, high = (unit * part for part in (self.nodes, self.low, self.high))
        coarse = self.coarse and self.coarse.times(unit)
        return replace(self, nodes=nodes, low=low, high=high, coarse=coarse)

    def sums(self, function: Act) -> Samples:
        """Sum of `function` over the spectrum as every probe sees it."""
        # Nodes without weight are where a recursion has ended; a logarithm may be infinite there.
        values = torch.where(self.weights > 0, self.weights * function(self.nodes), 0).sum(1)
        if self.n_zeros:
            values = values + self.n_zeros * function(self.nodes.new_zeros(1))
        return values


def gauss_rule(
    op: TrajectoryOperator,
    *,
    num_probes: int,
    steps: int,
    rng: Any,
    symmetric: bool,
    off: Float[Tensor, " mode *dims"] | None = None,
) -> Rule:
    """Gauss rules of the eigenvalues of a symmetric operator, the singular values of another.

    The operator is of about one (:func:`kpops.linalg.scaling.normalized`). The rules leave out the
    modes `off`, whose values are not zero: eigenvectors, or right singular vectors.
    """
    off = off if off is not None and len(off) else None
    # Modes mix the blocks, and so does deflating them.
    problem = SpectralProblem(op, symmetric, together=off is not None)
    batches, space = problem.sides, problem.space
    modes = None if off is None else problem.bring(off)[0]
    if modes is not None:
        modes, _ = space.orthonormal(modes / space.lengths(modes)[:, None].to(modes.dtype))

    def act(rows: Float[Tensor, "recursion entry"]) -> Float[Tensor, "recursion entry"]:
        return problem.act(rows.unflatten(0, (batches.count, -1))).flatten(0, 1)

    source = RandomVectors(rng)
    steps = min(steps, batches.size)
    work.expect(num_probes * steps * (1 if problem.factor is None else 2))
    recursions: list[Tridiagonal] = []
    room = op.parts.least(free_bytes(op.device)) // 4
    size = max(1, int(room // (2 * steps * problem.G.shape[0] * op.dtype.itemsize)))
    for first in range(0, num_probes, size):
        some = min(size, num_probes - first)
        if work.interrupted() and first > 1:
            num_probes = first
            break
        start = VectorSpace.of(problem.G, problem.G.domain).normal(source, some)
        rows = batches.split(start.reshape(some, *problem.G.domain.shape)).flatten(0, 1)
        recursions.append(tridiagonalized(act, rows, steps, space, modes))
    n_rest = batches.size - (0 if modes is None else len(modes))

    def rule(steps: int, coarse: Rule | None = None) -> Rule:
        # Recursions run (block, probe) in each group of probes; an interrupted one is shorter.
        steps = min([steps, *(r.diagonal.shape[1] for r in recursions)])
        parts = [r.gauss(steps) for r in recursions]
        nodes, weights, residuals = (
            space.everywhere(
                torch.cat([p[i].unflatten(0, (batches.count, -1)) for p in parts], dim=1)
            )
            .transpose(0, 1)
            .flatten(1)
            for i in range(3)
        )
        values, low, high = map(problem.values, (nodes, nodes - residuals, nodes + residuals))
        used = problem.cost * num_probes * recursions[0].diagonal.shape[1]
        return Rule(values, n_rest * weights, low, high, problem.n_zeros, used, coarse)

    steps = min(steps, recursions[-1].diagonal.shape[1])
    return rule(steps, rule(max(1, 3 * steps // 4)))


def seek_negative(op: TrajectoryOperator, rng: Any, remedy: str) -> int:
    """Refuse a self-adjoint operator if Lanczos sees a negative eigenvalue; return its matvecs.

    The mean of quadratic forms does not show a few negative eigenvalues. After s steps from a
    random vector the least Ritz value is within about ``0.1 (log(n s^4) / s)^2`` of the extent of
    the spectrum (Kuczynski and Wozniakowski 1992): 5 % at 32 steps and n = 2000, and far less for
    an eigenvalue apart from the others.
    """
    if op.positive:
        return 0
    scaled, _ = normalized(op)
    rule = gauss_rule(scaled, num_probes=1, steps=_SEEKING, rng=rng, symmetric=True)
    refuse_indefinite(op, rule.nodes.flatten(), remedy)
    return rule.num_matvecs + 1


def check_probes(num_probes: int, steps: int) -> None:
    """Refuse numbers of probes and steps that give no rule or no error bar."""
    check_count("num_probes", num_probes, 2)
    check_count("steps", steps, 1)
