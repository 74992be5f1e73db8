"""One gated layer on its trajectory: its weights, its diagonals, and what they do to vectors."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kpops.engines.gated.combine import Diagonals, Terms, Units, combine
from kpops.engines.gated.gates import Pairs, Pattern, differentiate
from kpops.engines.memory import device_bytes
from kpops.engines.threads import PARTS_OF_A_STEP, enough_for
from kpops.engines.trajectory import Trajectory
from kpops.models.gated import GatedRecurrence
from kpops.precision import in_full_precision, product

Maps = Float[Tensor, "block *steps map"]
Features = Float[Tensor, "block *steps feature"]
Segments = Iterable[tuple[int, np.ndarray]]
"""First steps and diagonals (trial, step, diagonal, hidden) of the segments of time."""

# Bytes of one temporary of a pointwise action: on the CPU it stays in the cache and in the
# allocator's hands, a GPU wants few and large launches, within a part of its memory.
_SLICE_BYTES = defaultdict(lambda: 2**28, cpu=2**22)
_SLICE_PART = 64
# Bytes of the diagonals of a segment of time, where they are recomputed.
_SEGMENT_BYTES = defaultdict(lambda: 2**30, cpu=2**26)


class Layer:
    """The derivatives of a layer of a stack along the trajectory, as actions on blocks.

    `gates` says what becomes of the diagonals: "stored", "float32" or "recomputed". Actions take
    `d`, the diagonals of the same trials and steps as the blocks, (trial, time), or those of one
    step, (trial,). The formulas are those of :mod:`kpops.engines.gated.gates`.

    `units` is where the layer's units lie among those of the stack, and `output` its first variable
    among them, which is the input of the next layer; `sources` are the kinds of its affine maps,
    "recurrent" and "input".
    """

    def __init__(
        self, recurrence: GatedRecurrence, index: int, trajectory: Trajectory, gates: str
    ) -> None:
        self.recurrence = recurrence
        self.index = index
        self.trajectory = trajectory
        self.gates = gates
        self.hidden = recurrence.hidden_size
        self.variables = len(recurrence.variables)
        start = index * self.hidden * self.variables
        self.units = slice(start, start + self.hidden * self.variables)
        self.output = slice(start, start + self.hidden)
        maps = recurrence.layers[index]
        self.sources = ("recurrent",) if maps.input is None else ("recurrent", "input")
        self.pattern = self._differentiate(slice(0, 1), slice(0, 1))[0]

    # The weights, computed once: a parametrisation may take longer than a matvec.

    @cached_property
    def recurrent_weight(self) -> Float[Tensor, "map hidden"]:
        """W."""
        return self.recurrence.weight(self.recurrence.layers[self.index].recurrent).detach()

    @cached_property
    def input_weight(self) -> Float[Tensor, "map feature"] | None:
        """U."""
        name = self.recurrence.layers[self.index].input
        return None if name is None else self.recurrence.weight(name).detach()

    # Views of the trajectory, made when needed: a pickle would copy what they look at.

    @property
    def inputs(self) -> Float[Tensor, "trial time feature"]:
        """The layer's input."""
        if self.index == 0:
            return self.trajectory.inputs
        below = 2 * self.units.start - self.units.stop
        return self.trajectory.states[..., below : below + self.hidden]

    @property
    def previous(self) -> Float[Tensor, "trial time unit"]:
        """The layer's state before each step."""
        return self.trajectory.previous[..., self.units]

    # The diagonals.

    @property
    def storage(self) -> torch.dtype:
        """The dtype of the diagonals."""
        return torch.float32 if self.gates == "float32" else self.previous.dtype

    def segments(self) -> list[slice]:
        """Consecutive pieces of time whose diagonals are there together."""
        n_trials, n_steps = self.previous.shape[:2]
        if self.gates != "recomputed":
            return [slice(0, n_steps)]
        per_step = self.pattern.size * n_trials * self.hidden * self.previous.element_size()
        size = max(1, _SEGMENT_BYTES[self.previous.device.type] // max(1, per_step))
        return [slice(t, min(t + size, n_steps)) for t in range(0, n_steps, size)]

    def diagonals(self, time: slice) -> Float[Tensor, "diagonal trial time hidden"]:
        """The diagonals at these steps."""
        return self._compute(time) if self.gates == "recomputed" else self._stored[:, :, time]

    def by_step(self, *, backwards: bool = False) -> Segments:
        """The segments, for compiled code; in the order of time, or `backwards`."""
        if self.gates != "recomputed":
            return self._stored_by_step
        order = self.segments()[:: -1 if backwards else 1]
        return ((segment.start, side_by_side(self.diagonals(segment))) for segment in order)

    @cached_property
    def _stored_by_step(self) -> Segments:
        return [(0, side_by_side(self._stored))]

    def slices(self, block: int) -> Iterator[tuple[slice, Diagonals]]:
        """Pieces of time small enough for pointwise actions on so many vectors, and diagonals."""
        widest = max(self.pattern.n_recurrent, self.pattern.n_inputs, self.variables)
        per_step = block * len(self.previous) * self.hidden * widest * self.previous.element_size()
        size = max(1, slice_bytes(self.previous.device) // per_step)
        for segment in self.segments():
            d = self.diagonals(segment)
            for t in range(segment.start, segment.stop, size):
                time = slice(t, min(t + size, segment.stop))
                part = d[:, :, t - segment.start : time.stop - segment.start]
                yield time, part.to(self.previous.dtype)

    @cached_property
    def _stored(self) -> Tensor:
        return self._compute(slice(0, self.previous.shape[1]))

    @in_full_precision  # they are kept, and read again and again
    def _compute(self, time: slice) -> Float[Tensor, "diagonal trial time hidden"]:
        n_trials, n_steps = self.previous[:, time].shape[:2]
        # In memory, the diagonals of a step lie side by side, which is how they are read.
        result = self.previous.new_empty(
            n_trials, n_steps, self.pattern.size, self.hidden, dtype=self.storage
        ).movedim(2, 0)
        per_step = n_trials * self.hidden * self.previous.element_size()
        size = max(1, slice_bytes(self.previous.device) // (4 * per_step))
        with enough_for(self.flops(min(size, n_steps)) / PARTS_OF_A_STEP):
            for t in range(0, n_steps, size):
                part = slice(t, min(t + size, n_steps))
                here = slice(time.start + part.start, time.start + part.stop)
                pattern, diagonals = self._differentiate(slice(None), here)
                if pattern != self.pattern:
                    name = type(self.recurrence.module).__name__
                    raise ValueError(
                        f"the gates of {name} take another form at other states: write them "
                        "without branches on values (torch.where)"
                    )
                for kept, diagonal in zip(result, diagonals, strict=True):
                    kept[:, part] = diagonal.unflatten(0, (n_trials, -1))
        return result

    def _differentiate(self, trials: slice, time: slice) -> tuple[Pattern, list[Tensor]]:
        x, h = (v[trials, time].flatten(0, 1) for v in (self.inputs, self.previous))
        return differentiate(self.recurrence, self.index, x, h)

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__}  # at once, for the sake of other threads
        recomputed = "_stored", "_stored_by_step", "recurrent_weight", "input_weight"  # cheaply
        return {k: v for k, v in state.items() if k not in recomputed}

    def flops(self, n_vectors: int) -> int:
        """Operations of one step on so many vectors, about."""
        return 2 * n_vectors * len(self.previous) * self.recurrent_weight.numel()

    # The actions on states, which add to `base`, or else to `into` itself.

    def jvp(
        self,
        d: Diagonals,
        ds: Units,
        into: Units,
        base: Units | None = None,
        *,
        assembled: bool = False,
    ) -> None:
        """A ds; at one step, it may be by its `assembled` gains."""
        terms, maps = _terms(self.pattern.carry, 1), ds
        if self.pattern.recurrent:
            u = self._features(d, ds)
            if assembled:
                maps = product(u.transpose(0, 1), self.assembled(d).mT).transpose(0, 1)
                terms = tuple((v, 0, v, -1) for v in range(self.variables)) + terms
            else:
                maps = product(u, self.recurrent_weight.mT)
                terms = _terms(self.pattern.recurrent) + terms
        combine(terms, d, (maps, ds), into, into if base is None else base)

    def vjp(
        self,
        d: Diagonals,
        a: Units,
        into: Units,
        base: Units | None = None,
        *,
        assembled: bool = False,
    ) -> None:
        """A^T a; at one step, it may be by its `assembled` gains."""
        terms, u = _terms(_swapped(self.pattern.carry), 1), a
        if self.pattern.recurrent:
            if assembled:
                u = product(a.transpose(0, 1), self.assembled(d)).transpose(0, 1)
            else:
                u = product(self.vjp_maps(d, "recurrent", a), self.recurrent_weight)
            terms = tuple((w, 0, 0, _place(p)) for w, p in self.pattern.slopes) + terms
        combine(terms, d, (u, a), into, into if base is None else base)

    def _features(self, d: Diagonals, ds: Units) -> Features:
        """F ds."""
        slopes = self.pattern.slopes
        if not slopes:  # features that depend on no state
            return ds.new_zeros(*ds.shape[:-1], self.hidden)
        if len(slopes) == 1 and slopes[0][1] is None:
            return self._split(ds)[slopes[0][0]]
        into = ds.new_empty(*ds.shape[:-1], self.hidden)
        combine(tuple((0, 0, w, _place(p)) for w, p in slopes), d, (ds,), into, None)
        return into

    def assembled(
        self, d: Float[Tensor, "diagonal trial hidden"]
    ) -> Float[Tensor, "trial unit hidden"]:
        """The gains sum_g D_vg W_g of one step from the features to the units, as a matrix."""
        places = {(v, g): p for v, g, p in self.pattern.recurrent}
        none = d.new_zeros(d.shape[1:])
        pairs = itertools.product(range(self.variables), range(self.pattern.n_recurrent))
        gains = torch.stack([d[places[pair]] if pair in places else none for pair in pairs])
        # Of every unit one product, of the gains of all trials with its rows of W.
        gains = gains.unflatten(0, (self.variables, -1)).permute(0, 3, 2, 1)
        rows = self.recurrent_weight.unflatten(0, (-1, self.hidden)).transpose(0, 1)
        return (gains @ rows).permute(2, 0, 1, 3).flatten(1, 2)

    def jacobians(self, t: int) -> Float[Tensor, "trial unit unit"]:
        """A at position t, entry by entry."""
        d = self.diagonals(slice(t, t + 1))[:, :, 0].to(self.previous.dtype)
        n_trials, n = d.shape[1], self.hidden
        blocks = d.new_zeros(n_trials, self.variables, n, self.variables, n)
        if self.pattern.recurrent:
            gains = self.assembled(d).unflatten(1, (-1, n))
            for w, slope in self.pattern.slopes:
                blocks[:, :, :, w] = gains if slope is None else gains * d[slope][:, None, None]
        for v, w, p in self.pattern.carry:
            blocks[:, v, :, w].diagonal(dim1=1, dim2=2).add_(d[p])
        return blocks.flatten(3).flatten(1, 2)

    def jvp_input(self, d: Diagonals, dx: Features, into: Units) -> None:
        """Add B dx to `into`."""
        assert self.input_weight is not None
        self.jvp_maps(d, "input", product(dx, self.input_weight.mT), into)

    def vjp_input(self, d: Diagonals, a: Units, into: Features) -> None:
        """Add B^T a to `into`."""
        assert self.input_weight is not None
        into += product(self.vjp_maps(d, "input", a), self.input_weight)

    # The affine maps of one source.

    def jvp_maps(self, d: Diagonals, source: str, maps: Maps, into: Units) -> None:
        """Add the effect of changed maps of that source to `into`: into_v += D_vg maps_g."""
        combine(_terms(self.pairs(source)), d, (maps,), into, into)

    def vjp_maps(self, d: Diagonals, source: str, a: Units) -> Maps:
        """The cotangent of the maps of that source, sum_v D_vg a_v."""
        n_maps = self.pattern.n_recurrent if source == "recurrent" else self.pattern.n_inputs
        maps = a.new_empty(*a.shape[:-1], n_maps * self.hidden)
        combine(_terms(_swapped(self.pairs(source))), d, (a,), maps, None)
        return maps

    def pairs(self, source: str) -> Pairs:
        """(v, g, position) of the diagonals that the maps of that source meet."""
        return self.pattern.recurrent if source == "recurrent" else self.pattern.inputs

    def features(self, source: str, weight: bool, bias: bool) -> list[Float[Tensor, "row _"]]:
        """What weight and bias of that source multiply.

        It is zero where masked, lest it add to the rank.
        """
        u = self.multiplied(source, slice(0, self.previous.shape[1]))
        parts = [*([u] if weight else []), *([u.new_ones(*u.shape[:2], 1)] if bias else [])]
        if self.trajectory.mask is not None:
            parts = [part * self.trajectory.mask[..., None] for part in parts]
        return [part.flatten(0, 1) for part in parts]

    def width(self, source: str) -> int:
        """Number of features that the weight of that source multiplies."""
        weight = self.recurrent_weight if source == "recurrent" else self.input_weight
        return 0 if weight is None else weight.shape[1]

    def multiplied(self, source: str, time: slice) -> Float[Tensor, "trial time feature"]:
        """What the weights of that source multiply."""
        if source == "input":  # a recurrence may read features beside those
            return self.inputs[:, time, : self.width("input")]
        state = self.previous[:, time]
        features = self.recurrence.features(self._split(state.flatten(0, 1)))
        return features.unflatten(0, state.shape[:2])

    @property
    def first_variable(self) -> int:
        """Where the layer's variables begin among those of the stack."""
        return self.units.start // self.hidden

    def _split(self, units: Tensor) -> tuple[Tensor, ...]:
        return units.split(self.hidden, dim=-1)


def side_by_side(d: Float[Tensor, "diagonal trial step hidden"]) -> np.ndarray:
    """The diagonals of a step side by side, as those that are stored lie in memory."""
    return d.movedim(0, 2).contiguous().numpy()


def slice_bytes(device: torch.device) -> int:
    """Bytes of one temporary, at most."""
    least = _SLICE_BYTES[device.type]
    return max(least, device_bytes(device) // _SLICE_PART) if device.type == "cuda" else least


def _terms(pairs: Pairs, source: int = 0) -> Terms:
    """The terms of such diagonals, of which the second number is a part of that source."""
    return tuple((v, source, i, p) for v, i, p in pairs)


def _swapped(pairs: Pairs) -> Pairs:
    return tuple((i, v, p) for v, i, p in pairs)


def _place(place: int | None) -> int:
    return -1 if place is None else place
