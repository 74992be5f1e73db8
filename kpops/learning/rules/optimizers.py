"""What the next step of a torch optimizer does, in the state in which it is.

With g the gradient and M the preconditioner that the step will use, it moves the parameters by
``-eta (c M g + d)``. c and d do not depend on the error but through M: d is what is left of earlier
gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from kpops.kinds import described

State = Mapping[str, Any]
Step = tuple[Tensor, Tensor]
"""Of one parameter: c M, entry by entry, and d."""


def _sgd(g: Tensor, state: State, group: State) -> Step:
    m, fresh, nesterov = group["momentum"], 1 - group["dampening"], group["nesterov"]
    if not m:
        return torch.ones_like(g), torch.zeros_like(g)
    velocity = state.get("momentum_buffer")
    if velocity is None:  # the first velocity is the gradient
        velocity, fresh = torch.zeros_like(g), 1
    factor = m if nesterov else 1
    return torch.full_like(g, nesterov + factor * fresh), factor * m * velocity


def _adam(g: Tensor, state: State, group: State) -> Step:
    first, second = group["betas"]
    zero = torch.zeros_like(g)
    count = float(state.get("step", 0)) + 1
    squares = second * state.get("exp_avg_sq", zero) + (1 - second) * g * g
    root = (squares / (1 - second**count)).sqrt() + group["eps"]
    M = 1 / (root * (1 - first**count))
    return (1 - first) * M, first * M * state.get("exp_avg", zero)


def _rmsprop(g: Tensor, state: State, group: State) -> Step:
    zero, alpha = torch.zeros_like(g), group["alpha"]
    squares = alpha * state.get("square_avg", zero) + (1 - alpha) * g * g
    if group["centered"]:
        squares = squares - (alpha * state.get("grad_avg", zero) + (1 - alpha) * g).square()
    M = 1 / (squares.sqrt() + group["eps"])
    return M, group["momentum"] * state.get("momentum_buffer", zero)


def _adagrad(g: Tensor, state: State, group: State) -> Step:
    slower = 1 + float(state["step"]) * group["lr_decay"]
    return 1 / (((state["sum"] + g * g).sqrt() + group["eps"]) * slower), torch.zeros_like(g)


STEPS: dict[type[Optimizer], Callable[[Tensor, State, State], Step]] = {
    SGD: _sgd,
    Adam: _adam,
    AdamW: _adam,
    RMSprop: _rmsprop,
    Adagrad: _adagrad,
}


def next_step(
    optimizer: Any, model: Any, parameters: Mapping[str, Tensor]
) -> tuple[list[Tensor], Tensor]:
    """Return c M of each of the `parameters`, and d as one flat vector.

    Raises
    ------
    ValueError
        If the optimizer is of another class or setting than those known, if it does not train the
        parameters of `model` with one learning rate, if these are not as they were linearised, or
        have no gradients.
    TypeError
        If `optimizer` or `model` is none.
    """
    known = [kind.__name__ for kind in STEPS]
    if not isinstance(optimizer, Optimizer) or not isinstance(model, nn.Module):
        raise TypeError(
            f"optimizer is {described(optimizer)}, model {described(model)}: pass one of {known} "
            "and the module that it trains"
        )
    if type(optimizer) not in STEPS:
        raise ValueError(
            f"optimizer is {described(optimizer)}, known are {known}: pass its preconditioner to "
            "the rule 'preconditioned', or follow its real steps by kpops.telescope"
        )
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    every = dict(model.named_parameters())
    whole = all(n in every and _is_same(every[n], p) for n, p in parameters.items())
    diagonals, rests, rates = [], [], set()
    for name, linearised in parameters.items():
        p = every[name] if whole else _find(name, linearised, every)
        group = groups.get(id(p))
        if group is None:
            raise ValueError(f"the optimizer does not train {name}: leave it out by parameters=")
        if p.grad is None:
            raise ValueError(
                f"{name} has no gradient, which the preconditioner of this step depends on: call "
                "loss.backward() before, and optimizer.step() after"
            )
        for setting in ("weight_decay", "amsgrad", "maximize"):
            if group.get(setting):
                raise ValueError(
                    f"the optimizer has {setting}={group[setting]}, which is not of the form "
                    "-eta (M g + d): set it to zero in optimizer.param_groups, or follow the real "
                    "steps by kpops.telescope"
                )
        rates.add(float(group["lr"]))
        state = optimizer.state.get(p, {})
        diagonal, rest = STEPS[type(optimizer)](p.grad.detach(), state, group)
        diagonals.append(diagonal.to(linearised))
        rests.append(rest.to(linearised).flatten())
    if len(rates) > 1:
        raise ValueError(f"the parameters have the learning rates {sorted(rates)}: use one")
    return diagonals, torch.cat(rests)


def _find(name: str, linearised: Tensor, every: Mapping[str, nn.Parameter]) -> nn.Parameter:
    """The parameter of the model, of which a part was linearised, under that name."""
    found = [n for n in every if n == name or n.endswith(f".{name}")]
    if len(found) != 1:
        raise ValueError(
            f"{len(found)} parameters of the model have the name {name}: pass as model= the "
            f"recurrent part that was linearised; the names here are {list(every)[:6]}"
        )
    p = every[found[0]]
    if not _is_same(p, linearised):
        raise ValueError(
            f"{name} has changed since the model was linearised: linearise it at its present "
            "weights"
        )
    return p


def _is_same(p: Tensor, linearised: Tensor) -> bool:
    return p.shape == linearised.shape and torch.equal(p.detach().to(linearised), linearised)
