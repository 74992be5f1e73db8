"""Which learning parameter is which weight or bias of a gated stack."""

from __future__ import annotations

from collections import Counter

import torch
from jaxtyping import Float
from torch import Tensor

from kpops.models.gated import GatedRecurrence

Role = tuple[int, str, str]


def parameter_roles(recurrence: GatedRecurrence) -> dict[str, Role]:
    """Parameter name to (layer, source, role), for parameters that are used there alone."""
    alone = untied(recurrence)
    names = {id(p): n for n, p in recurrence.parameter_dict().items() if n in alone}
    found: dict[str, list[Role]] = {}
    for role, attribute in affine_attributes(recurrence).items():
        name = names.get(id(recurrence.weight(attribute)))
        if name is not None:
            found.setdefault(name, []).append(role)
    return {name: roles[0] for name, roles in found.items() if len(roles) == 1}


def affine_attributes(recurrence: GatedRecurrence) -> dict[Role, str]:
    """Where the module keeps the weights and biases of all affine maps."""
    found: dict[Role, str | None] = {}
    for i, maps in enumerate(recurrence.layers):
        found |= {
            (i, "recurrent", "weight"): maps.recurrent,
            (i, "recurrent", "bias"): maps.recurrent_bias,
            (i, "input", "weight"): maps.input,
            (i, "input", "bias"): maps.input_bias,
        }
    return {role: attribute for role, attribute in found.items() if attribute is not None}


def untied(recurrence: GatedRecurrence) -> set[str]:
    """Names of the parameters that the module has in one place."""
    places = Counter(id(p) for _, p in recurrence.module.named_parameters(remove_duplicate=False))
    return {name for name, p in recurrence.parameter_dict().items() if places[id(p)] <= 1}


def by_role(
    theta: Float[Tensor, "block parameter"], shapes: dict[Role, torch.Size]
) -> dict[Role, Float[Tensor, "block ..."]]:
    """Views of flat parameter vectors by place, each in its own shape."""
    parts = theta.split([shape.numel() for shape in shapes.values()], dim=1)
    return {
        role: part.unflatten(1, shape)
        for (role, shape), part in zip(shapes.items(), parts, strict=True)
    }
