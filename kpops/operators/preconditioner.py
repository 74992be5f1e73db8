"""Preconditioners of gradients: diagonal, or Kronecker-factored parameter by parameter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kpops.labels import Space
from kpops.operators.base import TrajectoryOperator
from kpops.operators.shapes import Parameters

Factors = Tensor | tuple[Tensor, ...]
"""Of one parameter: numbers of its shape, or a matrix for each of its dimensions."""


class Preconditioner(TrajectoryOperator):
    """M: what an optimizer does to a gradient before it follows it, block diagonal by parameter.

    Numbers d of the shape of a parameter multiply its gradient G entry by entry. Matrices, one for
    each of its dimensions, act along these: ``L G R^T`` for a weight, which is the Kronecker
    product of L and R. M is self-adjoint if the matrices are symmetric, and positive if neither
    the numbers nor the eigenvalues of the matrices are negative.

    Parameters
    ----------
    space : Space
        Of flat parameter vectors.
    factors : sequence of Tensor or tuple of Tensor
        Of each parameter in turn, in one dtype and on one device.
    """

    def __init__(self, space: Space, factors: Sequence[Factors]) -> None:
        matrices = [m for f in factors if isinstance(f, tuple) for m in f]
        numbers = [f for f in factors if isinstance(f, Tensor)]
        symmetric = all(torch.equal(m, m.mT) for m in matrices)
        positive = symmetric and all(bool((d >= 0).all()) for d in numbers)
        positive = positive and all(map(_is_positive, matrices))
        like = (numbers + matrices)[0]
        super().__init__(
            space,
            space,
            dtype=like.dtype,
            device=like.device,
            symbol="M",
            self_adjoint=symmetric,
            positive=positive,
        )
        self.factors = list(factors)

    def _apply(self, q: Parameters) -> Parameters:
        return self._by_parameter(q, self.factors)

    def _apply_adjoint(self, q: Parameters) -> Parameters:
        of = [f if isinstance(f, Tensor) else tuple(m.mT for m in f) for f in self.factors]
        return self._by_parameter(q, of)

    def _by_parameter(self, q: Parameters, factors: Sequence[Factors]) -> Parameters:
        shapes = [_shape(f) for f in factors]
        parts = q.split([shape.numel() for shape in shapes], dim=1)
        images = []
        for part, shape, factor in zip(parts, shapes, factors, strict=True):
            gradient = part.unflatten(1, shape) if len(shape) else part.squeeze(1)
            if isinstance(factor, Tensor):
                gradient = factor * gradient
            else:
                for axis, matrix in enumerate(factor, 1):
                    gradient = (gradient.movedim(axis, -1) @ matrix.mT).movedim(-1, axis)
            images.append(gradient.reshape(len(q), -1))
        return torch.cat(images, 1)

    def _make_root(self) -> TrajectoryOperator:
        roots = [
            f.sqrt() if isinstance(f, Tensor) else tuple(map(_square_root, f)) for f in self.factors
        ]
        return Preconditioner(self.domain, roots)


def _shape(factor: Factors) -> torch.Size:
    return factor.shape if isinstance(factor, Tensor) else torch.Size([len(m) for m in factor])


def _is_positive(matrix: Tensor) -> bool:
    values = torch.linalg.eigvalsh(matrix)
    floor = len(matrix) * torch.finfo(matrix.dtype).eps  # rounding, where some are zero
    return bool(values[0] >= -floor * values[-1])


def _square_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
    return (root + root.mT) / 2
