"""Operators of low rank, by their singular triplets."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import xarray as xr
from torch import Tensor

from kpops.labels import Space
from kpops.operators.base import TrajectoryOperator
from kpops.operators.shapes import Given, Image, InCodomain, InDomain


class LowRank(TrajectoryOperator):
    r"""The operator ``sum_i s_i u_i v_i*``.

    Parameters
    ----------
    left : Tensor, shape (k, \*codomain.shape)
        The vectors u.
    values : Tensor, shape (k,)
        The factors s.
    right : Tensor, shape (k, \*domain.shape), or None
        The vectors v; None if they are the vectors u, which makes the operator self-adjoint, and
        positive if no s is negative.
    domain, codomain, symbol, attrs
        As for :class:`kpops.TrajectoryOperator`.
    modes : Dataset, optional
        Where the triplets come from; see :func:`kpops.truncate`.

    Raises
    ------
    ValueError
        If the shapes do not fit.
    """

    def __init__(
        self,
        left: Tensor,
        values: Tensor,
        right: Tensor | None,
        domain: Space,
        codomain: Space,
        *,
        symbol: str,
        attrs: Mapping[str, str] | None = None,
        modes: xr.Dataset | None = None,
    ) -> None:
        shapes = [tuple(left.shape), tuple(left.shape if right is None else right.shape)]
        expected = [(len(values), *codomain.shape), (len(values), *domain.shape)]
        if shapes != expected:
            raise ValueError(f"left and right have shapes {shapes}, expected {expected}")
        super().__init__(
            domain,
            codomain,
            dtype=left.dtype,
            device=left.device,
            symbol=symbol,
            self_adjoint=right is None,
            positive=right is None and bool((values >= 0).all()),
            attrs=attrs,
        )
        self.left = left
        self.values = values
        self.right = left if right is None else right
        self.modes = modes

    is_composed = True

    def _apply(self, q: InDomain) -> InCodomain:
        return self._combine(q, self.right, self.left, self.domain)

    def _apply_adjoint(self, q: InCodomain) -> InDomain:
        return self._combine(q, self.left, self.right, self.codomain)

    def _combine(self, q: Given, inside: Tensor, outside: Tensor, space: Space) -> Image:
        coefficients = space.parts.sum(q.flatten(1) @ inside.flatten(1).mT)
        image = (coefficients * self.values) @ outside.flatten(1)
        return image.reshape(-1, *outside.shape[1:])

    def _numbers_per_vector(self) -> int:
        return super()._numbers_per_vector() + len(self.values)

    def _make_root(self) -> TrajectoryOperator:
        k = len(self.values)
        identity = torch.eye(k, dtype=self.torch_dtype, device=self.device)
        space = Space(("mode",), (k,))
        symbol = f"root of {self.symbol}"
        return LowRank(self.left, self.values.sqrt(), identity, space, self.codomain, symbol=symbol)
