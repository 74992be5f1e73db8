"""Whether the derivatives behind operators are those that training uses, and are true.

Operators take the derivatives of steps and readouts by reverse mode under ``torch.func``. Three
things can go wrong, and are checked on a few rows. Training, which is plain autograd, may get
another gradient: by hooks, or by tensors that a module made of its weights in an earlier call and
kept. A backward pass may not be linear, so it has no adjoint. And it may differ from the derivative
of the values: by a surrogate, or where a part is detached or under ``torch.no_grad``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import vjp

from kpops.engines.differential import Differential, plain_gradients
from kpops.engines.rowwise import Rowwise
from kpops.models.readout import RowReadout
from kpops.models.recurrence import Recurrence
from kpops.models.sites import SiteNetwork

STATE = "its state"

_ROWS = 4
_LARGE = 2.0**10
_TRIES = 3
_VANISHES = 2e-6
"""Of the largest gradient: float32 does not resolve what is smaller."""
_NEARBY = 1e-2
# Relative steps of fourth-order differences: the first for functions that compute in float32
# inside, the last ones for functions of many kinks.
_STEPS = (3e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-2}

_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, IndexError)
_REMEDIES = {
    "saved tensor hooks": "leave out torch.utils.checkpoint",
    "checkpoint": "leave out torch.utils.checkpoint",
    "setup_context": "give the autograd.Function a setup_context and generate_vmap_rule = True, "
    "and leave out backward hooks of modules",
    "vmap": "write it without branches on values, .item() and changes in place; an "
    "autograd.Function needs generate_vmap_rule = True",
    "scaled_dot_product": "call attention within torch.nn.attention.sdpa_kernel(SDPBackend.MATH)",
    "storage": "leave out NumPy and memory addresses",
    "once_differentiable": "leave out once_differentiable",
    "nference": "leave out torch.inference_mode",
    "in-place": "change nothing in place",
    "inplace": "change nothing in place",
}


Subject = Recurrence | RowReadout | SiteNetwork


class Rows(NamedTuple):
    """Where a subject was run, and is checked."""

    parameters: dict[str, Tensor]  # that learn
    x: Any  # (row, feature), or a tree of such tensors
    h: Tensor  # (row, unit)


def is_declared(module: Any) -> bool:
    """Whether a model or a readout declares that its gradient is a surrogate."""
    parts = module.modules() if isinstance(module, nn.Module) else [module]
    return any(getattr(part, "surrogate_gradient", False) for part in parts)


@torch.no_grad()
def refuse_unlike_training(name: str, subject: Subject, never_run: Subject, rows: Rows) -> None:
    """Refuse derivatives that differ from those of training, or of the values.

    Messages call the subject `name`. `never_run` is its copy from before its first run, by
    ``renewed``.
    """
    parameters, x, h = rows
    # Not at the state 0, where all trials begin: a kink may have two derivatives there, as that of
    # nn.PReLU, and P, J and K use no derivative by the first state.
    moved = h.any(1).nonzero()[:, 0]
    where = moved if len(moved) else torch.arange(len(h), device=h.device)
    some = where[torch.linspace(0, len(where) - 1, min(_ROWS, len(where))).long()]
    rows = Rows(parameters, x[some], h[some])
    trained, ours = _gradients(name, subject, never_run, rows)
    for what, gradient in ours.gradients.items():
        reference = trained[what]
        reference = torch.zeros_like(gradient) if reference is None else reference
        if _far(gradient, reference, ours.rounding):
            raise ValueError(
                f"the gradient of {name} by {what} is not the one that training gets: "
                f"{_why_not_trained(subject.module, never_run.module)}"
            )
        if not ours.linear[what]:
            raise ValueError(
                f"the backward pass of {name} to {what} is not linear, so it has no adjoint: "
                "leave out hooks that clip gradients"
            )
    if not ours.adjoint:  # possible only where the jvp is by forward mode
        raise ValueError(
            f"forward and reverse mode of {name} disagree, and it has no second derivative: leave "
            "out torch.no_grad, hooks, and functions such as hardsigmoid, which lack it; nn.PReLU "
            "has two derivatives at 0, so start it at an h0 other than 0"
        )
    _refuse_kept(name, never_run, rows, [what for what, g in trained.items() if g is None])
    if is_declared(subject.module):
        return
    untrue = [STATE] if _is_untrue(subject, rows, []) else []
    if parameters and _is_untrue(subject, rows, list(parameters)):
        untrue += [n for n in parameters if _is_untrue(subject, rows, [n])] or list(parameters)
    if untrue:
        raise ValueError(
            f"the gradient of {name} by {', '.join(untrue)} is not the derivative of its values: "
            "reverse mode and finite differences disagree. Is a part under torch.no_grad, "
            "detached, rounded, behind a hook, or of a backward pass of its own? Mend it; or, if "
            "it is trained that way, set surrogate_gradient = True on the module"
        )


# Second derivatives.


class _Pulled:
    """The gradient ``c^T dy/dh`` of a subject, as a function of rows."""

    def __init__(self, subject: Subject, c: Tensor) -> None:
        self.subject, self.c, self.module = subject, c, subject.module

    def step(self, theta: dict[str, Tensor], x: Tensor, h: Tensor) -> Tensor:
        """Rows (row, unit)."""
        pullback: Any = vjp(lambda state: self.subject.step(theta, x, state), h)[1]
        return pullback(self.c.to(h))[0]


@torch.no_grad()
def refuse_without_second(name: str, subject: Subject, rows: Rows, *, known: bool) -> None:
    """Refuse a subject whose second derivatives are missing, or not those of its values.

    Of `known` code only what torch lacks is looked for.
    """
    if is_declared(subject.module):
        raise ValueError(
            f"{name} declares a surrogate gradient, which is the derivative of no function and so "
            "has no Hessian: use ggn"
        )
    parameters, x, h = rows
    some = torch.linspace(0, len(h) - 1, min(_ROWS, len(h))).long().to(h.device)
    rows = Rows(parameters, x[some], h[some])
    d, names = Rowwise(subject.step, *rows), list(parameters)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(h)

    c = normal(*subject.step({}, rows.x, rows.h).shape)
    u = normal(2, sum(d.sizes(names))), normal(2, *rows.h.shape)
    try:
        images = d.second_order(c, *u, names)
    except _ERRORS as error:
        raise ValueError(
            f"{name} has no second derivative ({str(error).strip().partition(chr(10))[0]}): use "
            "ggn, which needs none, or write it in plain operations of torch"
        ) from error
    if known:
        return
    pulled = _Pulled(subject, c)
    wrong = not is_symmetric(*(torch.cat([t.flatten(1) for t in both], 1) for both in (u, images)))
    if wrong or _is_untrue(pulled, rows, []) or (names and _is_untrue(pulled, rows, names)):
        raise ValueError(
            f"the second derivative of {name} is not that of its values: is there a backward pass "
            "that is not differentiable, as that of an autograd.Function or of PyTorch's "
            "weight_norm may be? Use ggn, which does not need it"
        )


def is_symmetric(u: Tensor, images: Tensor) -> bool:
    """Whether <u0, A u1> = <A u0, u1> but for rounding, for two vectors and their images."""
    gap = (u[0] * images[1]).sum() - (images[0] * u[1]).sum()
    return bool(gap.abs() <= _tolerance(u) * u.norm() * images.norm())


def is_slope(curve: Callable[[Tensor], Tensor], value: Tensor, slope: Tensor) -> bool:
    """Whether values (row, output) along a line have this slope at 0."""
    agreed: Tensor | bool = False
    for step in _STEPS:
        agreed = agreed | _agrees(curve, value.new_tensor(step), value, slope)
    return bool(torch.as_tensor(agreed).all())


# Reverse mode: training's, and the operators'.


class _ByOperators(NamedTuple):
    gradients: dict[str, Tensor]
    linear: dict[str, bool]  # in the cotangent
    adjoint: bool  # whether jvp and vjp agree
    rounding: Tensor  # of the terms of a gradient, all that is left of one that vanishes


def _gradients(
    name: str, subject: Subject, never_run: Subject, rows: Rows
) -> tuple[dict[str, Tensor | None], _ByOperators]:
    shape = subject.step({}, rows.x, rows.h).shape
    cotangent = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(rows.h)
    try:
        trained = _by_training(never_run, rows, cotangent)
        return trained, _by_operators(subject, rows, cotangent)
    except _ERRORS as error:
        remedies = (remedy for text, remedy in _REMEDIES.items() if text in str(error))
        raise ValueError(
            f"the derivatives of {name} cannot be taken "
            f"({str(error).strip().partition(chr(10))[0] or type(error).__name__}): "
            f"{next(remedies, 'write it in plain operations of torch')}"
        ) from error


def _by_training(subject: Subject, rows: Rows, cotangent: Tensor) -> dict[str, Tensor | None]:
    """Gradients by plain autograd; None where the value does not depend on the parameter."""
    by_state, by_parameter = plain_gradients(subject.step, *rows, cotangent)
    return {STATE: by_state, **by_parameter}


def _by_operators(subject: Subject, rows: Rows, cotangent: Tensor) -> _ByOperators:
    """Derivatives as operators take them, of two vectors: one vector takes another path."""
    step: Any = subject.step
    d = Rowwise(step, *rows, keep=True)
    generator = torch.Generator().manual_seed(1)
    block = torch.stack([cotangent, _LARGE * cotangent])
    cotangents, gaps = {STATE: d.state_vjp(block)}, []

    def compare(cotangents: Tensor, jvp: Callable[[Tensor], Tensor]) -> None:
        u = torch.randn(cotangents[0].shape, generator=generator).to(cotangents)
        tangents, cotangents = jvp(torch.stack([u, u]))[0], cotangents[0]
        size = cotangent.norm() * tangents.norm() + u.norm() * cotangents.norm()
        gaps.append((((cotangent * tangents).sum() - (u * cotangents).sum()).abs(), size, u.norm()))

    compare(cotangents[STATE], d.state_jvp)
    names = list(rows.parameters)
    if names:
        flat = d.parameter_vjp(block, names)
        compare(flat, lambda u: d.parameter_jvp(u, names))
        parts = flat.split(d.sizes(names), dim=1)
        shapes = (rows.parameters[n].shape for n in names)
        cotangents |= {n: p.reshape(2, *s) for n, p, s in zip(names, parts, shapes, strict=True)}
    value = subject.step({}, rows.x, rows.h).norm() * cotangent.norm()
    norms = [two[0].norm() for two in cotangents.values()]
    largest = torch.stack([value, *norms]).nan_to_num().max()
    # Normalisation enlarges rounding, by its eps up to some hundred times.
    rounding = min(1e3 * torch.finfo(value.dtype).eps, _VANISHES) * largest
    linear = {n: not _far(two[1] / _LARGE, two[0], rounding) for n, two in cotangents.items()}
    adjoint = not any(bool(gap > _tolerance(gap) * size + u * rounding) for gap, size, u in gaps)
    return _ByOperators({n: two[0] for n, two in cotangents.items()}, linear, adjoint, rounding)


def _far(a: Tensor, b: Tensor, rounding: Tensor) -> bool:
    """Whether gradients differ by more than rounding, where both are finite."""
    finite = a.isfinite() & b.isfinite()
    return bool((a - b)[finite].norm() > _tolerance(a) * b[finite].norm() + rounding)


def _tolerance(like: Tensor) -> float:
    return max(1e-5, 1e3 * torch.finfo(like.dtype).eps)  # a part may compute in float32


# Tensors that a module makes of its weights and keeps.


def _kept_by(module: Any) -> dict[tuple[str, str], Tensor]:
    """Tensors that are plain attributes, by the names of part and attribute."""
    parts = module.named_modules() if isinstance(module, nn.Module) else ()
    return {
        (name, key): value
        for name, part in parts
        for key, value in vars(part).items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }


def _why_not_trained(module: Any, never_run: Any) -> str:
    made = sorted(_kept_by(module).keys() - _kept_by(never_run).keys())
    if not made:
        return "leave out hooks on gradients, and whatever a call keeps for later ones"
    kept = ", ".join(".".join(filter(None, key)) for key in made)
    return (
        f"a step makes {kept} and keeps it, so the weights behind it drop out of later steps; "
        "make it in each step, or by torch.nn.utils.parametrize"
    )


def _refuse_kept(name: str, never_run: Subject, rows: Rows, without: list[str]) -> None:
    """Refuse weights that have an effect only once a kept tensor is forgotten."""
    for part, key in _kept_by(never_run.module) if set(without) - {STATE} else ():
        again = never_run.renewed()
        assert isinstance(again.module, nn.Module)
        setattr(again.module.get_submodule(part), key, None)
        try:
            cotangent = torch.ones_like(again.step({}, rows.x, rows.h))
            trained = _by_training(again.renewed(), rows, cotangent)
        except _ERRORS:  # a step needs it, so it is no memory of an earlier call
            continue
        of = [what for what in without if trained[what] is not None]
        if of:
            raise ValueError(
                f"{name} keeps {'.'.join(filter(None, (part, key)))}, made in an earlier call of "
                f"{', '.join(of)}, which therefore has no effect: set it to None, and make it in "
                "each step"
            )


# Finite differences.


def _is_untrue(subject: Subject | _Pulled, rows: Rows, names: list[str]) -> bool:
    """Whether the derivative by these parameters, or by the state if there are none, is not true.

    Then a value has another slope along every direction that is tried; kinks spoil some directions.
    """
    for dtype in dict.fromkeys((torch.float64, rows.h.dtype)):
        agreed: Tensor | bool = False
        try:
            for seed in range(_TRIES):
                curve, zero = _curve(subject, rows, names, dtype, seed)
                d = Differential(curve, zero)
                slope = d.jvp(torch.ones_like(zero))
                if slope.dtype != dtype:
                    break
                for step in _STEPS:
                    agreed = agreed | _agrees(curve, zero + step, d.value, slope)
                    if bool(agreed.all()):
                        return False
            else:
                return True
        except _ERRORS:  # it computes in its own dtype only, or at its own weights
            continue
    return False


def _curve(
    subject: Subject | _Pulled, rows: Rows, names: list[str], dtype: torch.dtype, seed: int
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Values along a random line, as a function of a number, and the number 0.

    The line passes near the rows and the weights, not through them, where a derivative may be a
    matter of convention, as that of relu at 0.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        drawn = torch.randn(like.shape, generator=generator, dtype=dtype).to(like)
        return drawn * (float(like.square().mean().sqrt()) if like.any() else 1.0)

    module, every = subject.module, []
    if isinstance(module, nn.Module):
        every = [*module.named_parameters(), *module.named_buffers()]
    theta = {n: t.detach().to(dtype) for n, t in every if t.is_floating_point()}
    theta |= {n: p.to(dtype) for n, p in rows.parameters.items()}
    theta |= {n: theta[n] + _NEARBY * normal(theta[n]) for n in rows.parameters}
    x, h = rows.x.to(dtype), rows.h.to(dtype)
    h = h + _NEARBY * normal(h)
    along = {n: normal(theta[n]) for n in names}
    dh = 0 if names else normal(h)

    def curve(s: Tensor) -> Tensor:
        moved = {n: theta[n] + s * direction for n, direction in along.items()}
        return subject.step({**theta, **moved}, x, h + s * dh)

    return curve, h.new_zeros(())


def _agrees(
    curve: Callable[[Tensor], Tensor], step: Tensor, value: Tensor, slope: Tensor
) -> Tensor:
    """Which values (row, output) have this slope at 0, or a change that is not finite."""
    change = (8 * (curve(step) - curve(-step)) - (curve(2 * step) - curve(-2 * step))) / 12
    expected = step * slope
    gap = (change - expected).abs()
    finite = gap.isfinite()
    size = [v.where(finite, 0).norm(dim=1, keepdim=True) for v in (change, expected, value)]
    rounding = 100 * torch.finfo(step.dtype).eps * size[2]
    return ~finite | (gap <= _TOLERANCE[step.dtype] * (size[0] + size[1]) + rounding)
