"""The change of the trajectories over training, as the sum of its linearised steps."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from kpops.learning.analysis import checked_steps, pairs_of
from kpops.learning.checkpoints import checkpoints as read_checkpoints
from kpops.learning.gradient_flow import gradient_flow
from kpops.learning.learning_rule import learning_rule
from kpops.learning.losses import Loss
from kpops.learning.over_training import over_training
from kpops.learning.required import require_linearization
from kpops.linearization import Linearization
from kpops.linearizing import linearize
from kpops.operators import TrajectoryOperator
from kpops.scalars import check_real


def telescope(
    model: nn.Module,
    checkpoints: str | os.PathLike[str] | Iterable[tuple[int, Mapping[str, Any]]],
    inputs: Any,
    targets: Any = None,
    *,
    learning_rate: float | None = None,
    rule: str | Callable[[Linearization], TrajectoryOperator] = "gradient descent",
    loss: Loss = "mse",
    loss_mask: Any = None,
    linearizer: Callable[..., Linearization] = linearize,
    options: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Add up the linearised changes of the trajectories over training, beside the true change.

    From one checkpoint to the next, the trajectories change by about ``P J dtheta``, with the
    operators of the first and the step dtheta of the parameters between them, whatever the
    optimizer. The sum over training is the telescoping approximation of Jeffares, Curth and van der
    Schaar (2024), Deep Learning Through A Telescoping Lens. Its error says how far the operators
    along the way explain what was learned.

    Parameters
    ----------
    model, checkpoints, inputs, linearizer, options, progress
        As for :func:`kpops.over_training`; the steps of the checkpoints must increase.
    targets : optional
        As for :func:`kpops.gradient_flow`, with `loss` and `loss_mask`. Then a step between
        checkpoints is not that of the parameters, but ``-learning_rate R Err`` for each iteration,
        with R of a learning rule. Needs a learning rate.
    learning_rate : float, optional
        eta of the rule.
    rule : str or callable
        Name of a rule without options for :func:`kpops.learning_rule`, or a function that makes R
        of a linearization: ``lambda lin: kpops.learning_rule(lin, "truncated bptt", steps=5)``.

    Returns
    -------
    Dataset
        With the dimension ``step``, since the first checkpoint: ``state_change`` (step, trial,
        time, unit), the true change of the states; ``telescoped_state_change``, the sum of the
        linearised ones; ``state_relative_error`` (step), the norm of their difference over that of
        the true change; ``state_step_relative_error`` (step), the same of the change since the
        checkpoint before. With a readout and without targets, also ``output_change``,
        ``telescoped_output_change``, ``output_relative_error`` and ``output_step_relative_error``,
        which include the steps of the readout's own parameters that learn. Errors are NaN where
        nothing has changed, and at the first step.

    Raises
    ------
    ValueError
        If targets, learning rate and rule do not fit each other, or as for
        :func:`kpops.over_training`.
    TypeError
        If `learning_rate` is no number or `rule` neither a string nor a function.
    MeasureError
        If the steps do not increase, or as for :func:`kpops.over_training`.

    Notes
    -----
    The steps are those of the parameters that learn in the linearization: what else changes between
    checkpoints, such as buffers, is in the true change alone. Err is the error on `inputs`, so a
    sum by a rule is that of training on them, by full batches. The result holds two trajectories of
    states, and two of outputs, for each checkpoint.

    Examples
    --------
    >>> import copy, torch, kpops
    >>> _ = torch.manual_seed(0)
    >>> network = kpops.Network(torch.nn.GRU(3, 8), torch.nn.Linear(8, 2))
    >>> inputs, optimizer = torch.randn(5, 10, 3), torch.optim.Adam(network.parameters(), 1e-3)
    >>> checkpoints = [(0, copy.deepcopy(network.state_dict()))]
    >>> for step in range(1, 6):
    ...     optimizer.zero_grad()
    ...     network(inputs).square().mean().backward()
    ...     optimizer.step()
    ...     checkpoints.append((step, copy.deepcopy(network.state_dict())))
    >>> told = kpops.telescope(network, checkpoints, inputs)
    >>> bool(told.state_relative_error[-1] < 0.05)
    True
    """
    if (targets is None) != (learning_rate is None):
        raise ValueError(
            "targets and learning_rate go together: pass both for the steps of a rule, or neither "
            "for those of the parameters"
        )
    if not (isinstance(rule, str) or callable(rule)):
        raise TypeError(f"rule={rule!r}: pass the name of a rule, or a function of a linearization")
    if targets is None and rule != "gradient descent":
        raise ValueError("rule is for the steps of a rule: pass targets and learning_rate, too")
    if learning_rate is not None:
        check_real("learning_rate", learning_rate)

    def by_rule(lin: Linearization, iterations: int, _: Tensor) -> np.ndarray:
        flow = gradient_flow(lin, targets, loss, loss_mask=loss_mask)
        moves = learning_rule(lin, rule) if isinstance(rule, str) else rule(lin)
        error = flow.error if moves.domain == lin.space else flow.output_error
        return -float(learning_rate or 0) * iterations * (moves @ error.values)

    if isinstance(checkpoints, str | os.PathLike):
        checkpoints = read_checkpoints(checkpoints)
    checked_steps(checkpoints)
    steps: list[int] = []
    told = over_training(
        model,
        _increasing(checkpoints, steps),
        inputs,
        _Changes(steps, None if targets is None else by_rule),
        linearizer=linearizer,
        options=options,
        progress=progress,
    )
    configuration = {
        "learning_rate": learning_rate,
        "rule": None if targets is None else rule if isinstance(rule, str) else "callable",
    }
    return told.assign_attrs(configuration=json.dumps(configuration))


def _increasing(checkpoints: Any, steps: list[int]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The checkpoints, whose steps so far are noted in `steps`."""
    for step, state in pairs_of(checkpoints):
        if steps and step <= steps[-1]:
            raise ValueError(f"step {step} comes after step {steps[-1]}: sort the checkpoints")
        steps.append(step)
        yield step, state


class _Changes:
    """Changes since the first checkpoint, a measure that remembers the linearization before."""

    def __init__(self, steps: list[int], by_rule: Callable[..., np.ndarray] | None) -> None:
        self.steps = steps
        self.by_rule = by_rule
        self.before: Linearization | None = None
        self.first: dict[str, np.ndarray] = {}

    def __call__(self, lin: Linearization, previous: xr.Dataset | None) -> xr.Dataset:
        require_linearization(lin)
        values = {"state": lin.states}
        if lin.readout is not None and self.by_rule is None:
            values["output"] = lin.outputs
        arrays = {kind: array.values for kind, array in values.items()}
        result = {}
        if previous is None or self.before is None:
            self.first = arrays
            linear = {kind: np.zeros_like(array) for kind, array in arrays.items()}
        else:
            linear = self._linear(self.before, lin)
        for kind, array in values.items():
            change, summed = array - self.first[kind], linear[kind]
            gap = linear[kind]
            if previous is not None:
                gap = change.values - previous[f"{kind}_change"].values
                summed = summed + previous[f"telescoped_{kind}_change"].values
            text = f"change of the {kind}s since the first checkpoint"
            result[f"{kind}_change"] = change.rename(None).assign_attrs(long_name=text)
            result[f"telescoped_{kind}_change"] = change.copy(data=summed).assign_attrs(
                long_name=f"{text}, linearised"
            )
            errors = {"": (summed, change.values), "step_": (linear[kind], gap)}
            for part, (approximate, true) in errors.items():
                text = f"relative error of the linearised {kind} change"
                text += ", since the checkpoint before" if part else ""
                result[f"{kind}_{part}relative_error"] = xr.DataArray(
                    _relative(approximate, true), attrs={"long_name": text, "units": "1"}
                )
        self.before = lin
        return xr.Dataset(result, attrs=lin.attrs)

    def _linear(self, before: Linearization, lin: Linearization) -> dict[str, np.ndarray]:
        step = _flat(lin.parameters) - _flat(before.parameters)
        if self.by_rule is not None:
            return {"state": self.by_rule(before, self.steps[-1] - self.steps[-2], step)}
        moved = before.sensitivity.apply(step[None])
        changes = {"state": moved}
        if lin.readout is not None:
            changes["output"] = before.C.apply(moved)
            if before.J_C is not None:
                own = _flat(lin.readout_parameters) - _flat(before.readout_parameters)
                changes["output"] = changes["output"] + before.J_C.apply(own[None])
        return {kind: change[0].cpu().numpy() for kind, change in changes.items()}


def _flat(parameters: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([p.flatten() for p in parameters.values()])


def _relative(approximate: np.ndarray, true: np.ndarray) -> Any:
    size = np.linalg.norm(true)
    return true.dtype.type(np.linalg.norm(approximate - true) / size if size else np.nan)
