"""Losses: how outputs are compared with targets, and how much each step counts.

Outputs are (trial, time, output); weights are (trial, time), zero at steps that do not count.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import xarray as xr
from torch import Tensor, nn

from kpops.arrays import as_tensor
from kpops.kinds import described, has_argument
from kpops.labels import Space, by_name
from kpops.read_inputs import BY_TRIAL, Reading

Loss = str | Callable[..., Tensor]

IGNORED = -100  # the label of a step that does not count, as in PyTorch


class _Mean(ABC):
    """A mean over steps by their weights: sum_bt w_bt l_bt / sum_bt w_bt."""

    long_name: ClassVar[str]

    def fit(self, targets: Tensor, shape: tuple[int, ...], weights: Tensor) -> Tensor:
        """Targets as compared with outputs of that shape, zero where steps do not count."""
        if tuple(targets.shape[: weights.ndim]) == shape[:-1]:
            counts = (weights > 0).reshape(*shape[:-1], *(1,) * (targets.ndim - weights.ndim))
            targets = targets.masked_fill(~counts, 0)
            wrong = ~targets.isfinite()
            if wrong.any():
                raise ValueError(f"targets is not finite at {_where(wrong)}: mask those steps")
        return self._fit(targets, shape, weights)

    @abstractmethod
    def _fit(self, targets: Tensor, shape: tuple[int, ...], weights: Tensor) -> Tensor: ...

    def counted(self, targets: Tensor, weights: Tensor) -> Tensor:
        """Weights, zero where the targets mark the step as not counting."""
        return weights

    @abstractmethod
    def of_steps(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of every step, (trial, time)."""

    @abstractmethod
    def _root(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]: ...

    def root(
        self, outputs: Tensor, targets: Tensor, weights: Tensor, total: float
    ) -> tuple[Tensor, ...]:
        """d, or d, a and b, of the second derivative R R^T by the outputs of each step.

        All are (trial, time, output), and R = diag(d) - a b^T.
        """
        scale = (self.counted(targets, weights) / total).sqrt()[..., None]
        d, *ab = self._root(outputs, targets)
        return scale * d, *(scale * a if i == 0 else a for i, a in enumerate(ab))

    def __call__(
        self, outputs: Tensor, targets: Tensor, weights: Tensor, total: float | None = None
    ) -> Tensor:
        """The mean; or what these trials add to it, where all weights have the sum `total`."""
        weights = self.counted(targets, weights)
        # Not zero times what may be infinite.
        steps = self.of_steps(outputs, targets).masked_fill(weights == 0, 0)
        return (steps * weights).sum() / (weights.sum() if total is None else total)


class _SquaredError(_Mean):
    """The squared error of a step is the mean over its outputs."""

    long_name = "mean squared error"

    def _fit(self, targets: Tensor, shape: tuple[int, ...], weights: Tensor) -> Tensor:
        if tuple(targets.shape) != shape:
            labels = tuple(targets.shape) == shape[:-1] and not targets.is_floating_point()
            remedy = ": pass loss='cross_entropy' for labels" if labels else ""
            if targets.ndim < 3 and targets.shape[:1] == shape[:1] and not labels:
                last = "lambda y, target: ((y[:, -1] - target) ** 2).mean()"
                remedy = f": for targets of one step pass a loss such as {last}"
            raise ValueError(
                f"targets has shape {tuple(targets.shape)}, expected {shape}, that of the outputs "
                f"(trial, time, output){remedy}"
            )
        return targets.to(weights.dtype)

    def of_steps(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean(-1)

    def _root(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        return (torch.full_like(outputs, (2 / outputs.shape[-1]) ** 0.5),)


class _CrossEntropy(_Mean):
    """Of logits (trial, time, class) with labels (trial, time) or with probabilities."""

    long_name = "cross entropy"

    def _fit(self, targets: Tensor, shape: tuple[int, ...], weights: Tensor) -> Tensor:
        if tuple(targets.shape) == shape and targets.is_floating_point():
            counts = weights > 0
            wrong = counts & (targets < 0).any(-1)
            _refuse_at(wrong, targets, "expected probabilities of the classes, none negative")
            rounding = targets.shape[-1] * torch.finfo(targets.dtype).eps ** 0.5
            wrong = counts & ((targets.sum(-1) - 1).abs() > rounding)
            _refuse_at(wrong, targets, "expected probabilities of the classes, whose sum is 1")
            return targets
        if tuple(targets.shape) != shape[:-1] or targets.is_floating_point():
            kind = str(targets.dtype).removeprefix("torch.")
            raise ValueError(
                f"targets is {kind} of shape {tuple(targets.shape)}, expected integer "
                f"labels (trial, time) = {shape[:-1]} or probabilities (trial, time, class) = "
                f"{shape} for the cross entropy: convert labels to integers (missing ones to "
                f"{IGNORED}), one-hot targets to floats; for labels of one step pass a "
                "loss such as lambda y, label: torch.nn.functional.cross_entropy(y[:, -1], label)"
            )
        if targets.dtype == torch.bool:
            raise ValueError("targets is bool: convert labels to integers, the number of the class")
        labels = targets.long()
        wrong = (labels != IGNORED) & ((labels < 0) | (labels >= shape[-1]))
        _refuse_at(wrong, labels, f"expected a class from 0 to {shape[-1] - 1}, or {IGNORED}")
        return labels

    def counted(self, targets: Tensor, weights: Tensor) -> Tensor:
        return weights if targets.is_floating_point() else weights * (targets != IGNORED)

    def of_steps(self, outputs: Tensor, targets: Tensor) -> Tensor:
        logits = outputs.movedim(-1, 1)  # where PyTorch has the classes
        wanted = targets.movedim(-1, 1) if targets.is_floating_point() else targets
        return nn.functional.cross_entropy(logits, wanted, reduction="none", ignore_index=IGNORED)

    def _root(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        # diag(p) - p p^T = R R^T with R = diag(sqrt p) - p sqrt(p)^T, since the sum of p is 1.
        p, b = outputs.softmax(-1), (outputs.log_softmax(-1) / 2).exp()
        scale = targets.sum(-1, keepdim=True).sqrt() if targets.is_floating_point() else 1
        return scale * b, scale * p, b


class _Given:
    """A user's callable, which gets the weights if it has a parameter of that name."""

    long_name = "loss"

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.weighted = has_argument(function, "weights")

    def fit(self, targets: Tensor, shape: tuple[int, ...], weights: Tensor) -> Tensor:
        return targets.to(weights.dtype) if targets.is_floating_point() else targets

    def counted(self, targets: Tensor, weights: Tensor) -> Tensor:
        return weights

    def root(self, *_: Any) -> None:
        """Unknown: it may not be convex."""

    def __call__(
        self, outputs: Tensor, targets: Tensor, weights: Tensor, total: float | None = None
    ) -> Tensor:
        options = {"weights": weights} if self.weighted else {}
        try:
            value = self.function(outputs, targets, **options)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise type(error)(
                f"loss cannot take outputs of shape {tuple(outputs.shape)} and targets of shape "
                f"{tuple(targets.shape)}, as loss(outputs, targets): {error}"
            ) from error
        if not isinstance(value, Tensor):
            raise TypeError(
                f"loss returned a {type(value).__name__}, expected a scalar tensor: compute it by "
                "torch, and without .item()"
            )
        if value.ndim:
            raise ValueError(
                f"loss returned the shape {tuple(value.shape)}, expected a scalar: reduce it, for "
                "example by .mean()"
            )
        if not value.requires_grad and outputs.requires_grad:
            raise ValueError(
                f"loss returned {value.item():.6g}, which has no gradient: compute it from the "
                "outputs by torch, without detach, NumPy or argmax"
            )
        return value


Objective = _Mean | _Given
_LOSSES: dict[str, type[_Mean]] = {"mse": _SquaredError, "cross_entropy": _CrossEntropy}


def objective_of(loss: Loss, loss_mask: Any = None) -> Objective:
    """The objective that a user named or passed; it takes weights if there is a `loss_mask`."""
    if isinstance(loss, str) and loss in _LOSSES:
        return _LOSSES[loss]()
    if isinstance(loss, str) or not callable(loss):
        known = ", ".join(map(repr, _LOSSES))
        shown = f"={loss!r}" if loss is None or isinstance(loss, str) else f" is {described(loss)}"
        raise (ValueError if isinstance(loss, str) else TypeError)(
            f"loss{shown}: pass {known}, or a callable (outputs, targets) -> scalar tensor"
        )
    if isinstance(loss, type):
        raise TypeError(f"loss is the class {loss.__name__}: pass an instance, {loss.__name__}()")
    if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss):
        raise ValueError(
            f"loss is {described(loss)}, which takes the second dimension of the outputs (trial, "
            "time, class) for the classes: pass loss='cross_entropy', or a callable that calls it "
            "on outputs.movedim(-1, 1)"
        )
    given = _Given(loss)
    if loss_mask is not None and not given.weighted:
        raise ValueError(
            "loss_mask is given, but loss does not take it: give the callable a third parameter "
            "weights, the tensor (trial, time) to weight the steps by"
        )
    return given


def read_weights(
    loss_mask: Any,
    steps: Space,
    valid: Tensor | None,
    like: Tensor,
    reading: Reading = BY_TRIAL,
    name: str = "loss_mask",
) -> Tensor:
    """Weights (trial, time) with the dtype and device of `like`, zero where not `valid`."""
    weights = like.new_ones(steps.shape)
    valid = weights.bool() if valid is None else valid
    if loss_mask is not None:
        if isinstance(loss_mask, xr.DataArray):
            given = as_tensor(by_name(loss_mask, steps, name), name)
        else:
            given = reading.trial_first(as_tensor(loss_mask, name), name, *steps.shape)
        if tuple(given.shape) != steps.shape:
            raise ValueError(
                f"{name} has shape {tuple(given.shape)}, expected (trial, time) = {steps.shape}"
            )
        weights = given.to(weights)
        wrong = valid & ~((weights >= 0) & weights.isfinite())
        _refuse_at(wrong, weights, "expected weights of 0 or more, or booleans", name)
    return weights.masked_fill(~valid, 0)


def read_targets(
    targets: Any, steps: Space, weights: Tensor, reading: Reading = BY_TRIAL
) -> Tensor:
    """Targets on the device of `weights`, (trial, time, ...) where they have these dimensions.

    Arrays without labels are ordered as `reading` says. Floating targets get the dtype of
    `weights`; integers keep theirs.
    """
    if isinstance(targets, xr.DataArray):
        first = [d for d in steps.dims if d in targets.dims]
        dims = (*first, *(str(d) for d in targets.dims if d not in first))
        sizes = tuple(targets.sizes[d] for d in dims)
        wrong = [d for d in first if targets.sizes[d] != steps.sizes[d]]
        if wrong:
            raise ValueError(f"targets has sizes {dict(targets.sizes)}, expected {steps}")
        if len(first) < 2 <= len(sizes) and sizes[:2] == steps.shape:
            raise ValueError(
                f"targets has dims {targets.dims}, with the sizes of trial and time: name them so, "
                "or pass an array without names"
            )
        coords = {k: c for k, c in steps.coords.items() if set(c.dims) <= set(first)}
        wanted = as_tensor(by_name(targets, Space(dims, sizes, coords), "targets"), "targets")
    else:
        wanted = reading.trial_first(as_tensor(targets, "targets"), "targets", *steps.shape)
    dtype = weights.dtype
    if isinstance(targets, Tensor) and wanted.is_floating_point() and wanted.dtype != dtype:
        raise TypeError(f"targets is {wanted.dtype}, the outputs are {dtype}: convert it")
    return wanted.to(device=weights.device, dtype=dtype if wanted.is_floating_point() else None)


def _where(wrong: Tensor) -> str:
    position = wrong.nonzero()[0].tolist()
    names = ("trial", "time", "output", *(f"dim {axis}:" for axis in range(3, wrong.ndim)))
    return ", ".join(f"{name} {place}" for name, place in zip(names, position, strict=False))


def _refuse_at(wrong: Tensor, values: Tensor, expected: str, name: str = "targets") -> None:
    if wrong.any():
        value = values[tuple(wrong.nonzero()[0])].tolist()
        raise ValueError(f"{name} is {value} at {_where(wrong)} (from 0): {expected}")
