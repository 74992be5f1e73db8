"""The four verbs for the sites of any network, by runs that are pushed and cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kpops.distributed.parts import WHOLE, Parts
from kpops.engines.blocks import Blocks
from kpops.engines.differential import Differential
from kpops.engines.linear_sites import LinearSite, SiteBlocks, linear_sites
from kpops.engines.rowwise import Rowwise, on_each
from kpops.engines.threads import enough_for
from kpops.models.sites import Rows, SiteNetwork

Block = Float[Tensor, "block trial unit"]
Parameters = Float[Tensor, "block parameter"]
Fields = Float[Tensor, "block trial *places"]

# Bytes of the activations of the vectors that are taken together, and how often each is held.
_BYTES, _HELD = 2**29, 3


@dataclass(frozen=True)
class SiteTrajectory:
    """A network run on inputs: the point at which it is linearised.

    `states` are the values of all sites, side by side. A trial is one step, so nothing is padded.
    `activations` are the numbers that a run holds for a trial.
    """

    inputs: Rows
    states: Float[Tensor, "trial unit"]
    activations: int = 0
    precision: str = "highest"
    parts: Parts = WHOLE
    elsewhere: int = 0

    mask = None

    @property
    def n_valid(self) -> int:
        """Number of trials, on all processes."""
        return len(self.states) + self.elsewhere

    def of_trials(self, index: Tensor) -> SiteTrajectory:
        """The trials at these positions."""
        return replace(self, inputs=self.inputs[index], states=self.states[index])

    def restrict(self, q: Fields) -> Fields:
        """Return q: there is no padding."""
        return q


class TrialRows(Rowwise):
    """Derivatives of a network at all trials together, whose maps are kept once they are made.

    `activations` are the numbers that a run holds for a trial.
    """

    def __init__(self, network: SiteNetwork, function: Any, *rows: Any, activations: int) -> None:
        super().__init__(function, *rows, keep=True)
        self.network = network
        self.activations = activations

    @cached_property
    def _differential(self) -> Differential:
        return super()._of_h()

    def _of_h(self) -> Differential:
        return self._differential

    def parameter_gram(self, q: Block, names: Sequence[str]) -> Block:
        """As of all rows, with no flat array of the parameters of every vector in between."""
        ((_, _, D),) = self._parameter_maps(names)
        jvp = D.jvp
        return self._each(lambda u: jvp(D.vjp(u)), q)

    def _chunks(self, copies: int = 1) -> Iterator[tuple[slice, Rowwise]]:
        yield slice(None), self

    def _each(self, action: Callable[[Tensor], Tensor], block: Tensor) -> Tensor:
        per_vector = _HELD * self.activations * self.h.element_size() * len(self.h)
        chunk = max(1, _BYTES // max(1, per_vector))
        with enough_for(min(len(block), chunk) * self.network.flops(len(self.h))):
            return on_each(action, block, chunk)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k != "_differential"}


class SiteEngine:
    """Actions of the linearised network on blocks (block, trial, unit) or (block, parameter).

    With F the values of the cut run, ``h = F(theta, h)`` at the states, and ``A = dF/dh`` couples
    each site to earlier ones only:

    ================== ================================================= ===========
    verb               action                                            operator
    ================== ================================================= ===========
    propagate          derivative of the pushed run, ``(1 - A)^-1 q``     P
    backpropagate      its adjoint                                       P*
    difference         ``v - A v``                                       P^-1
    difference_adjoint ``a - A^T a``                                     P^-*
    parameter_jvp      ``dF/dtheta dtheta``                              J
    parameter_vjp      sum over trials of ``(dF/dtheta)^T q``            J*
    ================== ================================================= ===========
    """

    name = "sites"
    remark = ""

    def __init__(
        self, network: SiteNetwork, parameters: dict[str, Tensor], trajectory: SiteTrajectory
    ) -> None:
        self.network = network
        self.parameters = parameters
        self.trajectory = trajectory

    def rows(self, function: Any, h: Tensor) -> TrialRows:
        """Derivatives of a function of the network at all trials."""
        rows = self.parameters, self.trajectory.inputs, h
        return TrialRows(self.network, function, *rows, activations=self.trajectory.activations)

    @cached_property
    def pushed(self) -> TrialRows:
        """The run in which something is added to the sites."""
        return self.rows(self.network.step, torch.zeros_like(self.trajectory.states))

    @cached_property
    def cut(self) -> TrialRows:
        """The run in which all that follows a site sees the states."""
        return self.rows(self.network.cut, self.trajectory.states)

    def propagate(self, q: Block) -> Block:
        """P q."""
        return self.pushed.state_jvp(q)

    def backpropagate(self, a: Block) -> Block:
        """P* a."""
        return self.pushed.state_vjp(a)

    def difference(self, v: Block) -> Block:
        """P^-1 v."""
        return v - self.cut.state_jvp(v)

    def difference_adjoint(self, a: Block) -> Block:
        """P^-* a."""
        return a - self.cut.state_vjp(a)

    def parameter_jvp(self, dtheta: Parameters, names: Sequence[str]) -> Block:
        """J dtheta, for the parameters `names`."""
        parts = dict(zip(names, dtheta.split(self.cut.sizes(names), dim=1), strict=True))
        sites, others = self._split(names)
        if others:
            image = self.cut.parameter_jvp(torch.cat([parts[n] for n in others], 1), others)
        else:
            image = dtheta.new_zeros(len(dtheta), *self.trajectory.states.shape)
        for site in sites:
            changes = [
                None if n not in parts else parts[n].unflatten(1, self.parameters[n].shape)
                for n in (site.weight, site.bias)
            ]
            site.add(image, site.jvp(*changes))
        return image

    def parameter_vjp(self, q: Block, names: Sequence[str]) -> Parameters:
        """J* q, for the parameters `names`."""
        sites, others = self._split(names)
        found: dict[str, Tensor] = {}
        if others:
            flat = self.cut.parameter_vjp(q, others)
            found = dict(zip(others, flat.split(self.cut.sizes(others), dim=1), strict=True))
        for site in sites:
            fields = site.taken(q)
            found |= {n: site.vjp(fields, n) for n in site.names if n in names}
        return torch.cat([found[name] for name in names], dim=1)

    def parameter_gram(self, q: Block, names: Sequence[str]) -> Block:
        """J J* q."""
        sites, others = self._split(names)
        image = self.cut.parameter_gram(q, others) if others else torch.zeros_like(q)
        for site in sites:
            site.add(image, site.kron(site.taken(q), names))
        return image

    def flow(self, q: Block, names: Sequence[str]) -> Block:
        """P J J* P* q; where K is not cheap by P J = dh/dtheta, one pass and not two."""
        sites, others = self._split(names)
        if not others and all(site.is_wide for site in sites):
            return self.propagate(self.parameter_gram(self.backpropagate(q), names))
        return self.pushed.parameter_gram(q, names)

    def factor_size(self, names: Sequence[str]) -> int | None:
        """No factor of K is known that is thinner than J."""
        return None

    def unit_blocks(self, names: Sequence[str]) -> Blocks | None:
        """K output by output of linear layers, where all parameters are of such; else None."""
        sites, others = self._split(names)
        return None if others or self.trajectory.parts.many else SiteBlocks(sites, names)

    @cached_property
    def linear(self) -> list[LinearSite]:
        """The linear layers whose outputs are sites.

        Empty if one of their weights has another effect, too, as by ``F.linear``: that shows in J*.
        """
        h = self.trajectory.states
        found = linear_sites(self.network, self.parameters, self.trajectory.inputs, h)
        q = torch.arange(h.numel()).to(h).cos().view(1, *h.shape)
        for site in found:
            reference, fields = self.cut.parameter_vjp(q, site.names), site.taken(q)
            gap = reference - torch.cat([site.vjp(fields, name) for name in site.names], 1)
            if not gap.norm() <= torch.finfo(h.dtype).eps ** 0.5 * reference.norm():
                return []
        return found

    def _split(self, names: Sequence[str]) -> tuple[list[LinearSite], list[str]]:
        """The linear layers with some of the parameters, and the parameters of no such layer."""
        sites = [site for site in self.linear if not set(site.names).isdisjoint(names)]
        known = {name for site in sites for name in site.names}
        return sites, [name for name in names if name not in known]
