"""The engine for gated cells on any device: weights between diagonals, no S x S Jacobian.

A stack is taken layer by layer. With A_l the Jacobian of layer l alone, P_l its propagator and B_l
its input maps, a layer passes on its increment, what it has beside its own forcing:

    P:   v_l = P_l f_l,  f_l = q_l + B_l (v_{l-1} - q_{l-1})
    P*:  a_l = b_l - w_l,  b_l = P_l^* (e_l + w_l),  w_{l-1} = B_l^T b_l,

so that the recursion through time knows one layer only. Single steps couple layers in the same way:
``A = L diag(A_l)``, ``J = L diag(J_l)``, ``K = L diag(K_l) L*`` with L the passage upwards. As
``P^-1 = 1 - A Z`` with Z the shift in time, ``P L = (L^-1 - diag(A_l) Z)^-1`` is such a recursion,
in which a layer passes on all that it has, and ``P K P* = P L diag(K_l) (P L)*`` passes up once:

    P L:  v_l = P_l (f_l + B_l v_{l-1});    (P L)*:  a_l = P_l^* (e_l + w_l),  w_{l-1} = B_l^T a_l.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from kpops.engines.base import Engine
from kpops.engines.cuda_graph import Action, Recorder
from kpops.engines.gated.gram import Gram, bytes_of_factors, learning
from kpops.engines.gated.layer import Layer
from kpops.engines.gated.roles import Role, by_role, parameter_roles
from kpops.engines.gated.unit_blocks import UnitBlocks
from kpops.engines.memory import uninitialised_like
from kpops.engines.self_check import disagreement, first_steps
from kpops.engines.threads import enough_for
from kpops.engines.trajectory import Trajectory
from kpops.models.gated import GatedRecurrence
from kpops.models.recurrence import Recurrence

# Largest block whose loop over time is recorded: argument and result are kept twice.
_RECORDED_BYTES = 2**28


class GatedEngine(Engine):
    """Affine maps between the diagonals of elementwise gates, in torch.

    Parameters
    ----------
    recurrence : GatedRecurrence
        Snapshot of the model.
    parameters : dict of str to Tensor
        Those that learn. Where one is not a weight or a bias of an affine map (a parametrised
        weight, a time constant, a weight used twice), J and K of all are as in `autodiff`.
    trajectory : Trajectory
        Where everything is linearised.
    gates : {"stored", "float32", "recomputed"}
        What becomes of the diagonals.
    check : bool
        Whether to compare one trial's first steps with automatic differentiation.

    Raises
    ------
    ValueError
        If they differ: the cell is not what its recurrence says.
    """

    name = "gated"
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
        n_layers = len(self.recurrence.layers)
        self.layers = [Layer(self.recurrence, i, trajectory, gates) for i in range(n_layers)]
        self._roles = parameter_roles(self.recurrence)
        self._recorder = Recorder()
        self._grams: dict[tuple[str, ...], list[Gram]] = {}
        if check:
            self._check_elementwise()

    @staticmethod
    def refuses(recurrence: Recurrence, device: torch.device) -> str | None:
        """Why this engine cannot linearise the recurrence, or None."""
        if isinstance(recurrence, GatedRecurrence):
            return None
        return (
            f"{type(recurrence.module).__name__} is not known as a gated cell: register a "
            "kpops.models.GatedRecurrence for it"
        )

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
        total = longest = 0
        for i in range(len(recurrence.layers)):
            layer = Layer(recurrence, i, trajectory, gates)
            steps = max(s.stop - s.start for s in layer.segments())
            diagonals = (
                layer.pattern.size * n_trials * steps * layer.hidden * layer.storage.itemsize
            )
            longest = max(longest, diagonals)
            total += diagonals if gates != "recomputed" else 0
            if None not in learn:
                total += bytes_of_factors(layer, learning(layer, learn), exact=exact)
        return total + (longest if gates == "recomputed" else 0)

    # Through time.

    def _propagate(self, q: Tensor) -> Tensor:
        return self._record("P", self._propagate_layers, q)

    def _backpropagate(self, a: Tensor) -> Tensor:
        return self._record("P*", self._backpropagate_layers, a)

    def flow(self, q: Tensor, names: Sequence[str]) -> Tensor:
        """P J J* P* q, for the parameters `names`; in a stack as (P L) diag(K_l) (P L)*."""
        if len(self.layers) == 1 or not self._direct(names):
            return super().flow(q, names)
        propagate = partial(self._propagate_layers, full_state=True)
        backpropagate = partial(self._backpropagate_layers, full_state=True)
        cotangent = self._restricted(partial(self._record, "(P L)*", backpropagate), q)
        forced = self._apply_grams(cotangent, names)
        return self._restricted(partial(self._record, "P L", propagate), forced)

    def _record(self, name: str, action: Action, q: Tensor) -> Tensor:
        # Where gates are recomputed, autograd runs inside the loop, which a recording cannot hold;
        # and large blocks keep the device busy for longer than a launch takes.
        if q.device.type != "cuda" or self.gates == "recomputed" or q.nbytes > _RECORDED_BYTES:
            return action(q)
        return self._recorder(name, action, q)

    def _propagate_layers(self, q: Tensor, *, full_state: bool = False) -> Tensor:
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

    def _backpropagate_layers(self, a: Tensor, *, full_state: bool = False) -> Tensor:
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

    def _propagate_layer(self, layer: Layer, q: Tensor, v: Tensor) -> None:
        """Write P_l q_l into the layer's units of v."""
        q, v = q[..., layer.units], v[..., layer.units]
        state = torch.zeros_like(q[:, :, 0])
        for segment in layer.segments():
            diagonals = layer.diagonals(segment)
            with enough_for(layer.flops(len(q))):
                for t in range(segment.start, segment.stop):
                    new = v[:, :, t].copy_(q[:, :, t])
                    if t > 0:
                        d = diagonals[:, :, t - segment.start].to(q.dtype)
                        layer.jvp(d, state, into=new)
                    state = new

    def _backpropagate_layer(self, layer: Layer, a: Tensor, v: Tensor) -> None:
        """Write P_l^* a_l into the layer's units of v."""
        v = v[..., layer.units]
        v.copy_(a[..., layer.units])
        for segment in reversed(layer.segments()):
            diagonals = layer.diagonals(segment)
            with enough_for(layer.flops(len(v))):
                for t in reversed(range(max(1, segment.start), segment.stop)):
                    d = diagonals[:, :, t - segment.start].to(v.dtype)
                    layer.vjp(d, v[:, :, t], into=v[:, :, t - 1])

    # Single steps.

    def _jvp_steps(self, v: Tensor) -> Tensor:
        result = torch.zeros_like(v)
        for layer in self.layers:
            for time, d in layer.slices(len(v)):
                layer.jvp(d, v[:, :, time, layer.units], result[:, :, time, layer.units])
        return self._pass_up(result)

    def _vjp_steps(self, a: Tensor) -> Tensor:
        cotangent = self._pass_down(a)
        result = torch.zeros_like(a)
        for layer in self.layers:
            for time, d in layer.slices(len(a)):
                layer.vjp(d, cotangent[:, :, time, layer.units], result[:, :, time, layer.units])
        return result

    def _pass_up(self, increment: Tensor) -> Tensor:
        """Apply L, in place: the increment of a layer moves the next one in the same step."""
        for below, layer in zip(self.layers[:-1], self.layers[1:], strict=True):
            for time, d in layer.slices(len(increment)):
                here = increment[:, :, time]
                layer.jvp_input(d, here[..., below.output], here[..., layer.units])
        return increment

    def _pass_down(self, cotangent: Tensor) -> Tensor:
        """Apply L*."""
        if len(self.layers) == 1:
            return cotangent
        cotangent = cotangent.clone()
        for below, layer in reversed(list(zip(self.layers[:-1], self.layers[1:], strict=True))):
            for time, d in layer.slices(len(cotangent)):
                here = cotangent[:, :, time]
                layer.vjp_input(d, here[..., layer.units], here[..., below.output])
        return cotangent

    def step_jacobians(self, t: int) -> Tensor:
        """A of the step at position t, (trial, unit, unit)."""
        return self.layers[0].jacobians(t) if len(self.layers) == 1 else super().step_jacobians(t)

    # Parameters.

    def parameter_jvp(self, dtheta: Tensor, names: Sequence[str]) -> Tensor:
        """J dtheta, for the parameters `names`."""
        if not self._direct(names):
            return super().parameter_jvp(dtheta, names)
        changes = by_role(dtheta, self._shapes(names))
        result = dtheta.new_zeros(len(dtheta), *self.trajectory.states.shape)
        for i, layer in enumerate(self.layers):
            for source in layer.sources:
                weight, bias = (changes.get((i, source, role)) for role in ("weight", "bias"))
                if weight is None and bias is None:
                    continue
                for time, d in layer.slices(len(dtheta)):
                    u = layer.multiplied(source, time)
                    maps: Tensor | float = 0.0
                    if weight is not None:
                        maps = (u.flatten(0, 1) @ weight.mT).unflatten(1, u.shape[:2])
                    if bias is not None:
                        maps = maps + bias[:, None, None].expand(-1, *u.shape[:2], -1)
                    assert isinstance(maps, Tensor)
                    layer.jvp_parameters(d, source, maps, result[:, :, time, layer.units])
        return self.trajectory.restrict(self._pass_up(result))

    def parameter_vjp(self, q: Tensor, names: Sequence[str]) -> Tensor:
        """J* q, for the parameters `names`."""
        if not self._direct(names):
            return super().parameter_vjp(q, names)
        cotangent = self._pass_down(self.trajectory.restrict(q))
        result = q.new_zeros(len(q), sum(self.parameters[n].numel() for n in names))
        totals = by_role(result, self._shapes(names))
        for i, layer in enumerate(self.layers):
            for source in layer.sources:
                weight, bias = (totals.get((i, source, role)) for role in ("weight", "bias"))
                if weight is None and bias is None:
                    continue
                for time, d in layer.slices(len(q)):
                    maps = layer.vjp_parameters(d, source, cotangent[:, :, time, layer.units])
                    maps = maps.flatten(1, 2)
                    if weight is not None:
                        u = layer.multiplied(source, time).flatten(0, 1)
                        weight += maps.mT @ u
                    if bias is not None:
                        bias += maps.sum(1)
        return result

    def parameter_gram(self, q: Tensor, names: Sequence[str]) -> Tensor:
        """J J* q, by the thin factors of the features."""
        if not self._direct(names):
            return super().parameter_gram(q, names)
        cotangent = self._pass_down(self.trajectory.restrict(q))
        return self.trajectory.restrict(self._pass_up(self._apply_grams(cotangent, names)))

    def _apply_grams(self, q: Tensor, names: Sequence[str]) -> Tensor:
        """K_l q_l of all layers."""
        result = uninitialised_like(q)
        for layer, gram in zip(self.layers, self._grams_of(names), strict=True):
            if gram.parts:
                self._apply_gram(layer, gram, q, result)
            else:
                result[..., layer.units] = 0
        return result

    def factor_size(self, names: Sequence[str]) -> int | None:
        """Number of coefficients of the thin factor F of K."""
        if not self._direct(names):
            return None
        return sum(gram.width for gram in self._grams_of(names))

    def factor_jvp(self, w: Tensor, names: Sequence[str]) -> Tensor:
        """F w, with K = F F*; (block, coefficient) to (block, trial, time, unit)."""
        grams = self._grams_of(names)
        result = w.new_zeros(len(w), *self.trajectory.states.shape)
        parts = w.split([gram.width for gram in grams], dim=1)
        for layer, gram, part in zip(self.layers, grams, parts, strict=True):
            if gram.parts:
                self._factor_jvp(layer, gram, part, result)
        return self.trajectory.restrict(self._pass_up(result))

    def factor_vjp(self, q: Tensor, names: Sequence[str]) -> Tensor:
        """F* q."""
        cotangent = self._pass_down(self.trajectory.restrict(q))
        grams = zip(self.layers, self._grams_of(names), strict=True)
        cotangents = [
            self._factor_vjp(layer, gram, cotangent) for layer, gram in grams if gram.parts
        ]
        return torch.cat([q.new_empty(len(q), 0), *cotangents], dim=1)

    def unit_blocks(self, names: Sequence[str]) -> UnitBlocks | None:
        """K unit by unit, if it couples no two of them: if nothing is passed up a stack."""
        if not self._direct(names):
            return None
        *below, top = self._grams_of(names)
        return None if any(gram.parts for gram in below) else UnitBlocks(top)

    # K of one layer.

    def _factor_jvp(self, layer: Layer, gram: Gram, w: Tensor, into: Tensor) -> None:
        """Write F_l w into the layer's units of `into`, which are zero."""
        gram.jvp(gram.split(w), into[..., layer.units])

    def _factor_vjp(self, layer: Layer, gram: Gram, q: Tensor) -> Tensor:
        """F_l* of the layer's units of q."""
        return gram.flat(gram.vjp(q[..., layer.units]))

    def _apply_gram(self, layer: Layer, gram: Gram, q: Tensor, into: Tensor) -> None:
        """Write K_l q_l into the layer's units of `into`."""
        into[..., layer.units] = 0
        gram.apply(q[..., layer.units], into[..., layer.units])

    def feature_ranks(self) -> list[int]:
        """Numerical ranks behind K, layer by layer; two where gates keep h and x apart."""
        names = tuple(self.parameters)
        grams = self._grams_of(names) if self._direct(names) else []
        return [rank for gram in grams for rank in gram.ranks]

    def _shapes(self, names: Sequence[str]) -> dict[Role, torch.Size]:
        return {self._roles[name]: self.parameters[name].shape for name in names}

    def _direct(self, names: Sequence[str]) -> bool:
        return all(name in self._roles for name in names)

    def _grams_of(self, names: Sequence[str]) -> list[Gram]:
        key = tuple(sorted(names))
        if key not in self._grams:
            roles = {self._roles[name] for name in names}
            self._grams[key] = [Gram(layer, learning(layer, roles)) for layer in self.layers]
        return self._grams[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_grams": {}}

    def _check_elementwise(self) -> None:
        """Compare with automatic differentiation at one trial's first steps.

        A cell whose gates mix units, or that uses a weight elsewhere too, is no gated cell.
        """
        part, q = first_steps(self.trajectory)
        probe = GatedEngine(self.recurrence, self.parameters, part, "stored", check=False)
        rows = q.flatten(1, 2)
        pairs = [(probe._vjp_steps(q), probe.rows.state_vjp(rows))]
        names = tuple(name for name in self.parameters if name in self._roles)
        if names:
            reference = probe.rows.parameter_vjp(rows, names)
            pairs.append((probe.parameter_vjp(q, names), reference))
        gap = disagreement(pairs)
        if gap is not None:
            raise ValueError(
                f"{type(self.recurrence.module).__name__} is not the gated cell that its "
                f"{type(self.recurrence).__name__} says (derivatives differ by {gap:.2g}): gates "
                "and features must act unit by unit and use no weight of the affine maps"
            )
