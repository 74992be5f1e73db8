"""K of one gated layer: thin factors of the features between the diagonals.

``K q = sum_g D_g * Z (Z^T (D_g * q))``, with Z the thin factor of what the learning weights of gate
g multiply; see :mod:`kpops.engines.gated.features`. So ``K = F F*`` with ``F w = sum_g D_g * Z
w_g``, where w has a coefficient for each gate, column of Z and unit.
"""

from __future__ import annotations

from collections.abc import Container
from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kpops.engines.gated.features import numerical_rank, thin_factor
from kpops.engines.gated.layer import Layer
from kpops.engines.gated.roles import Role
from kpops.engines.trajectory import Block
from kpops.precision import accumulate, in_full_precision, product

SOURCES = ("recurrent", "input")
Cotangent = list[list[Float[Tensor, "block _ hidden"]]]
"""Coefficients of F, for each part and each of its factors (block, rank, hidden)."""


class Part(NamedTuple):
    """Gates that K treats alike: the Gram matrix of some `factors` between the same diagonals.

    `gains` are (v, position) of the diagonals D_vg; the Gram matrices of the factors are added.
    """

    gains: tuple[tuple[int, int], ...]
    factors: tuple[int, ...]


class Gram:
    """K of a layer, of which some weights and biases learn, as in :func:`learning`.

    K is the sum of its `parts`. `factors` are the Z of each of :func:`factored` whose rank is not
    0, shape (trial, time, rank), and `ranks` the ranks of all. Vectors are those of the whole
    stack; of these the layer's units are read and written.
    """

    @in_full_precision  # the factors are cut at the rounding of the dtype
    def __init__(self, layer: Layer, weights: dict[str, tuple[bool, bool]]) -> None:
        self.layer = layer
        self.factors: list[Float[Tensor, "trial time _"]] = []
        self.ranks: list[int] = []
        gains: list[list[tuple[tuple[int, int], ...]]] = []
        for sources in factored(layer, weights):
            learned = [u for s in sources for u in layer.features(s, *weights[s])]
            z = thin_factor(learned, layer.trajectory.parts)
            self.ranks.append(z.shape[1])
            if z.shape[1] == 0:
                continue
            self.factors.append(z.unflatten(0, layer.previous.shape[:2]))
            pairs = layer.pairs(sources[0])
            maps = sorted({g for _, g, _ in pairs})
            gains.append([tuple((v, p) for v, h, p in pairs if h == g) for g in maps])
        self.parts = _merged(gains)

    @property
    def width(self) -> int:
        """Number of coefficients of F, the thin factor of K."""
        return self.layer.hidden * sum(z.shape[-1] for part in self.parts for z in self.of(part))

    def apply(self, q: Block, into: Block) -> None:
        """Write K q into `into`."""
        into[..., self.layer.units].zero_()
        if self.parts:  # else nothing learns in this layer, whose diagonals are not needed
            self.jvp(self.vjp(q), into)

    def vjp(self, q: Block) -> Cotangent:
        """F* q."""
        cotangent = [
            [q.new_zeros(len(q), z.shape[-1], self.layer.hidden) for z in self.of(part)]
            for part in self.parts
        ]
        for time, d in self.layer.slices(len(q)):
            old = q[:, :, time, self.layer.units].split(self.layer.hidden, dim=-1)
            for part, sums in zip(self.parts, cotangent, strict=True):
                y = reduce(torch.add, (d[p] * old[v] for v, p in part.gains)).flatten(1, 2)
                for z, total in zip(self.of(part), sums, strict=True):
                    accumulate(total, z[:, time].flatten(0, 1).mT.expand(len(q), -1, -1), y)
        return cotangent

    def jvp(self, cotangent: Cotangent, into: Block) -> None:
        """Write F w into `into`, which is zero there."""
        for time, d in self.layer.slices(len(into)):
            new = into[:, :, time, self.layer.units].split(self.layer.hidden, dim=-1)
            for part, sums in zip(self.parts, cotangent, strict=True):
                pairs = zip(self.of(part), sums, strict=True)
                back = reduce(torch.add, (product(z[:, time].flatten(0, 1), w) for z, w in pairs))
                for v, p in part.gains:
                    new[v].addcmul_(d[p], back.unflatten(1, new[v].shape[1:3]))

    def flat(self, cotangent: Cotangent) -> Float[Tensor, "block coefficient"]:
        """The coefficients of F side by side."""
        return torch.cat([w.flatten(1) for of_part in cotangent for w in of_part], dim=1)

    def split(self, w: Float[Tensor, "block coefficient"]) -> Cotangent:
        """The inverse of :meth:`flat`."""
        shapes = [[(z.shape[-1], self.layer.hidden) for z in self.of(p)] for p in self.parts]
        pieces = iter(w.split([r * h for of_part in shapes for r, h in of_part], dim=1))
        return [[next(pieces).unflatten(1, shape) for shape in of_part] for of_part in shapes]

    def of(self, part: Part) -> list[Tensor]:
        """The factors of a part."""
        return [self.factors[i] for i in part.factors]


def learning(layer: Layer, roles: Container[Role | None]) -> dict[str, tuple[bool, bool]]:
    """For each source of a layer, whether its weight and its bias are among these roles."""
    i = layer.index
    return {s: ((i, s, "weight") in roles, (i, s, "bias") in roles) for s in SOURCES}


def factored(layer: Layer, weights: dict[str, tuple[bool, bool]]) -> list[tuple[str, ...]]:
    """Sources that share a thin factor: those whose maps stand between the same diagonals.

    Sources in which nothing learns, or on which nothing depends, are left out.
    """
    learn = tuple(s for s in SOURCES if any(weights.get(s, ())) and layer.pairs(s))
    if len(learn) == 2 and layer.pattern.recurrent == layer.pattern.inputs:
        return [learn]
    return [(source,) for source in learn]


def bytes_of_factors(layer: Layer, weights: dict[str, tuple[bool, bool]], *, exact: bool) -> int:
    """Bytes of the thin factors, at full or at their `exact` rank."""
    n_trials, n_steps = layer.previous.shape[:2]
    total = 0
    for sources in factored(layer, weights):
        width = sum(weights[s][0] * layer.width(s) + weights[s][1] for s in sources)
        rank = min(n_trials * n_steps, width)
        if exact:
            rank = numerical_rank([u for s in sources for u in layer.features(s, *weights[s])])
        total += rank * n_trials * n_steps * layer.previous.element_size()
    return total


def _merged(gains: list[list[tuple[tuple[int, int], ...]]]) -> list[Part]:
    """One part for every two maps of different sources with the same diagonals; else one each."""
    parts: list[Part] = []
    for factor, of_source in enumerate(gains):
        for gain in of_source:
            for i, part in enumerate(parts):
                if part.gains == gain and factor not in part.factors:
                    parts[i] = Part(gain, (*part.factors, factor))
                    break
            else:
                parts.append(Part(gain, (factor,)))
    return parts
