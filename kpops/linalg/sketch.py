"""Random vectors, their images in an orthonormal basis, and what each image adds to the others.

Vectors are rows, a block of them a tensor (vector, entry). Tall blocks keep their dtype; the small
matrices between them, and all sums, are float64. Nothing here squares a tall block, so that no
scale of the operator leaves the dtype.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kpops.linalg.probes import TINY, Act, dots, inner


class Sketch:
    """Images of random vectors in an orthonormal basis that grows with them.

    Parameters
    ----------
    probes, images : Tensor
        Random vectors (k, n) and what the operator makes of them (k, size).

    Attributes
    ----------
    probes : Tensor
        The random vectors.
    basis : Tensor
        Orthonormal rows (k, size) that span the images.
    coords : Tensor
        The images in this basis, (k, k), float64: ``images = coords @ basis``.
    products : Tensor
        What the estimator needs of the first rows of the basis: see :meth:`complete`.
    """

    def __init__(self, probes: Tensor, images: Tensor) -> None:
        basis, coords = orthonormal(images)
        self.probes, self.basis, self.coords = probes, basis, coords
        self.products: Tensor = probes.new_empty(0)

    def grow(self, probes: Tensor, images: Tensor) -> None:
        """Take in more random vectors and their images."""
        rest, along = images, torch.zeros((), dtype=torch.float64, device=images.device)
        for _ in range(2):  # once leaves a part of the order of what it takes away
            part = rest @ self.basis.mT
            rest = rest - part @ self.basis
            along = along + part.double()
        basis, coords = orthonormal(rest)
        self.coords = torch.nn.functional.pad(self.coords, (0, len(coords)))
        self.coords = torch.cat([self.coords, torch.cat([along, coords], dim=1)])
        self.basis = torch.cat([self.basis, basis])
        self.probes = torch.cat([self.probes, probes])

    def first(self, k: int) -> Sketch:
        """The sketch as it was after its first `k` vectors."""
        early = object.__new__(Sketch)
        early.probes, early.basis, early.coords = (
            self.probes[:k],
            self.basis[:k],
            self.coords[:k, :k],
        )
        early.products = self.products[:k]
        return early

    @property
    def missing(self) -> int:
        """Rows of the basis whose product is still to be made."""
        return len(self.basis) - len(self.products)

    def complete(self, act: Act, k: int) -> None:
        """Multiply those of the first `k` rows of the basis that have no product yet."""
        rows = self.basis[len(self.products) : k]
        if len(rows):
            more = act(rows)
            self.products = torch.cat([self.products, more]) if len(self.products) else more

    def left_out(self) -> LeftOut:
        """The images and the directions s_i, in coordinates of the numerical range."""
        return left_out_of(self.coords, torch.finfo(self.basis.dtype).eps)

    def residuals(self) -> Tensor:
        """``||(I - Q_i Q_i*) y_i||^2``: what the other images miss of each."""
        _, points, axes = self.left_out()
        return (points * axes).sum(1).square()

    def residual_forms(self) -> Tensor:
        """``z_i* A w_i`` with ``z_i = (I - Q_i Q_i*) w_i``, scaled to the mean of ``||z_i||^2``.

        The mean is ``tr (I - Q Q*) A``, and the variance at least that of the forms ``z_i* A z_i``
        of XTrace, which are not known without the products with the basis.
        """
        span, points, axes = self.left_out()
        inside = inner(self.probes, self.basis) @ span.mT
        along = (inside * axes).sum(1)
        lengths = dots(self.probes, self.probes) - inside.square().sum(1) + along.square()
        rest = self.probes.shape[1] - len(span) + axes.any(1)
        return rest * (points * axes).sum(1) * along / lengths.clamp_min(TINY)


class LeftOut(NamedTuple):
    """What :func:`left_out_of` finds.

    Attributes
    ----------
    range : Tensor
        Orthonormal rows (r, k): the numerical range in coordinates of the basis.
    points : Tensor
        The images in coordinates of the range, (k, r).
    axes : Tensor
        The unit vectors s_i in coordinates of the range, (k, r); zero for an image that the others
        span, without which the range is the same.
    """

    range: Tensor
    points: Tensor
    axes: Tensor


def orthonormal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal rows and the coordinates of `rows` in them."""
    q, r = torch.linalg.qr(rows.mT)
    return q.mT.contiguous(), r.mT.double()


def left_out_of(coords: Tensor, eps: float) -> LeftOut:
    """Leave each of the points out of their span.

    With the singular value decomposition ``U S V*`` of the points as rows, r singular values of
    them not negligible, point i is outside the span of the others if row i of U is of length 1, and
    ``V S^-1 U* e_i`` is then orthogonal to all others.
    """
    u, s, vt = torch.linalg.svd(coords)
    rank = int((s > 16 * eps * s.max()).sum())
    u, s, vt = u[:, :rank], s[:rank], vt[:rank]
    axes = u / s
    axes = axes / axes.norm(dim=1, keepdim=True).clamp_min(TINY)
    spanned = 1 - u.square().sum(1) > 1e-8
    axes[spanned] = 0
    return LeftOut(vt, u * s, axes)
