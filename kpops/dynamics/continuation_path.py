"""Models along a path of their parameters or of their input, by one number mu."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kpops.dynamics.given import read_model, steady_input
from kpops.dynamics.search_points import Rows, rounding
from kpops.engines.differential import Differential
from kpops.engines.rowwise import Rowwise
from kpops.kinds import described
from kpops.models.recurrence import Recurrence

Values = Callable[[Tensor], Mapping[str, Tensor]]
"""Of mu: parameters by their names, and the constant input under the name ``input``."""


class Piece(NamedTuple):
    """Values that depend smoothly on mu, from `low` to `high`."""

    low: float
    high: float
    values: Values


class Local(NamedTuple):
    """F = f(h, mu) - h at a point, its derivatives by the point, and A."""

    F: Tensor
    slope: Tensor  # (unit, unit + 1), by the point
    A: Tensor
    floor: float  # of |F|, by rounding


class Path:
    """The maps f(h, mu) of a model on one piece of its path, in coordinates of one scale.

    A point is ``(h / sqrt(S), mu / width)``, flat, so that its length is the root mean square of
    the state beside the share of the whole span.

    Parameters
    ----------
    recurrence : Recurrence
        The model.
    x : Tensor
        Constant input (feature,), where the values hold none.
    piece : Piece
        How it depends on mu.
    width : float
        Width of the whole span.
    n_units : int
        S.
    """

    def __init__(
        self, recurrence: Recurrence, x: Tensor, piece: Piece, width: float, n_units: int
    ) -> None:
        self.recurrence, self.x, self.piece = recurrence, x, piece
        scale = x.new_full((n_units + 1,), n_units**0.5)
        scale[-1] = width
        self.scale = scale

    def point(self, h: Tensor, mu: float) -> Tensor:
        """Point of a state (unit,) and mu."""
        return torch.cat([h, h.new_tensor([mu])]) / self.scale

    def state(self, point: Tensor) -> Tensor:
        """State h of a point."""
        return (point * self.scale)[:-1]

    def mu(self, point: Tensor) -> float:
        """Parameter mu of a point."""
        return float(point[-1] * self.scale[-1])

    def step(self, h: Tensor, mu: Tensor) -> Tensor:
        """f(h, mu) of one state (unit,)."""
        parameters, x = self._given(mu)
        return self.recurrence.step(parameters, x[None], h[None])[0]

    def at(self, point: Tensor) -> Local:
        """F and its derivatives."""
        h, mu = self.state(point), point[-1] * self.scale[-1]
        parameters, x = self._given(mu)
        A = Rowwise(self._step_of(parameters), {}, x[None], h[None]).state_jacobians()[0]
        along = Differential(lambda m: self.step(h, m), mu)
        new, by_mu = along.value, along.jvp(torch.ones_like(mu))
        F, by_h = new - h, A - torch.eye(len(h)).to(A)
        floor = float(rounding(Rows(h[None], F[None], by_h[None])))
        return Local(F, torch.cat([by_h, by_mu[:, None]], 1) * self.scale, A, floor)

    def _step_of(self, parameters: dict[str, Tensor]) -> Any:
        return lambda _, x, h: self.recurrence.step(parameters, x, h)

    def _given(self, mu: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        values = dict(self.piece.values(mu))
        x = values.pop("input", self.x)
        return values, steady_input(self.recurrence, x)


def read_path(
    along: Any, model: Any, recurrence: Recurrence, x: Tensor, span: Any, dtype: torch.dtype | None
) -> tuple[list[Piece], float, float]:
    """Pieces of a path by rising mu, where it begins and where it ends."""
    if isinstance(along, str):
        pieces = [_by_name(along, recurrence, x)]
    elif callable(along) and not isinstance(along, nn.Module | type):
        pieces = [Piece(-math.inf, math.inf, along)]
    elif isinstance(along, Iterable) and not isinstance(along, Mapping | Tensor | np.ndarray):
        pieces = _between_checkpoints(list(along), model, recurrence, dtype, x)
    else:
        raise TypeError(
            f"along is {described(along)}: pass the name of a parameter that is one number; a "
            "function from mu to a dict of parameters, such as lambda g: {'weight_hh_l0': g * W}; "
            "or checkpoints (step, state_dict)"
        )
    low, high = pieces[0].low, pieces[-1].high
    first, last = _read_span(span, low, high)
    inside = (min(first, last), max(first, last))
    cut = [Piece(max(p.low, inside[0]), min(p.high, inside[1]), p.values) for p in pieces]
    cut = [p for p in cut if p.low < p.high]
    for piece in cut:
        for end in (piece.low, piece.high):
            _check_values(piece.values, x.new_tensor(end), recurrence, x, end)
    return cut, first, last


def _read_span(span: Any, low: float, high: float) -> tuple[float, float]:
    if span is None:
        if math.isinf(low):
            raise ValueError(
                "span is None: pass (first, last), the value of the parameter at which the points "
                "are fixed and the one to follow them to"
            )
        return low, high
    values = np.asarray(span)
    if values.shape != (2,) or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise ValueError(f"span={span!r}: pass two finite numbers, (first, last)")
    first, last = map(float, values)
    if first == last or not (low <= first <= high and low <= last <= high):
        where = "" if math.isinf(low) else f" from {low:g} to {high:g}, as the checkpoints"
        raise ValueError(f"span={span!r}: pass two different numbers{where}")
    return first, last


def _by_name(name: str, recurrence: Recurrence, x: Tensor) -> Piece:
    parameters = recurrence.parameter_dict()
    if name == "input" and len(x) == 1:
        return Piece(-math.inf, math.inf, lambda mu: {"input": mu.reshape(1)})
    if name not in parameters and name != "input":
        known = [n for n, p in parameters.items() if p.numel() == 1]
        choices = f"choose from {known}, or " if known else ""
        raise ValueError(
            f"along={name!r} is no parameter of {type(recurrence.module).__name__}: {choices}pass "
            "a function from mu to a dict of parameters"
        )
    shape = x.shape if name == "input" else parameters[name].shape
    if math.prod(shape) != 1:
        raise ValueError(
            f"along={name!r} has shape {tuple(shape)} and is not one number: pass a function of "
            f"one, such as lambda mu: {{{name!r}: mu * direction}}"
        )
    return Piece(-math.inf, math.inf, lambda mu: {name: mu.reshape(shape)})


def _between_checkpoints(
    given: list[Any], model: Any, recurrence: Recurrence, dtype: torch.dtype | None, x: Tensor
) -> list[Piece]:
    """Straight lines from the weights of each checkpoint to those of the next."""
    try:
        steps = [float(step) for step, _ in given]
        states = [dict(state) for _, state in given]
    except (TypeError, ValueError):
        raise TypeError(
            "along is no series of checkpoints: pass pairs (step, state_dict), such as those of "
            "kpops.training.checkpoints(folder)"
        ) from None
    if len(steps) < 2 or any(b <= a for a, b in pairwise(steps)):
        raise ValueError(f"along has the steps {steps}: pass two checkpoints or more, in order")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {described(model)}: pass the module whose checkpoints these are")
    weights = []
    for state in states:
        loaded = copy.deepcopy(model)
        loaded.load_state_dict(state)
        read = read_model(loaded, dtype, x.device)
        _refuse_other_buffers(recurrence, read)
        weights.append({name: value.detach() for name, value in read.parameter_dict().items()})
    ends = zip(pairwise(steps), pairwise(weights), strict=True)
    return [Piece(a, b, _Line(a, b, u, v)) for (a, b), (u, v) in ends]


def _refuse_other_buffers(recurrence: Recurrence, loaded: Recurrence) -> None:
    """Refuse a checkpoint with other buffers than the model, which are on no path."""
    own = dict(recurrence.module.named_buffers())
    for name, value in loaded.module.named_buffers():
        if not torch.equal(value, own[name].to(value)):
            raise ValueError(
                f"the buffer {name!r} differs between the model and a checkpoint, and only "
                "parameters are moved: load the checkpoint into the model, or pass a function from "
                "mu to parameters"
            )


class _Line:
    """Weights on the straight line between two, as a function of the step."""

    def __init__(
        self, low: float, high: float, start: dict[str, Tensor], end: dict[str, Tensor]
    ) -> None:
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, mu: Tensor) -> dict[str, Tensor]:
        share = (mu - self.low) / (self.high - self.low)
        return {name: w + share * (self.end[name] - w) for name, w in self.start.items()}


def _check_values(
    values: Values, mu: Tensor, recurrence: Recurrence, x: Tensor, end: float
) -> None:
    """Refuse values that are no parameters of the model, or do not fit them."""
    given = values(mu)
    if not isinstance(given, Mapping) or not given:
        raise TypeError(
            f"along({end:g}) is {described(given)}: return a dict of tensors by the names of "
            f"parameters, of {list(recurrence.parameter_dict())}, or 'input'"
        )
    expected: dict[str, Tensor] = {**recurrence.parameter_dict(), "input": x}
    for name, value in given.items():
        if name not in expected:
            raise ValueError(f"along({end:g}) has {name!r}: choose from {list(expected)}")
        like = expected[name]
        if not isinstance(value, Tensor) or value.shape != like.shape or value.dtype != like.dtype:
            what = described(value)
            if isinstance(value, Tensor):
                what = f"of shape {tuple(value.shape)} and {value.dtype}"
            raise ValueError(
                f"along({end:g})[{name!r}] is {what}: return a tensor of shape "
                f"{tuple(like.shape)} and {like.dtype}"
            )
        if not value.isfinite().all():
            raise ValueError(f"along({end:g})[{name!r}] is not finite: choose another span")
