"""K of a gated layer, unit by unit: small matrices that hold the whole of its spectrum.

K couples no two units of a layer. That of unit i is ``M_i M_i^T``, where M_i has a row for each
(variable, trial, time) and a column for each gate and each column of the thin factor Z of what the
gate's weights multiply, ``M_i[(v, b, t), (g, a)] = D_vg[b, t, i] Z_g[b, t, a]``. Spectrum, trace
and Frobenius norm of K are unions or sums over the small Gram matrices ``M_i^T M_i``. These are
sums over trials, and so over the processes that hold them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kpops.distributed.parts import Parts
from kpops.engines.blocks import Blocks, PartSpectrum, Whole
from kpops.engines.gated.gram import Gram

# Bytes of the matrices M of the units that are taken together.
_BYTES = defaultdict(lambda: 2**30, cpu=2**22)


class UnitBlocks(Blocks):
    """The `n_units` blocks of ``scale K`` of a layer, a few at a time; scale is not negative.

    `units` is where the layer's units lie in the stack, its variables one after the other.
    """

    def __init__(self, gram: Gram, scale: float = 1.0) -> None:
        self.gram = gram
        self.scale = scale
        self.n_units = self.n_distinct = gram.layer.hidden
        self.units = gram.layer.units

    def scaled(self, factor: float) -> UnitBlocks:
        """The blocks of a multiple."""
        return UnitBlocks(self.gram, factor * self.scale)

    @property
    def parts(self) -> Parts:
        """How the rows of M are spread over processes."""
        return self.gram.layer.trajectory.parts

    @property
    def n_values(self) -> int:  # type: ignore[override]
        """As many for each unit as M has rows or columns."""
        return self.n_units * min(self.n_rows, self.n_columns)

    @property
    def n_rows(self) -> int:  # type: ignore[override]
        """Rows of M: variables times trials times steps, on all processes."""
        n_trials, n_steps = self.gram.layer.previous.shape[:2]
        n_trials = sum(self.parts.counts) if self.parts.many else n_trials
        return self.gram.layer.variables * n_trials * n_steps

    @property
    def n_columns(self) -> int:  # type: ignore[override]
        """Columns of M."""
        return self.gram.width // self.n_units

    def chunks(self) -> Iterator[slice]:
        """Units whose matrices are formed together."""
        layer = self.gram.layer
        per_unit = max(1, self.n_rows * self.n_columns * layer.previous.element_size())
        size = max(1, _BYTES[layer.previous.device.type] // per_unit)
        for start in range(0, self.n_units, size):
            yield slice(start, min(start + size, self.n_units))

    @torch.inference_mode(False)
    @torch.no_grad()
    def factors(self, units: slice) -> Float[Tensor, "unit row column"]:
        """M of these units, with rows variable * trial * time."""
        layer = self.gram.layer
        n_trials, n_steps, _ = layer.previous.shape
        n_chosen = len(range(self.n_units)[units])
        m = layer.previous.new_zeros(n_chosen, layer.variables, n_trials, n_steps, self.n_columns)
        for segment in layer.segments():
            d = layer.diagonals(segment)[..., units].to(m.dtype).movedim(-1, 0)
            column = 0
            for part in self.gram.parts:
                for z in self.gram.of(part):
                    columns = slice(column, column + z.shape[-1])
                    for v, p in part.gains:
                        here = m[:, v, :, segment, columns]
                        torch.addcmul(here, d[:, p, :, :, None], z[:, segment], out=here)
                    column = columns.stop
        return m.mul_(self.scale**0.5).flatten(1, 3)

    def factor(self, unit: int) -> Float[Tensor, "row column"]:
        """M of one unit."""
        return self.factors(slice(unit, unit + 1))[0]

    def place(self, rows: Float[Tensor, "block row"], unit: int, whole: Whole) -> None:
        """Write rows variable * trial * time of a unit into one or more vectors of the stack."""
        layer = self.gram.layer
        fields = rows.unflatten(1, (layer.variables, *layer.previous.shape[:2]))
        for v in range(layer.variables):
            whole[..., self.units.start + v * layer.hidden + unit] = fields[:, v]

    def grams(self) -> Iterator[Float[Tensor, "unit size size"]]:
        """The smaller of ``M^T M`` and ``M M^T``, chunk by chunk."""
        for m in self._thin_factors():
            yield self.parts.sum(m.mT @ m)

    def _thin_factors(self) -> Iterator[Float[Tensor, "unit row column"]]:
        """M or its transpose, whichever has fewer columns, chunk by chunk."""
        by_columns = self.n_columns <= self.n_rows or self.parts.many
        for units in self.chunks():
            yield self.factors(units) if by_columns else self.factors(units).mT

    def eigenvalues(self) -> Float[Tensor, "unit size"]:
        """Eigenvalues of every block, ascending; all others of K are zero."""
        size = min(self.n_columns, self.n_rows)
        return torch.cat([torch.linalg.eigvalsh(gram)[:, -size:] for gram in self.grams()])

    def spectrum(self) -> PartSpectrum:
        """All eigenvalues, unit by unit."""
        every = self.eigenvalues()
        unit, rank = torch.meshgrid(*(torch.arange(n) for n in every.shape), indexing="ij")
        return PartSpectrum(every.flatten(), unit.flatten(), rank.flatten())

    def positions(self, units: Int[Tensor, " value"]) -> Int[Tensor, " value"]:
        """Units of a stack of layers; of a layer of several variables, those of the first."""
        return self.units.start + units

    def write_diagonal(self, whole: Whole) -> None:
        """Write the sums of squares of the rows of M."""
        for units in self.chunks():
            sums = self.factors(units).double().square().sum(2)
            for unit, row in zip(range(self.n_units)[units], sums, strict=True):
                self.place(row[None], unit, whole)

    def alike(self, other: Blocks) -> bool:
        """Whether another K is of the same trials, times and units."""
        if not isinstance(other, UnitBlocks):
            return False
        mine, theirs = ((b.units, b.n_units, b.n_rows) for b in (self, other))
        return mine == theirs

    @torch.inference_mode(False)
    @torch.no_grad()
    def trace(self) -> float:
        """Sum of all eigenvalues: ``D_vg[b, t, i]^2 Z_g[b, t, a]^2``, first over i and over a."""
        layer = self.gram.layer
        total = layer.previous.new_zeros((), dtype=torch.float64)
        for segment in layer.segments():
            d = layer.diagonals(segment).double().square().sum(-1)
            for part in self.gram.parts:
                z = torch.cat([z[:, segment] for z in self.gram.of(part)], -1).double()
                squares = z.square().sum(-1)
                for _, p in part.gains:
                    total += (d[p] * squares).sum()
        return self.scale * float(self.parts.sum(total))

    def inner(self, other: UnitBlocks) -> float:
        """tr(K K'), for K' of the same trials, times and units."""
        total = self.gram.layer.previous.new_zeros((), dtype=torch.float64)
        for weight, cross in self._own_crosses() if other is self else self._crosses(other):
            total += weight * torch.linalg.vector_norm(cross, dtype=torch.float64).square()
        return float(total)

    def _crosses(self, other: UnitBlocks) -> Iterator[tuple[int, Tensor]]:
        """``M^T M'``, chunk by chunk, each to be counted once."""
        for units in self.chunks():
            mine, theirs = self.factors(units), other.factors(units)
            yield 1, self.parts.sum(mine.mT @ theirs)

    def _own_crosses(self) -> Iterator[tuple[int, Tensor]]:
        """The quarters of ``M^T M``, of which those off the diagonal are alike."""
        for m in self._thin_factors():
            left, right = m.tensor_split(2, dim=2)
            quarters = self.parts.sum(left.mT @ left, left.mT @ right, right.mT @ right)
            yield from zip((1, 2, 1), quarters, strict=True)
