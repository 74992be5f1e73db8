"""LOBPCG, which keeps three blocks of vectors and no growing basis."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kpops.linalg.basis import Basis
from kpops.linalg.lanczos import AT_LEAST
from kpops.linalg.probes import Act, Block
from kpops.linalg.problem import Modes
from kpops.linalg.search import Search
from kpops.linalg.vectors import VectorSpace
from kpops.transfers import beside, on_host


def lobpcg(act: Act, space: VectorSpace, search: Search, block: int) -> Modes:
    """Locally optimal block preconditioned conjugate gradients, without preconditioner.

    Knyazev (2001), Toward the optimal preconditioned eigensolver. Each round finds the best vectors
    in the span of the current ones, their residuals, and the directions of the last step. The plain
    method breaks down on operators of low rank, so the basis of the span is kept orthonormal, and
    the directions of the step are made orthonormal from the coefficients of the small problem
    (Hetmaniuk and Lehoucq 2006; Duersch, Shao, Yang and Gu 2018).
    """
    if 3 * block > space.total:
        block = space.total  # all of the space: the first look is exact
    basis = Basis(space, 3 * block, search.rng)
    x = basis.random(block, search.near)
    ax = act(x)
    search.spend(block)
    values, axes = _ritz(space, x, ax)
    x, ax = beside(axes, x).mT @ x, beside(axes, x).mT @ ax
    p, ap = x[:, :0], ax[:, :0]
    while True:
        residual = ax - beside(values, x)[..., None] * x
        current = torch.cat([x, p], 1)
        gaps, gram, longest = on_host(
            space.lengths(residual), space.inner(current, current), space.lengths(ax).max()
        )
        found = _look(search, values, gaps, x, space)
        if found is not None:
            return found
        # Nearly orthonormal vectors are made so, and their images transformed alike.
        turn = beside(torch.linalg.inv(torch.linalg.cholesky(gram)), x)
        images = turn @ torch.cat([ax, ap], 1)
        basis.n = 0
        basis.append(turn @ current)
        basis.remove(residual)
        basis.remove(residual)
        (gram,) = on_host(basis.gram_of(residual))
        r = basis.orthonormal(residual, gram, space.worst(float(longest)))
        basis.append(r)
        images = torch.cat([images, act(r)], dim=1)
        search.spend(block)
        values, axes = _ritz(space, basis.rows, images)
        best = axes[..., :block]
        # Directions of the step: the best vectors without their components along the current ones,
        # made orthonormal to the best in the coordinates of the span; arbitrary where they vanish.
        step = best.clone()
        step[:, :block] = 0
        step = torch.linalg.qr(torch.cat([best, step], dim=2))[0][..., block:]
        values = values[:, :block]
        best, step = beside(best, x), beside(step, x)
        x, ax = best.mT @ basis.rows, best.mT @ images
        p, ap = step.mT @ basis.rows, step.mT @ images


def _ritz(
    space: VectorSpace, q: Block, image: Block
) -> tuple[Float[Tensor, "problem mode"], Float[Tensor, "problem vector mode"]]:
    """Eigenvalues of the operator in the span of q, of falling magnitude, and coefficients.

    Both are float64, on the host.
    """
    (h,) = on_host(space.inner(q, image))
    values, axes = torch.linalg.eigh((h + h.mT) / 2)
    order = values.abs().argsort(dim=1, descending=True)
    axes = axes.gather(2, order[:, None].expand_as(axes))
    return values.gather(1, order), axes


def _look(
    search: Search,
    values: Float[Tensor, "problem vector"],
    gaps: Float[Tensor, "problem vector"],
    x: Block,
    space: VectorSpace,
) -> Modes | None:
    """The modes, if they are found, are all of the space, or the search must end."""
    complete = x.shape[1] == space.total
    values, gaps = space.everywhere(values), space.everywhere(gaps)
    chosen, n_certified = search.look(values, gaps * (not complete))
    if search.spent < AT_LEAST * x.shape[1] and not complete:
        n_certified = 0
    if not (
        n_certified == search.k or complete or search.stopped or not search.can_afford(x.shape[1])
    ):
        return None
    problem, mode = chosen // x.shape[1], chosen % x.shape[1]
    vectors = x.new_zeros(len(chosen), x.shape[2])
    for i, (p, m) in enumerate(zip(space.local(problem), mode.tolist(), strict=True)):
        if p is not None:
            vectors[i] = x[p, m]
    return Modes(values[problem, mode], problem, (vectors,), n_certified)
