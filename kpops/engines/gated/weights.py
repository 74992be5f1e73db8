"""What parameters learn through: the weights and biases of affine maps.

A weight may be a parameter itself, or what a parametrisation of PyTorch makes of others: masked, of
low rank, orthogonal. Then ``J = J_W M``, with J_W the derivative by the weights, whose structure is
known, and M that of the weights by the parameters, which sees no trajectory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from kpops.engines.gated.roles import Role, affine_attributes, parameter_roles, untied
from kpops.engines.rowwise import Rowwise
from kpops.models.gated import GatedRecurrence
from kpops.models.recurrence import refuse_cached
from kpops.precision import in_full_precision

Parameters = Float[Tensor, "block parameter"]
Entries = Float[Tensor, "block entry"]

# Numbers of M up to which it is kept as a matrix: to differentiate a parametrisation may take
# longer than all of J, and may wait for a GPU.
_DENSE = 2**20


class Weights:
    """Weights and biases that parameters learn through, one after another, and M.

    `shapes` are those of the weights by role; without `made`, they are the parameters.
    """

    def __init__(
        self, names: Sequence[str], shapes: dict[Role, torch.Size], made: Rowwise | None
    ) -> None:
        self.names = names
        self.shapes = shapes
        self._made = made

    @property
    def size(self) -> int:
        """Number of entries of the weights."""
        return sum(shape.numel() for shape in self.shapes.values())

    @cached_property
    @in_full_precision  # it is kept
    def _matrix(self) -> Float[Tensor, "entry parameter"] | None:
        """M, where it is small."""
        assert self._made is not None
        if self.size * sum(self._made.sizes(self.names)) > _DENSE:
            return None
        one = self._made.h
        units = torch.eye(self.size, dtype=one.dtype, device=one.device)
        return self._made.parameter_vjp(units[:, None], self.names)

    def jvp(self, dtheta: Parameters) -> Entries:
        """M dtheta."""
        if self._made is None:
            return dtheta
        if self._matrix is not None:
            return dtheta @ self._matrix.mT
        return self._made.parameter_jvp(dtheta, self.names)[:, 0]

    def vjp(self, w: Entries) -> Parameters:
        """M* w."""
        if self._made is None:
            return w
        if self._matrix is not None:
            return w @ self._matrix
        return self._made.parameter_vjp(w[:, None], self.names)


def learning_weights(
    recurrence: GatedRecurrence, parameters: dict[str, Tensor], names: Sequence[str]
) -> Weights | None:
    """Weights that the parameters `names` learn through; None if one of them enters elsewhere."""
    direct, made = parameter_roles(recurrence), parametrised_roles(recurrence)
    if all(name in direct for name in names):
        return Weights(names, {direct[n]: parameters[n].shape for n in names}, None)
    reached = direct.keys() | {name for of_role in made.values() for name in of_role}
    if not reached.issuperset(names):
        return None
    roles = [role for role, of_role in made.items() if not of_role.isdisjoint(names)]
    roles += [direct[name] for name in names if name in direct]
    attributes = affine_attributes(recurrence)
    flat = _Flat(recurrence.renewed(), [attributes[role] for role in roles])
    shapes = {role: recurrence.weight(attributes[role]).shape for role in roles}
    one = next(iter(parameters.values())).new_zeros(1, 1)
    return Weights(names, shapes, Rowwise(flat.under, parameters, one, one, keep=True))


def parametrised_roles(recurrence: GatedRecurrence) -> dict[Role, set[str]]:
    """The parameters that an affine weight is made of, which are used there alone."""
    found: dict[Role, set[str]] = {}
    alone = untied(recurrence)
    for role, attribute in affine_attributes(recurrence).items():
        path, _, name = attribute.rpartition(".")
        owner = attrgetter(path)(recurrence.module) if path else recurrence.module
        if isinstance(owner, nn.Module) and parametrize.is_parametrized(owner, name):
            inside = f"{path}.parametrizations.{name}.".removeprefix(".")
            names = {n for n in recurrence.parameter_dict() if n.startswith(inside)}
            if names and names <= alone:
                found[role] = names
    return found


class _Flat(nn.Module):
    """Some weights of a recurrence in one row, as a function of its parameters."""

    def __init__(self, recurrence: Any, attributes: Sequence[str]) -> None:
        super().__init__()
        self.recurrence = recurrence
        self.attributes = attributes

    def under(self, parameters: Mapping[str, Tensor], *_: Tensor) -> Float[Tensor, "1 entry"]:
        """The weights under these parameters; others keep their value."""
        refuse_cached(self.recurrence)
        named = {f"recurrence.module.{name}": value for name, value in parameters.items()}
        return functional_call(self, named, ())

    def forward(self) -> Float[Tensor, "1 entry"]:
        weights = [self.recurrence.weight(attribute) for attribute in self.attributes]
        return torch.cat([weight.reshape(1, -1) for weight in weights], dim=1)
