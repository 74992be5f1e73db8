"""Random vectors, their images in an orthonormal basis, and what each image adds to the others.

Tall blocks keep their dtype and device; the small matrices between them are float64, on the host.
All sums are float64.
"""

from __future__ import annotations

from copy import copy
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kpops.linalg.probes import TINY, Act, Samples
from kpops.linalg.vectors import VectorSpace
from kpops.transfers import on_host


class Sketch:
    """Images of random vectors in an orthonormal basis that grows with them.

    Attributes
    ----------
    probes : Tensor, shape (probe, entry)
        The random vectors.
    basis : Tensor, shape (probe, row)
        Orthonormal rows that span the images.
    coords : Tensor, shape (probe, probe)
        The images in this basis, ``images = coords @ basis``, in float64 on the host.
    products : Tensor, shape (at most probe, column)
        Images of the first rows of the basis; see :meth:`complete`.
    inside, outside : VectorSpace
        Of the random vectors, and of their images.
    """

    def __init__(
        self,
        probes: Float[Tensor, "k entry"],
        images: Float[Tensor, "k row"],
        inside: VectorSpace,
        outside: VectorSpace,
    ) -> None:
        self.inside, self.outside = inside, outside
        self.probes, (self.basis, self.coords) = probes, outside.orthonormal(images)
        self.products: Tensor = probes.new_empty(0)

    def grow(self, probes: Float[Tensor, "k entry"], images: Float[Tensor, "k row"]) -> None:
        """Add more random vectors and their images."""
        rest, along = images, torch.zeros((), dtype=torch.float64, device=images.device)
        for _ in range(2):  # one pass leaves an error of the order of what it removes
            part = self.outside.parts.sum(rest @ self.basis.mT)
            rest = rest - part @ self.basis
            along = along + part.double()
        basis, coords = self.outside.orthonormal(rest)
        (along,) = on_host(along)
        self.coords = torch.nn.functional.pad(self.coords, (0, len(coords)))
        self.coords = torch.cat([self.coords, torch.cat([along, coords], dim=1)])
        self.basis = torch.cat([self.basis, basis])
        self.probes = torch.cat([self.probes, probes])

    def first(self, k: int) -> Sketch:
        """The sketch as it was after its first `k` vectors."""
        early = copy(self)
        early.probes, early.basis = self.probes[:k], self.basis[:k]
        early.coords, early.products = self.coords[:k, :k], self.products[:k]
        return early

    @property
    def missing(self) -> int:
        """Number of rows of the basis that the operator has yet to be applied to."""
        return len(self.basis) - len(self.products)

    def complete(self, act: Act, k: int | None = None) -> None:
        """Apply `act` to those of the first `k` rows of the basis, or all, that lack a product."""
        rows = self.basis[len(self.products) : k]
        if len(rows):
            more = act(rows)
            self.products = torch.cat([self.products, more]) if len(self.products) else more

    def left_out(self) -> LeftOut:
        """Leave each of the images out of their span.

        With the singular value decomposition ``U S V*`` of the coordinates as rows, r singular
        values of them not negligible, image i is outside the span of the others if row i of U is of
        length 1, and ``V S^-1 U* e_i`` is then orthogonal to all others.
        """
        u, s, vt = torch.linalg.svd(self.coords)
        rank = int((s > 16 * torch.finfo(self.basis.dtype).eps * s.max()).sum())
        u, s, vt = u[:, :rank], s[:rank], vt[:rank]
        axes = u / s
        axes = axes / axes.norm(dim=1, keepdim=True).clamp_min(TINY)
        spanned = 1 - u.square().sum(1) > 1e-8
        axes[spanned] = 0
        return LeftOut(vt, u * s, axes)

    @property
    def spans_all(self) -> bool:
        """Whether every image is in the span of the others: the range of the operator is found."""
        return not self.left_out().axes.any()

    def residuals(self) -> Samples:
        """``||(I - Q_i Q_i*) y_i||^2``: the part of each image outside the span of the others."""
        _, points, axes = self.left_out()
        return (points * axes).sum(1).square()

    def residual_forms(self) -> Samples:
        """``z_i* A w_i`` with ``z_i = (I - Q_i Q_i*) w_i``, scaled to the mean of ``||z_i||^2``.

        The mean is ``tr (I - Q Q*) A``, and the variance at least that of the forms ``z_i* A z_i``
        of XTrace, which are not known before A is applied to the basis.
        """
        span, points, axes = self.left_out()
        probes = self.probes
        space = self.inside
        inside, squares = on_host(space.inner(probes, self.basis), space.dots(probes, probes))
        inside = inside @ span.mT
        along = (inside * axes).sum(1)
        lengths = squares - inside.square().sum(1) + along.square()
        rest = space.total - len(span) + axes.any(1)
        return rest * (points * axes).sum(1) * along / lengths.clamp_min(TINY)


class LeftOut(NamedTuple):
    """The numerical range of a sketch, of dimension r, and what each image adds to it.

    Attributes
    ----------
    range
        Orthonormal rows: the numerical range in coordinates of the basis.
    points
        The images in coordinates of the range.
    axes
        The unit vectors s_i in coordinates of the range; zero for an image that the others span,
        without which the range is the same.
    """

    range: Float[Tensor, "r k"]
    points: Float[Tensor, "k r"]
    axes: Float[Tensor, "k r"]
