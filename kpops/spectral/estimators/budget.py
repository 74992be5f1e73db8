"""Estimates that cost products: budgets and tolerances, answers, and how they are given back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops.labels import Space
from kpops.operators.base import TrajectoryOperator
from kpops.scalars import check_real
from kpops.spectral import common
from kpops.spectral.estimators.probing import TraceRun
from kpops.spectral.estimators.probing_gram import GramTrace
from kpops.spectral.estimators.sketch import Act
from kpops.spectral.scaling import undone

_FIRST = 16
"""Products after which a tolerance is looked at for the first time."""


def check(method: str, methods: dict[str, int], num_matvecs: int | None, tol: float | None) -> int:
    """Refuse options that make no sense; the budget."""
    if method not in methods:
        raise ValueError(f"method={method!r}: choose one of {', '.join(map(repr, methods))}")
    if tol is not None:
        check_real("tol", tol)
        if not 0 < tol < 1:
            raise ValueError(f"tol={tol!r}: choose a fraction of the estimate, between 0 and 1")
    if num_matvecs is None:
        return 64 if tol is None else 1024
    whole = isinstance(num_matvecs, int | np.integer) and not isinstance(num_matvecs, bool)
    if not whole or num_matvecs < methods[method]:
        raise ValueError(
            f"num_matvecs={num_matvecs!r}: method={method!r} needs an int of at least "
            f"{methods[method]} for a standard error"
        )
    return int(num_matvecs)


class Answer(NamedTuple):
    """What a function of this module found, in multiples of `unit`, and how."""

    estimate: Any
    stderr: Any
    method: str
    chosen: str
    num_matvecs: float
    a_priori: float = math.nan
    converged: bool | None = None
    unit: float = 1.0


class Run(Protocol):
    """Estimates that spend a budget of products."""

    @property
    def num_matvecs(self) -> float:
        """Products so far."""

    def spend(self, budget: float) -> None:
        """Use products up to the budget."""

    def outcome(self) -> Any:
        """Estimate, standard error, method and why, from all products so far."""

    def unit(self, power: float) -> float:
        """What a power of the estimate is to be multiplied by."""


def estimated(
    run: Run, budget: int, tol: float | None, *, positive: bool, power: float = 1.0
) -> Answer:
    """Spend the budget, or as much of it as the tolerance needs, twice as much each time.

    With `power` it is that power of the estimate that is meant, and its standard error that of the
    first order. `positive` says whether a participation ratio has a meaning.
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
        # One round alone may be fooled by a spectrum that drops at its number of vectors.
        if done and last is not None and _agree(last, (estimate, stderr)):
            break
        last = (estimate, stderr) if done else None
    if tol is not None and not done:
        common.warn(
            f"the standard error is {_norm(stderr) / (_norm(estimate) or 1.0):.3g} of the estimate "
            f"after {run.num_matvecs:g} products, more than tol={tol:g}: raise num_matvecs, or tol"
        )
    a_priori = math.nan
    if positive and isinstance(run, TraceRun) and estimate > 0:
        spread = run.forms.participation()
        a_priori = power * math.sqrt(2 / (run.num_matvecs * spread)) if spread > 0 else math.nan
    converged = None if tol is None else done
    unit = run.unit(power)
    return Answer(estimate, stderr, method, why, run.num_matvecs, a_priori, converged, unit)


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


def gram_trace(root: TrajectoryOperator, cost: float, method: str, rng: Any) -> GramTrace:
    """Trace of ``R R*``, in the smaller of the two spaces."""
    forward, backward = rows_of(root.apply, root.domain), rows_of(root.apply_adjoint, root.codomain)
    if root.shape[0] < root.shape[1]:
        forward, backward = backward, forward
    return GramTrace(forward, backward, min(root.shape), cost, method, rng, empty(root))


def rows_of(act: Callable[[Tensor], Tensor], space: Space) -> Act:
    """An action on blocks (k, *dims) as one on rows (k, n)."""
    return lambda rows: act(rows.reshape(len(rows), *space.shape)).flatten(1)


def empty(op: TrajectoryOperator) -> Tensor:
    """A tensor of the dtype and on the device of an operator."""
    return torch.empty((), dtype=op.torch_dtype, device=op.device)


def provenance(
    op: TrajectoryOperator, what: str, answer: Answer, settings: dict[str, Any]
) -> dict[str, Any]:
    """Attributes of a result."""
    attrs = {
        **common.configuration(op, what=what, **settings),
        "method": answer.method,
        "chosen": answer.chosen,
        "num_matvecs": float(answer.num_matvecs),
        "a_priori": float(answer.a_priori),
    }
    if answer.converged is not None:
        attrs["converged"] = int(answer.converged)
    return attrs


def scalar_dataset(
    op: TrajectoryOperator, what: str, answer: Answer, long_name: str, settings: dict[str, Any]
) -> xr.Dataset:
    """An estimate and its standard error, in the dtype of the operator if it holds them."""
    estimate, stderr = undone([answer.estimate, answer.stderr], answer.unit, op, long_name)
    return xr.Dataset(
        {
            "estimate": ((), estimate, {"long_name": long_name, "units": "1"}),
            "stderr": ((), stderr, {"long_name": "standard error", "units": "1"}),
        },
        coords=common.identity(op),
        attrs=provenance(op, what, answer, settings),
    )
