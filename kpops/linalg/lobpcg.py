"""LOBPCG, which keeps three blocks of vectors and no growing basis."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kpops.linalg.basis import Basis
from kpops.linalg.lanczos import AT_LEAST
from kpops.linalg.probes import Act, Block, inner, lengths_of
from kpops.linalg.problem import BatchedSpace, Modes
from kpops.linalg.search import Search


def lobpcg(act: Act, space: BatchedSpace, search: Search, block: int) -> Modes:
    """Locally optimal block preconditioned conjugate gradients, without preconditioner.

    Knyazev (2001), Toward the optimal preconditioned eigensolver. Each round finds the best vectors
    in the span of the current ones, their residuals, and the directions of the last step. The plain
    method breaks down on operators of low rank, so the basis of the span is kept orthonormal, and
    the directions of the step are made orthonormal from the coefficients of the small problem
    (Hetmaniuk and Lehoucq 2006; Duersch, Shao, Yang and Gu 2018).
    """
    if 3 * block > space.size:
        block = space.size  # all of the space: the first look is exact
    basis = Basis(space.n_problems, 3 * block, space.size, space.dtype, space.device, search.rng)
    x = basis.random(block, search.near)
    ax = act(x)
    search.spend(block)
    values, axes = _ritz(x, ax)
    x, ax = axes.mT @ x, axes.mT @ ax
    p, ap = x[:, :0], ax[:, :0]
    while True:
        found = _look(search, values, x, ax)
        if found is not None:
            return found
        residual = ax - values.to(x.dtype)[..., None] * x
        current, images = _straightened(torch.cat([x, p], 1), torch.cat([ax, ap], 1))
        basis.n = 0
        basis.append(current)
        basis.remove(residual)
        basis.remove(residual)
        r = basis.orthonormal(residual, float(ax.norm(dim=2).max()))
        basis.append(r)
        images = torch.cat([images, act(r)], dim=1)
        search.spend(block)
        values, axes = _ritz(basis.rows, images)
        best = axes[..., :block]
        # Directions of the step: the best vectors without their components along the current ones,
        # made orthonormal to the best in the coordinates of the span; arbitrary where they vanish.
        step = best.clone()
        step[:, :block] = 0
        step = torch.linalg.qr(torch.cat([best, step], dim=2))[0][..., block:]
        values = values[:, :block]
        x, ax = best.mT @ basis.rows, best.mT @ images
        p, ap = step.mT @ basis.rows, step.mT @ images


def _straightened(q: Block, image: Block) -> tuple[Block, Block]:
    """Make nearly orthonormal vectors orthonormal, and transform their images alike."""
    factor = torch.linalg.cholesky(inner(q, q))
    turn = torch.linalg.inv(factor).to(q.dtype)
    return turn @ q, turn @ image


def _ritz(
    q: Block, image: Block
) -> tuple[Float[Tensor, "problem mode"], Float[Tensor, "problem vector mode"]]:
    """Eigenvalues of the operator in the span of q, of falling magnitude, and coefficients."""
    h = inner(q, image)
    values, axes = torch.linalg.eigh((h + h.mT) / 2)
    order = values.abs().argsort(dim=1, descending=True)
    axes = axes.gather(2, order[:, None].expand_as(axes))
    return values.gather(1, order), axes.to(q.dtype)


def _look(
    search: Search, values: Float[Tensor, "problem vector"], x: Block, ax: Block
) -> Modes | None:
    """The modes, if they are found or the search must end."""
    gaps = lengths_of(ax - values.to(x.dtype)[..., None] * x)
    complete = x.shape[1] == x.shape[2]
    chosen, n_certified = search.look(values, gaps * (not complete))
    if search.spent < AT_LEAST * x.shape[1] and not complete:
        n_certified = 0
    if not (
        n_certified == search.k or complete or search.stopped or not search.can_afford(x.shape[1])
    ):
        return None
    problem, mode = chosen // x.shape[1], chosen % x.shape[1]
    return Modes(values[problem, mode], problem, (x[problem, mode],), n_certified)
