"""Estimates that spend a budget of matvecs until a tolerance is met."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from kpops import work
from kpops.linalg.probes import Act
from kpops.operators.base import TrajectoryOperator

_FIRST = 16
"""Matvecs after which a tolerance is tested for the first time."""


class Estimate(NamedTuple):
    """An estimate in multiples of `unit`, its standard error, and how it was found."""

    estimate: Any
    stderr: Any
    method: str
    chosen: str
    num_matvecs: float
    a_priori: float = math.nan
    converged: bool | None = None
    unit: float = 1.0


@runtime_checkable
class Run(Protocol):
    """Estimates that spend a budget of matvecs."""

    @property
    def num_matvecs(self) -> float:
        """Matvecs so far."""

    def spend(self, budget: float) -> None:
        """Spend matvecs up to the budget."""

    def outcome(self) -> Any:
        """Estimate, standard error, method and why, from all matvecs so far."""

    def unit(self, power: float) -> float:
        """Scale of that power of the estimate."""

    def participation(self) -> float:
        """Participation ratio of a positive operator; NaN if nothing is known."""


def estimated(
    run: Run, budget: int, tol: float | None, *, positive: bool, power: float = 1.0
) -> Estimate:
    """Spend the budget, or as much of it as the tolerance needs, twice as much each time.

    The result is that `power` of the estimate, with its standard error to first order. `positive`
    says whether a participation ratio is defined.
    """
    spent, last = 0, None
    while True:
        spent = budget if tol is None else min(budget, 2 * spent or _FIRST)
        before = run.num_matvecs
        run.spend(spent)
        estimate, stderr, method, why = run.outcome()
        estimate, stderr = _raised(estimate, stderr, power)
        done = _norm(stderr) <= (tol or 0) * _norm(estimate)
        # When nothing more is used, nothing more can be learned: the estimate is exact.
        if tol is None or spent == budget or run.num_matvecs == before:
            break
        # A spectrum that drops at the number of vectors of a round may fool that round.
        if done and last is not None and _agree(last, (estimate, stderr)):
            break
        last = (estimate, stderr) if done else None
    if tol is not None and not done:
        work.warn_unconverged(
            f"the standard error is {_norm(stderr) / (_norm(estimate) or 1.0):.3g} of the estimate "
            f"after {run.num_matvecs:g} matvecs, more than tol={tol:g}: raise num_matvecs, or tol"
        )
    a_priori = math.nan
    if positive and estimate > 0:
        spread = run.participation()
        a_priori = power * math.sqrt(2 / (run.num_matvecs * spread)) if spread > 0 else math.nan
    converged = None if tol is None else done
    unit = run.unit(power)
    return Estimate(estimate, stderr, method, why, run.num_matvecs, a_priori, converged, unit)


_Value = TypeVar("_Value", float, Tensor)


def _raised(estimate: _Value, stderr: _Value, power: float) -> tuple[_Value, _Value]:
    if power == 1:
        return estimate, stderr
    if not estimate > 0:
        return 0.0 * estimate, 0.0 * stderr
    root = estimate**power
    return root, power * root * (stderr / estimate)


def _agree(first: tuple[Any, Any], second: tuple[Any, Any]) -> bool:
    """Whether two estimates differ by at most twice their combined standard error."""
    return _norm(first[0] - second[0]) <= 2 * math.hypot(_norm(first[1]), _norm(second[1]))


def _norm(value: float | Tensor) -> float:
    return float(value.norm()) if isinstance(value, Tensor) else abs(value)


def rows_of(act: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Act:
    """An action on blocks as one on rows."""
    return lambda rows: act(rows.reshape(len(rows), *shape)).flatten(1)


def empty(op: TrajectoryOperator) -> Tensor:
    """A tensor of the dtype and on the device of an operator."""
    return torch.empty((), dtype=op.torch_dtype, device=op.device)
