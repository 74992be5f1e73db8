"""Traces of G and of G^2 from the same random vectors."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kpops import work
from kpops.engines.random_vectors import RandomVectors
from kpops.linalg.probes import TINY, Rows, Samples, three_dots
from kpops.linalg.problem import SpectralProblem
from kpops.linalg.symmetry import refuse_indefinite
from kpops.linalg.vectors import VectorSpace
from kpops.operators.base import TrajectoryOperator
from kpops.transfers import on_host

NEEDS_POSITIVE = "an effective rank of a self-adjoint operator needs that: use op @ op.H"
_LEAST = 8
"""Vectors that an interrupted estimate has at least."""


class Moments(NamedTuple):
    """Independent estimates of tr G and of tr G^2, one of each per random vector, in float64."""

    first: Samples
    second: Samples
    how: str


Basis = Float[Tensor, "column entry"]


def moments(
    op: TrajectoryOperator, symmetric: bool, num_matvecs: int, rng: Any
) -> tuple[list[Moments], int]:
    """Estimate tr G and tr G^2, with G the operator if it is symmetric and ``A A*`` if not.

    A is of about one (:func:`kpops.linalg.scaling.normalized`). Returns one candidate, or two if
    the spectrum is seen to decay, from the same matvecs: take the one with the smaller error bar.
    Also returns the number of matvecs with A, about `num_matvecs`.

    With z uniform on the sphere of squared radius n, ``z* G z`` and ``||G z||^2`` have means tr G
    and tr G^2; one matvec serves both. They scatter by a mode's random weight. Where few modes
    hold most of G, these are better summed exactly (Hutch++: Meyer, Musco, Musco and Woodruff
    2021): with Q an orthonormal basis of the images of a quarter of the vectors,
    ``tr G = tr Q* G Q + E z' G z'`` and ``||G||^2 = ||G Q||^2 + E ||G z'||^2`` for
    ``z' = z - Q Q* z``, at the price of another quarter for G Q. It is tried if the first quarter
    shows a participation ratio below half of its number.

    For ``G = R R*`` both traces are those of ``R* R``, which is applied if it is smaller.
    """
    source = RandomVectors(rng)
    problem = SpectralProblem(op, symmetric)
    m = max(2, num_matvecs // problem.cost)
    work.expect(m * (1 if problem.factor is None else 2))
    n_pilot = m // 4
    space = VectorSpace.of(problem.G, problem.G.domain)
    z, y = _images(problem, space, n_pilot, source)
    decays = n_pilot >= 4 and _participation(space, z, y) < n_pilot / 2
    basis = _basis(problem, space, y) if decays else None
    spent = n_pilot if basis is None else n_pilot + len(basis[0])
    plain, rest = _quotients(space, z, y), []
    for first in range(spent, m, space.block):
        if work.interrupted() and plain.shape[1] >= _LEAST:
            m = first
            break
        z, y = _images(problem, space, min(space.block, m - first), source)
        plain = torch.cat([plain, _quotients(space, z, y)], 1)
        if basis is not None:
            inside = space.parts.sum(z @ basis[0].T)
            rest.append(_quotients(space, z - inside @ basis[0], y - inside @ basis[1]))
    if problem.factor is None:
        refuse_indefinite(op, plain[0] / plain[2].sqrt().clamp_min(TINY), NEEDS_POSITIVE)
    used = problem.cost * max(m, spent)
    candidates = [Moments(plain[0], plain[1], f"{plain.shape[1]} random vectors")]
    if basis is not None and rest:
        of_basis, mapped = basis
        pairs = space.dots(of_basis, mapped), space.dots(mapped, mapped)
        held = torch.stack([products.sum() for products in pairs])
        values = held[:, None] + torch.cat(rest, 1)[:2]
        how = f"{len(basis[0])} leading directions and {values.shape[1]} random vectors off them"
        candidates.append(Moments(values[0], values[1], how))
    return candidates, used


def _images(
    problem: SpectralProblem, space: VectorSpace, count: int, source: RandomVectors
) -> tuple[Rows, Rows]:
    z = space.sphere(source, count)
    if count == 0:  # small budgets have no pilot, and operators need not take empty blocks
        return z, z
    return z, problem.G.apply(z.reshape(count, *problem.G.domain.shape)).flatten(1)


def _quotients(space: VectorSpace, z: Rows, y: Rows) -> Float[Tensor, "3 vector"]:
    """z* G z, ||G z||^2 and ||z||^2 ||G z||^2 of every vector."""
    form, second, length = space.parts.sum(three_dots(y, z))
    return torch.stack([form, second, length * second])


def _participation(space: VectorSpace, z: Rows, y: Rows) -> float:
    first, second, _ = on_host(_quotients(space, z, y).mean(1))[0].tolist()
    return first**2 / second if second > 0 else 0.0


def _basis(problem: SpectralProblem, space: VectorSpace, y: Rows) -> tuple[Basis, Basis] | None:
    """Orthonormal rows Q that span the images, and their images; None if all images are zero."""
    largest = space.largest(y)
    if not largest > 0:
        return None
    basis = space.orthonormal(y / largest)[0]
    return basis, problem.G.apply(basis.reshape(-1, *problem.G.domain.shape)).reshape(basis.shape)
