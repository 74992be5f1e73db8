"""The sites that are outputs of linear layers, where K is a Kronecker product.

A layer ``h = v W^T + b`` gives ``K h' = (V V^T [+ 1]) h'`` on each of its outputs alike, with the
features v that it reads, at all trials and positions, as the rows of V: the Kronecker core of K
(The Global Empirical NTK, arXiv 2605.08746), ``K = (V V^T [+ 1]) kron I``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kpops.engines.blocks import Blocks, PartSpectrum, Whole
from kpops.models.sites import Rows, SiteNetwork, Sites

Block = Float[Tensor, "block trial unit"]
Fields = Float[Tensor, "block row output"]
# Up to this multiple of the features, K by the Gram matrix of the rows is cheaper than J J*.
_ROWS = 1.5


@dataclass
class LinearSite:
    """The calls of one linear layer.

    `features` are its inputs (trial, position, feature) of all calls, one after the other;
    `places` are the units (position, output) of all sites.
    """

    weight: str
    bias: str | None
    features: Float[Tensor, "trial position feature"]
    places: Int[Tensor, "position output"]

    @property
    def names(self) -> list[str]:
        """The parameters."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    @property
    def rows(self) -> Float[Tensor, "row feature"]:
        """Features of all trials and positions."""
        return self.features.flatten(0, 1)

    @cached_property
    def gram(self) -> Float[Tensor, "row row"]:
        """V V^T."""
        return self.rows @ self.rows.mT

    @cached_property
    def is_wide(self) -> bool:
        """Whether V V^T is smaller than what it replaces."""
        return len(self.rows) <= _ROWS * self.rows.shape[1]

    @cached_property
    def side_by_side(self) -> slice | None:
        """The units, if they have no others between them: no copy is made of such."""
        first = int(self.places[0, 0])
        units = torch.arange(first, first + self.places.numel()).to(self.places)
        return slice(first, first + len(units)) if units.equal(self.places.flatten()) else None

    def taken(self, q: Block) -> Fields:
        """Entries of the units, with rows (trial, position)."""
        if self.side_by_side is None:
            return q[:, :, self.places].flatten(1, 2)
        return q[:, :, self.side_by_side].unflatten(2, self.places.shape).flatten(1, 2)

    def add(self, image: Block, fields: Fields) -> None:
        """Add entries of the units."""
        parts = fields.unflatten(1, self.features.shape[:2])
        if self.side_by_side is None:
            image[:, :, self.places] += parts
        else:
            image[:, :, self.side_by_side] += parts.flatten(2)

    def jvp(self, dw: Tensor | None, db: Tensor | None) -> Fields:
        """J of changes (block, output, feature) and (block, output)."""
        found = [] if dw is None else [self.rows @ dw.mT]
        if db is not None:
            found.append(db[:, None].expand(-1, len(self.rows), -1))
        return sum(found[1:], found[0])

    def vjp(self, fields: Fields, name: str) -> Float[Tensor, "block parameter"]:
        """J* for one of the parameters."""
        if name == self.bias:
            return fields.sum(1)
        return (fields.mT @ self.rows).flatten(1)

    def kron(self, fields: Fields, names: Sequence[str]) -> Fields:
        """``(V V^T [+ 1]) h'`` for those of the parameters that are named."""
        image = torch.zeros_like(fields)
        if self.weight in names:
            v = self.rows
            image = self.gram @ fields if self.is_wide else v @ (v.mT @ fields)
        return image + fields.sum(1, keepdim=True) if self.bias in names else image

    def factor(self, names: Sequence[str]) -> Float[Tensor, "row column"]:
        """[V, 1], or what of it belongs to the named parameters."""
        ones = self.rows.new_ones(len(self.rows), 1)
        parts = {self.weight: self.rows, self.bias: ones}
        return torch.cat([parts[name] for name in self.names if name in names], dim=1)


def linear_sites(
    network: SiteNetwork, parameters: dict[str, Tensor], x: Rows, h: Sites
) -> list[LinearSite]:
    """The linear layers whose outputs are sites, and whose parameters learn and are not shared."""
    module = network.module
    own = {id(p): name for name, p in module.named_parameters()}
    uses = [id(p) for _, p in module.named_parameters(remove_duplicate=False)]
    layers: dict[str, nn.Linear] = {}
    for path in dict.fromkeys(site.path for site in network.sites):
        part = module.get_submodule(path)
        if type(part) is nn.Linear and not parametrize.is_parametrized(part):
            mine = [p for p in (part.weight, part.bias) if p is not None]
            if all(uses.count(id(p)) == 1 and own[id(p)] in parameters for p in mine):
                layers[path] = part
    read = network.read_by(list(layers), x)
    starts = [0, *accumulate(network.sizes)]
    found = []
    for path, layer in layers.items():
        features, places = [], []
        for site, start, stop in zip(network.sites, starts, starts[1:], strict=False):
            if site.path == path:
                inputs = read[path, site.call].movedim(site.axis, 0)
                features.append(inputs.reshape(len(h), -1, layer.in_features))
                units = torch.arange(start, stop, device=h.device)
                places.append(units.unflatten(0, (-1, layer.out_features)))
        bias = None if layer.bias is None else own[id(layer.bias)]
        joined = torch.cat(features, 1), torch.cat(places)
        found.append(LinearSite(own[id(layer.weight)], bias, *joined))
    return found


class SiteBlocks(Blocks):
    """K of linear layers: each output of a layer is a unit, and all units of a layer are alike."""

    def __init__(
        self, sites: Sequence[LinearSite], names: Sequence[str], scale: float = 1.0
    ) -> None:
        self.sites, self.names, self.scale = sites, names, scale
        self.outputs = [site.places.shape[1] for site in sites]
        self.n_units, self.n_distinct = sum(self.outputs), len(sites)
        self.factors = [site.factor(names) for site in sites]
        shapes = [tuple(m.shape) for m in self.factors]
        self.n_values = sum(n * min(s) for n, s in zip(self.outputs, shapes, strict=True))
        self.n_rows, self.n_columns = max(shapes, key=min)

    def scaled(self, factor: float) -> SiteBlocks:
        """The parts of a multiple."""
        return SiteBlocks(self.sites, self.names, factor * self.scale)

    def spectrum(self) -> PartSpectrum:
        """All eigenvalues, those of a layer repeated for each of its outputs."""
        parts, first = [], 0
        for m, n in zip(self.factors, self.outputs, strict=True):
            size = min(m.shape)
            gram = m.mT @ m if m.shape[1] <= m.shape[0] else m @ m.mT
            values = self.scale * torch.linalg.eigvalsh(gram)
            unit = torch.arange(first, first + n).repeat_interleave(size)
            parts.append((values.repeat(n), unit, torch.arange(size).repeat(n)))
            first += n
        return PartSpectrum(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def positions(self, units: Int[Tensor, " value"]) -> None:
        """None: a unit has a place for each position of its site."""

    def factor(self, unit: int) -> Float[Tensor, "row column"]:
        """M of the layer of a unit."""
        return self.scale**0.5 * self.factors[self._layer(unit)[0]]

    def same_factor(self, unit: int) -> int:
        """The layer of a unit."""
        return self._layer(unit)[0]

    def place(self, rows: Float[Tensor, "block row"], unit: int, whole: Whole) -> None:
        """Write rows (trial, position) of an output of a layer."""
        layer, output = self._layer(unit)
        site = self.sites[layer]
        whole[..., site.places[:, output]] = rows.unflatten(1, site.features.shape[:2])

    def write_diagonal(self, whole: Whole) -> None:
        """Write the sums of squares of the rows of M, the same for every output."""
        for site, m in zip(self.sites, self.factors, strict=True):
            sums = self.scale * m.double().square().sum(1)
            whole[..., site.places] = sums.unflatten(0, site.features.shape[:2])[..., None]

    def trace(self) -> float:
        """Sum of all eigenvalues."""
        squares = (n * float(m.double().square().sum()) for n, m in self._layers())
        return self.scale * sum(squares)

    def inner(self, other: SiteBlocks) -> float:
        """tr(K K'), for K' of the same layers and trials."""
        pairs = zip(self._layers(), other.factors, strict=True)
        total = sum(n * float((m.mT @ theirs).double().square().sum()) for (n, m), theirs in pairs)
        return self.scale * other.scale * total

    def alike(self, other: Blocks) -> bool:
        """Whether another K is of the same layers and trials."""
        if not isinstance(other, SiteBlocks) or len(self.sites) != len(other.sites):
            return False
        pairs = zip(self.sites, other.sites, strict=True)
        return all(
            torch.equal(a.places, b.places) and a.features.shape[:2] == b.features.shape[:2]
            for a, b in pairs
        )

    def _layers(self) -> Iterator[tuple[int, Tensor]]:
        return zip(self.outputs, self.factors, strict=True)

    def _layer(self, unit: int) -> tuple[int, int]:
        """The layer of a unit, and which of its outputs it is."""
        for layer, n in enumerate(self.outputs):
            if unit < n:
                return layer, unit
            unit -= n
        raise IndexError(unit)
