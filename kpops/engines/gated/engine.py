"""The engine for gated cells on any device: weights between diagonals, no S x S Jacobian.

A stack is computed layer by layer. With A_l the Jacobian of layer l alone, P_l its propagator and
B_l its input maps, a layer passes on its increment, which is its state less its own forcing:

    P:   v_l = P_l f_l,  f_l = q_l + B_l (v_{l-1} - q_{l-1})
    P*:  a_l = b_l - w_l,  b_l = P_l^* (e_l + w_l),  w_{l-1} = B_l^T b_l,

so the recursion through time concerns one layer only. Single steps couple layers in the same way:
``A = L diag(A_l)``, ``J = L diag(J_l)``, ``K = L diag(K_l) L*`` with L the passage upwards. As
``P^-1 = 1 - A Z`` with Z the shift in time, ``P L = (L^-1 - diag(A_l) Z)^-1`` is such a recursion,
in which a layer passes on its full state, and ``P K P* = P L diag(K_l) (P L)*`` passes up once:

    P L:  v_l = P_l (f_l + B_l v_{l-1});    (P L)*:  a_l = P_l^* (e_l + w_l),  w_{l-1} = B_l^T a_l.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from kpops.engines.base import Engine
from kpops.engines.gated.gram import Gram, bytes_of_factors, learning
from kpops.engines.gated.layer import Layer, slice_bytes
from kpops.engines.gated.roles import by_role, parameter_roles
from kpops.engines.gated.unit_blocks import UnitBlocks
from kpops.engines.gated.weights import Weights, learning_weights
from kpops.engines.memory import uninitialised_like
from kpops.engines.threads import enough_for
from kpops.engines.trajectory import Block, Trajectory
from kpops.models.gated import GatedRecurrence
from kpops.models.recurrence import Recurrence
from kpops.precision import product

# Vectors from which the gains of a step are assembled on a GPU, times the maps saved for each
# variable.
_WIDE = 64


class GatedEngine(Engine):
    """Affine maps between the diagonals of elementwise gates, in torch.

    Where a parameter is not a weight or a bias of an affine map, nor what a parametrisation makes
    one of (a time constant, a weight used twice), J and K of all are as in `autodiff`. `gates` says
    what becomes of the diagonals: "stored", "float32" or "recomputed".

    With `check`, derivatives at one trial's first steps are compared with automatic
    differentiation; a ValueError says that the cell is not what its recurrence says: its gates mix
    units, or a weight is used elsewhere too.
    """

    name = "gated"
    serves = GatedRecurrence
    known_as = "as a gated cell"
    variants: ClassVar[dict[str, tuple[dict[str, Any], ...]]] = {
        "auto": ({"gates": "stored"}, {"gates": "recomputed"}),
        **{g: ({"gates": g},) for g in ("stored", "float32", "recomputed")},
    }
    recurrence: GatedRecurrence

    def __init__(
        self,
        recurrence: Recurrence,
        parameters: dict[str, Tensor],
        trajectory: Trajectory,
        gates: str = "stored",
        *,
        check: bool = True,
    ) -> None:
        super().__init__(recurrence, parameters, trajectory)
        self.gates = gates
        self.can_be_recorded = gates != "recomputed"  # by autograd, inside the loop
        n_layers = len(self.recurrence.layers)
        self.layers = [Layer(self.recurrence, i, trajectory, gates) for i in range(n_layers)]
        self._roles = parameter_roles(self.recurrence)
        self._grams: dict[tuple[str, ...], list[Gram]] = {}
        self._learning: dict[tuple[str, ...], Weights | None] = {}
        self._made_are_affine = True
        if check:
            probe = GatedEngine(recurrence, parameters, trajectory.beginning, check=False)
            probe.check_derivatives(
                tuple(name for name in parameters if name in self._roles),
                "is not the gated cell that its {} says",
                "gates and features must act unit by unit and use no weight of the affine maps",
            )
            learned = tuple(name for name in parameters if probe._learned((name,)))
            if not self._direct(learned):
                try:
                    probe.check_derivatives(learned, "", "")
                except ValueError:  # a weight that is made stands in the gates, too
                    self._made_are_affine = False

    @staticmethod
    def bytes_needed(
        recurrence: Recurrence,
        names: Sequence[str],
        trajectory: Trajectory,
        *,
        gates: str = "stored",
        exact: bool = False,
    ) -> int:
        """The diagonals and the thin factors of the features, at full or at their `exact` rank."""
        assert isinstance(recurrence, GatedRecurrence)
        n_trials = len(trajectory.states)
        roles = parameter_roles(recurrence)
        learn = {roles.get(name) for name in names}
        sizes: list[int] = []
        factors = 0
        for i in range(len(recurrence.layers)):
            layer = Layer(recurrence, i, trajectory, gates)
            steps = max(s.stop - s.start for s in layer.segments())
            sizes.append(
                layer.pattern.size * n_trials * steps * layer.hidden * layer.storage.itemsize
            )
            if None not in learn:
                factors += bytes_of_factors(layer, learning(layer, learn), exact=exact)
        return factors + (max(sizes) if gates == "recomputed" else sum(sizes))

    # Through time.

    def _recur(self, q: Block, *, backwards: bool, full_state: bool = False) -> Block:
        """P q, or P* q if `backwards`; if layers pass on their full states, P L q or (P L)* q."""
        act = self._backpropagate_layers if backwards else self._propagate_layers
        return act(q, full_state=full_state)

    def flow(self, q: Block, names: Sequence[str]) -> Block:
        """P J J* P* q, for the parameters `names`; in a stack as (P L) diag(K_l) (P L)*."""
        if len(self.layers) == 1 or not self._direct(names):
            return super().flow(q, names)
        cotangent = self._through_time(q, backwards=True, full_state=True)
        forced = self._apply_grams(cotangent, names)
        return self._through_time(forced, backwards=False, full_state=True)

    def _propagate_layers(self, q: Block, *, full_state: bool = False) -> Block:
        """P q; if layers pass on their full state and not their increment, P L q."""
        v = uninitialised_like(q)
        forcing = q if len(self.layers) == 1 else q.clone()
        for below, layer in zip([None, *self.layers], self.layers, strict=False):
            if below is not None:
                increment = v[..., below.output]
                increment = increment if full_state else increment - q[..., below.output]
                for time, d in layer.slices(len(q)):
                    layer.jvp_input(d, increment[:, :, time], forcing[:, :, time, layer.units])
            self._propagate_layer(layer, forcing, v)
        return v

    def _backpropagate_layers(self, a: Block, *, full_state: bool = False) -> Block:
        """P* a; if the cotangents passed down are of full states, (P L)* a."""
        v = uninitialised_like(a)
        cotangent = a if len(self.layers) == 1 else a.clone()
        for below, layer in reversed(list(zip([None, *self.layers], self.layers, strict=False))):
            self._backpropagate_layer(layer, cotangent, v)
            if below is not None:
                for time, d in layer.slices(len(a)):
                    into = cotangent[:, :, time, below.output]
                    layer.vjp_input(d, v[:, :, time, layer.units], into)
        if cotangent is a or full_state:
            return v
        return v.sub_(cotangent).add_(a)  # b_l - w_l, with w_l what was added to e_l

    def _propagate_layer(self, layer: Layer, q: Block, v: Block) -> None:
        """Write P_l q_l into the layer's units of v."""
        q, v = q[..., layer.units], v[..., layer.units]
        assembled = self._assembles(layer, *q.shape[:2])
        v[:, :, 0] = q[:, :, 0]
        for segment in layer.segments():
            diagonals = layer.diagonals(segment)
            with enough_for(layer.flops(len(q))):
                for t in range(max(1, segment.start), segment.stop):
                    d = diagonals[:, :, t - segment.start].to(q.dtype)
                    layer.jvp(d, v[:, :, t - 1], v[:, :, t], q[:, :, t], assembled=assembled)

    def _backpropagate_layer(self, layer: Layer, a: Block, v: Block) -> None:
        """Write P_l^* a_l into the layer's units of v."""
        a, v = a[..., layer.units], v[..., layer.units]
        assembled = self._assembles(layer, *a.shape[:2])
        v[:, :, -1] = a[:, :, -1]
        for segment in reversed(layer.segments()):
            diagonals = layer.diagonals(segment)
            with enough_for(layer.flops(len(v))):
                for t in reversed(range(max(1, segment.start), segment.stop)):
                    d = diagonals[:, :, t - segment.start].to(v.dtype)
                    layer.vjp(d, v[:, :, t], v[:, :, t - 1], a[:, :, t - 1], assembled=assembled)

    def assembled_from(self, layer: Layer) -> int | None:
        """Size of blocks from which the gains of a step are assembled; None for never.

        Then a vector takes a product with all units of a layer instead of all its maps, and each
        trial a matrix that is written and read. On a GPU of f flops and m numbers of memory a
        second this pays from ``f / m`` vectors for each map that it saves for a variable; about 50
        in float32, where the fastest GPUs of today compute without TF32.
        """
        saved = layer.pattern.n_recurrent - layer.variables
        if self.trajectory.states.device.type == "cpu" or saved <= 0:
            return None
        return _WIDE * layer.variables // saved

    def _assembles(self, layer: Layer, n_block: int, n_trials: int) -> bool:
        wide = self.assembled_from(layer)
        matrix = n_trials * layer.variables * layer.hidden**2 * layer.previous.element_size()
        fits = matrix <= slice_bytes(layer.previous.device)
        return wide is not None and n_block >= wide and fits

    @property
    def remark(self) -> str:
        """How blocks are taken."""
        wide = self.assembled_from(self.layers[0])
        how = "" if wide is None else f"in blocks from {wide} vectors by assembled Jacobians"
        return "; ".join(part for part in (how, super().remark) if part)

    # Single steps.

    def _jvp_steps(self, v: Block) -> Block:
        result = torch.zeros_like(v)
        for layer in self.layers:
            for time, d in layer.slices(len(v)):
                layer.jvp(d, v[:, :, time, layer.units], result[:, :, time, layer.units])
        return self._pass_up(result)

    def _vjp_steps(self, a: Block) -> Block:
        cotangent = self._pass_down(a)
        result = torch.zeros_like(a)
        for layer in self.layers:
            for time, d in layer.slices(len(a)):
                layer.vjp(d, cotangent[:, :, time, layer.units], result[:, :, time, layer.units])
        return result

    def _pass_up(self, increment: Block) -> Block:
        """Apply L, in place: the increment of a layer moves the next one in the same step."""
        for below, layer in pairwise(self.layers):
            self._pass(below, layer, increment, up=True)
        return increment

    def _pass_down(self, cotangent: Block) -> Block:
        """Apply L*."""
        if len(self.layers) == 1:
            return cotangent
        cotangent = cotangent.clone(memory_format=torch.contiguous_format)
        for layer, below in pairwise(self.layers[::-1]):
            self._pass(below, layer, cotangent, up=False)
        return cotangent

    def _pass(self, below: Layer, layer: Layer, v: Block, *, up: bool) -> None:
        """Add to one layer of v what it takes from the other in the same step."""
        for time, d in layer.slices(len(v)):
            output, here = v[:, :, time, below.output], v[:, :, time, layer.units]
            if up:
                layer.jvp_input(d, output, into=here)
            else:
                layer.vjp_input(d, here, into=output)

    def step_jacobians(self, t: int) -> Float[Tensor, "trial unit unit"]:
        """A of the step at position t."""
        return self.layers[0].jacobians(t) if len(self.layers) == 1 else super().step_jacobians(t)

    # Parameters.

    def parameter_jvp(
        self, dtheta: Float[Tensor, "block parameter"], names: Sequence[str]
    ) -> Block:
        """J dtheta, for the parameters `names`."""
        weights = self._learned(names)
        if weights is None:
            return super().parameter_jvp(dtheta, names)
        dw = weights.jvp(dtheta)
        result = dtheta.new_zeros(len(dtheta), *self.trajectory.states.shape)
        for layer, source, weight, bias in self._by_source(dw, weights):
            for time, d in layer.slices(len(dtheta)):
                u = layer.multiplied(source, time)
                maps: Tensor | float = 0.0
                if weight is not None:
                    maps = product(u.flatten(0, 1), weight.mT).unflatten(1, u.shape[:2])
                if bias is not None:
                    maps = maps + bias[:, None, None].expand(-1, *u.shape[:2], -1)
                assert isinstance(maps, Tensor)
                layer.jvp_maps(d, source, maps, result[:, :, time, layer.units])
        return self.trajectory.restrict_(self._pass_up(result))

    def parameter_vjp(self, q: Block, names: Sequence[str]) -> Float[Tensor, "block parameter"]:
        """J* q, for the parameters `names`."""
        weights = self._learned(names)
        if weights is None:
            return super().parameter_vjp(q, names)
        cotangent = self._pass_down(self.trajectory.restrict(q))
        result = q.new_zeros(len(q), weights.size)
        for layer, source, weight, bias in self._by_source(result, weights):
            for time, d in layer.slices(len(q)):
                maps = layer.vjp_maps(d, source, cotangent[:, :, time, layer.units]).flatten(1, 2)
                if weight is not None:
                    weight += product(maps.mT, layer.multiplied(source, time).flatten(0, 1))
                if bias is not None:
                    bias += maps.sum(1)
        return weights.vjp(result)

    def _learned(self, names: Sequence[str]) -> Weights | None:
        """What the parameters `names` learn through; None if one of them enters elsewhere."""
        if not (self._made_are_affine or self._direct(names)):
            return None
        key = tuple(names)
        if key not in self._learning:
            self._learning[key] = learning_weights(self.recurrence, self.parameters, key)
        return self._learning[key]

    def _by_source(
        self, entries: Float[Tensor, "block entry"], weights: Weights
    ) -> Iterator[tuple[Layer, str, Tensor | None, Tensor | None]]:
        """Views of the weight and bias of each affine map of which something learns."""
        views = by_role(entries, weights.shapes)
        for i, layer in enumerate(self.layers):
            for source in layer.sources:
                weight, bias = (views.get((i, source, role)) for role in ("weight", "bias"))
                if weight is not None or bias is not None:
                    yield layer, source, weight, bias

    def parameter_gram(self, q: Block, names: Sequence[str]) -> Block:
        """J J* q, by the thin factors of the features."""
        if not self._direct(names):
            return super().parameter_gram(q, names)
        cotangent = self._pass_down(self.trajectory.restrict(q))
        return self.trajectory.restrict_(self._pass_up(self._apply_grams(cotangent, names)))

    def _apply_grams(self, q: Block, names: Sequence[str], into: Block | None = None) -> Block:
        """K_l q_l of all layers; written `into` a block."""
        result = uninitialised_like(q) if into is None else into
        for gram in self._grams_of(names):
            gram.apply(q, into=result)
        return result

    def factor_size(self, names: Sequence[str]) -> int | None:
        """Number of coefficients of the thin factor F of K."""
        if not self._direct(names):
            return None
        return sum(gram.width for gram in self._grams_of(names))

    def factor_jvp(self, w: Float[Tensor, "block coefficient"], names: Sequence[str]) -> Block:
        """F w, with K = F F*."""
        grams = self._grams_of(names)
        result = w.new_zeros(len(w), *self.trajectory.states.shape)
        for gram, part in zip(grams, w.split([gram.width for gram in grams], dim=1), strict=True):
            if gram.parts:
                gram.jvp(gram.split(part), into=result)
        return self.trajectory.restrict_(self._pass_up(result))

    def factor_vjp(self, q: Block, names: Sequence[str]) -> Float[Tensor, "block coefficient"]:
        """F* q."""
        cotangent = self._pass_down(self.trajectory.restrict(q))
        grams = [gram for gram in self._grams_of(names) if gram.parts]
        empty = q.new_empty(len(q), 0)
        return torch.cat([empty, *(gram.flat(gram.vjp(cotangent)) for gram in grams)], dim=1)

    def unit_blocks(self, names: Sequence[str]) -> UnitBlocks | None:
        """K unit by unit, if it couples no two of them: if nothing is passed up a stack."""
        if not self._direct(names):
            return None
        *below, top = self._grams_of(names)
        return None if any(gram.parts for gram in below) else UnitBlocks(top)

    def feature_ranks(self) -> list[int]:
        """Numerical ranks of the features, layer by layer; two where gates keep h and x apart."""
        names = tuple(self.parameters)
        grams = self._grams_of(names) if self._direct(names) else []
        return [rank for gram in grams for rank in gram.ranks]

    def _direct(self, names: Sequence[str]) -> bool:
        return all(name in self._roles for name in names)

    def _grams_of(self, names: Sequence[str]) -> list[Gram]:
        key = tuple(sorted(names))
        if key not in self._grams:
            roles = {self._roles[name] for name in names}
            self._grams[key] = [self._gram(layer, learning(layer, roles)) for layer in self.layers]
        return self._grams[key]

    def _gram(self, layer: Layer, learn: dict[str, tuple[bool, bool]]) -> Gram:
        return Gram(layer, learn)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_grams": {}, "_learning": {}}
