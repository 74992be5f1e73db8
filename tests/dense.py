"""The operators as dense matrices, from torch.autograd on the module's own forward alone.

Nothing here knows of kpops: this is the independent reference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from cases import Case
from torch import Tensor, nn


@dataclass
class Dense:
    """Matrices in C-order of (trial, time, unit); parameters in ``named_parameters`` order."""

    states: Tensor
    P: Tensor
    J: Tensor
    sensitivity: Tensor  # dh/dtheta of the unrolled model, not P @ J
    sizes: dict[str, int]

    def columns(self, name: str) -> slice:
        start = 0
        for each, size in self.sizes.items():
            if each == name:
                return slice(start, start + size)
            start += size
        raise KeyError(name)


def dense(
    case: Case,
    model: nn.Module,
    inputs: Tensor,
    h0: Tensor,
    names: list[str] | None = None,
    mask: Tensor | None = None,
) -> Dense:
    names = [n for n, _ in model.named_parameters() if names is None or n in names]
    tensors = inputs, h0, *model.state_dict().values()
    key = case.name, *names, *(t.detach().numpy().tobytes() for t in tensors)
    if key not in _found:
        _found[key] = _unmasked(case, model, inputs, h0, names)
    found = _found[key]
    if mask is None:
        return found
    valid = mask[..., None].expand(found.states.shape).reshape(-1).to(h0.dtype)
    P = valid[:, None] * found.P * valid
    J, sensitivity = valid[:, None] * found.J, valid[:, None] * found.sensitivity
    return replace(found, P=P, J=J, sensitivity=sensitivity)


_found: dict[tuple[object, ...], Dense] = {}
"""What is known already: engines, masks and measures are compared with the same matrices."""


def _unmasked(case: Case, model: nn.Module, inputs: Tensor, h0: Tensor, names: list[str]) -> Dense:
    parameters = dict(model.named_parameters())
    chosen = [parameters[n] for n in names]
    n_trials, n_steps, _ = inputs.shape
    n_units = h0.shape[1]

    # The unrolled model, and the gradient of every single state.
    states, h = [], h0
    for t in range(n_steps):
        h = case.own_step(model, inputs[:, t], h)
        states.append(h)
    states = torch.stack(states, 1)
    sensitivity = torch.stack([_gradient(s, chosen) for s in states.flatten()])

    # Every step on its own.
    previous = torch.cat([h0[:, None], states[:, :-1]], 1).detach()
    size = n_steps * n_units
    inverse = torch.eye(n_trials * size, dtype=h0.dtype)
    rows = []
    for b in range(n_trials):
        for t in range(n_steps):
            x, start = inputs[b : b + 1, t], previous[b : b + 1, t]
            new = case.own_step(model, x, start)[0]
            rows += [_gradient(component, chosen) for component in new]
            if t > 0:
                A = torch.autograd.functional.jacobian(
                    lambda h, x=x: case.own_step(model, x, h)[0], start
                )[:, 0]
                i = b * size + t * n_units
                inverse[i : i + n_units, i - n_units : i] = -A
    J = torch.stack(rows)
    P = torch.linalg.inv(inverse)
    sizes = {n: parameters[n].numel() for n in names}
    return Dense(states.detach(), P, J, sensitivity, sizes)


def _gradient(scalar: Tensor, parameters: list[Tensor]) -> Tensor:
    gradients = torch.autograd.grad(scalar, parameters, retain_graph=True, materialize_grads=True)
    return torch.cat([g.reshape(-1) for g in gradients])


def relative(a, b) -> float:
    """Relative distance in the Frobenius norm."""
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return float((a - b).norm() / b.norm())
