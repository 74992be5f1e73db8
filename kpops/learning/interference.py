"""Interference between tasks: what learning one does to the trajectories of another."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops import work
from kpops.arrays import as_tensor, numpy_dtype, to_numpy
from kpops.kinds import described
from kpops.learning import task_alignment as tasks
from kpops.learning.gradient_flow import gradient_flow
from kpops.learning.losses import Loss
from kpops.learning.required import labelled, refuse_beside
from kpops.linalg.rounding import noise_floor
from kpops.linearization import Linearization
from kpops.maturity import experimental
from kpops.operators import ParameterOperator, TrajectoryOperator
from kpops.precision import in_full_precision
from kpops.scalars import check_real
from kpops.scalars import generator as random_generator

PAIR = ("task", "task_in")

Statistic = Callable[[tasks.Groups], Tensor]  # a matrix (task, task), for any groups

_TEXTS = {
    "trace_alignment": "trace alignment of operators",
    "gauss_newton_alignment": "Gauss-Newton alignment of operators",
    "kernel_alignment": "kernel alignment of operators",
    "state_cosine": "cosine of states",
    "state_tuning_cosine": "cosine of the tuning of states",
    "gradient_cosine": "cosine of gradients",
    "gradient_tuning_cosine": "cosine of the tuning of gradients",
}


@in_full_precision
@torch.inference_mode(False)
@torch.no_grad()
@work.shown
def interference(
    lin: Linearization,
    by: Any = "task",
    *,
    targets: Any = None,
    loss: Loss = "mse",
    loss_mask: Any = None,
    condition: Any = None,
    num_matvecs: int = 16,
    n_permutations: int = 0,
    rng: int | np.random.Generator | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Compare tasks: their states, their operators and what their gradients do to each other.

    Parameters
    ----------
    lin : Linearization
        About the trials of all tasks together.
    by : str or array_like
        Coordinate of trials that names the task, or a label for each trial.
    targets, loss, loss_mask
        As for :func:`kpops.gradient_flow`. Without targets, whatever needs an error is left out. A
        callable loss should be a sum or mean over trials.
    condition : str or array_like, optional
        Coordinate of trials (or a label for each) that matches trials of different tasks, such as
        ``"angle"``. Default: the k-th trials of tasks match if all tasks have equally many.
        Comparisons of trial with trial are left out if trials do not match.
    num_matvecs : int
        Random vectors for the alignments of operators, at least 2; each costs two matvecs with P J
        and two with its adjoint. 0 leaves these alignments out.
    n_permutations : int
        Number of random exchanges of trials between tasks, for the null distributions.
    rng : int, Generator or None
        Source of the random vectors and of the permutations, in this order.
    progress : bool
        Show a bar of the matvecs.

    Returns
    -------
    Dataset
        Dimensions ``task`` (i, which changes) and ``task_in`` (j, which is learned). Steps and
        changes are per learning rate; cosines with zero vectors are NaN.

        If trials match, ``state_cosine``, ``state_cka`` and ``state_tuning_cosine``.

        Whatever the targets, ``trace_alignment``, ``gauss_newton_alignment`` and
        ``kernel_alignment`` of the operators, with ``..._stderr``, which is zero where the
        alignment is exact: where the parameters, or the trajectories of a task, are at most 1024
        numbers.

        With targets: ``loss`` () of all tasks; ``gradient_cosine``, ``gradient_tuning_cosine`` and
        ``gradient_norm`` (task) of the gradients by the recurrent parameters; of a gradient step on
        task j alone, the length ``state_change_norm`` of the change of task i's trajectories, its
        cosine ``state_change_cosine`` with the change by a step on task i, and the change
        ``loss_change`` of the loss of task i, also as ``loss_change_by_parameter`` (parameter,
        task, task_in).

        With permutations, for each of the four cosines of states and gradients: ``..._null_mean``
        and ``..._null_std`` over them, and the probability of a cosine as low, ``..._p_lower``, or
        as high, ``..._p_upper``.

    Raises
    ------
    ValueError
        If `by` makes fewer than two groups, the conditions of the tasks differ, a number is out
        of range, or :func:`kpops.gradient_flow` refuses `targets`, `loss` or `loss_mask`.
    TypeError
        If `lin` is no linearization.
    MemoryError
        If the gradients of all trials do not fit: use fewer trials.

    Notes
    -----
    Let X_i be the states of task i less their mean over its trials and steps, Err_i the rows of
    Err = dL/dh of its trials, and ``D_i = P_i J_i`` the derivative of its states by the parameters.
    P does not couple trials. So errors of task j reach the states of task i only through the block
    ``Phi_ij = P_i K_ij P_j* = D_i D_j*`` of the flow operator
    (:func:`kpops.interference_operator`). Then:

    =========================== ==================================================================
    ``state_cosine``            ``<X_i, X_j> / (|X_i| |X_j|)``
    ``state_cka``               ``|X_i^T X_j|^2 / (|X_i^T X_i| |X_j^T X_j|)``, rows are (trial,
                                time): linear CKA, blind to rotations of the state space
    ``state_tuning_cosine``     as ``state_cosine``, of states less their mean over trials at each
                                step: what differs between the task's conditions
    ``trace_alignment``         ``tr Phi_ij / sqrt(tr Phi_ii tr Phi_jj)``: cosine of D_i and D_j
    ``gauss_newton_alignment``  ``|Phi_ij|^2 / (|Phi_ii| |Phi_jj|)``: cosine of D_i* D_i and
                                D_j* D_j, the parameters that matter to each task; trials need
                                not match
    ``kernel_alignment``        cosine of Phi_ii and Phi_jj, both centred over trials: of tangent
                                kernels, with trials as examples
    ``gradient_cosine``         ``<g_i, g_j> / (|g_i| |g_j|)`` with the gradients
                                ``g_i = D_i* Err_i``, so that ``<g_i, g_j> = <Err_i, Phi_ij Err_j>``
    ``gradient_tuning_cosine``  of the gradients of single trials less their mean over the task's,
                                matching ones with each other
    ``loss_change``             ``<Err_i, dh_ij> = -<g_i, g_j>`` with the state changes
                                ``dh_ij = -Phi_ij Err_j``
    =========================== ==================================================================

    Norms are Frobenius norms. Error and loss of a task are its share of the whole: ``loss_change``
    summed over i and j is minus the squared gradient of the whole loss, and
    ``loss_change_by_parameter`` summed over parameters is ``loss_change`` (Theorem 1 of the paper).

    The KPFlow paper (arXiv 2507.06381) reads from ``P_i K_ij P_j*`` how far the objectives of
    sub-tasks agree: ``trace_alignment`` from the block alone, ``gradient_cosine`` with the errors
    of both tasks, which alone distinguish tasks with the same inputs. What all trials share, such
    as the fixation, may hide the rest; tuning removes it. CKA: Kornblith, Norouzi, Lee and Hinton,
    ICML 2019; centred kernel alignment: Cortes, Mohri and Rostamizadeh, JMLR 13 (2012).

    Permutations exchange the tasks of matching trials, or of all trials if they do not match.
    ``p = (1 + k) / (1 + n_permutations)``, where k of them are as extreme (Phipson and Smyth
    2010), is valid on its side; for both sides, double the smaller. The null hypothesis is that
    all tasks are exchangeable.

    Steps are those of ``measure="sum"`` and of the recurrent parameters that learn.

    Examples
    --------
    >>> import torch, kpops
    >>> _ = torch.manual_seed(0)
    >>> network = kpops.Network(torch.nn.GRU(3, 8), torch.nn.Linear(8, 2))
    >>> lin = kpops.linearize(network, torch.randn(6, 10, 3))
    >>> tasks = ["Pro", "Pro", "Pro", "Anti", "Anti", "Anti"]
    >>> result = kpops.interference(lin, tasks, targets=torch.randn(6, 10, 2))
    >>> result.loss_change.sel(task="Pro", task_in="Anti").shape
    ()
    >>> bool((abs(result.gradient_cosine) <= 1).all())
    True
    """
    if num_matvecs < 0 or num_matvecs == 1:
        raise ValueError(f"num_matvecs={num_matvecs}: pass 0, or at least 2 for a standard error")
    if n_permutations < 0:
        raise ValueError(f"n_permutations={n_permutations}: pass 0 or more")
    groups = tasks.group_trials(lin, by, condition)
    generator = random_generator(rng)
    variables: dict[str, Any] = {}
    coords = {
        "task": labelled("task", groups.names, "task that is changed"),
        "task_in": labelled("task_in", groups.names, "task that is learned"),
    }

    def add(name: str, values: Tensor, long_name: str, dims: tuple[str, ...] = PAIR) -> None:
        array = to_numpy(values).astype(numpy_dtype(lin.dtype))
        variables[name] = labelled(dims, array, long_name)

    if num_matvecs:
        found = tasks.operator_alignments(lin, groups, num_matvecs, generator)
        for name, (estimate, stderr) in found.items():
            add(name, estimate, _TEXTS[name])
            add(f"{name}_stderr", stderr, "standard error")
    statistics: dict[str, Statistic] = {}
    if groups.matched:
        add("state_cka", tasks.state_cka(tasks.centred_states(lin, groups)), "linear CKA of states")
        states = lin.trajectory.restrict(lin.trajectory.states[None])[0]
        statistics["state_cosine"] = partial(tasks.state_cosine, lin)
        statistics["state_tuning_cosine"] = tasks.tuning(states)
    if targets is not None:
        flow = gradient_flow(lin, targets, loss, loss_mask=loss_mask)
        refuse_beside(lin)
        variables["loss"] = flow.loss
        rows = tasks.trial_gradients(lin, as_tensor(flow.adjoint.values, "adjoint").to(lin.device))
        _add_effects(add, lin, groups, rows)
        parameters = np.array(list(lin.parameters), dtype=object)
        coords["parameter"] = labelled("parameter", parameters, "parameter")
        statistics["gradient_cosine"] = partial(tasks.of_sums, tasks.gram(rows))
        if groups.matched:
            statistics["gradient_tuning_cosine"] = tasks.tuning(rows)
    for name, statistic in statistics.items():
        observed = statistic(groups)
        add(name, observed, _TEXTS[name])
        if n_permutations:
            shuffles = (groups.shuffled(generator) for _ in range(n_permutations))
            null = torch.stack([statistic(shuffled) for shuffled in shuffles])
            text, slack = _TEXTS[name], noise_floor(lin.dtype)  # which decides ties
            add(f"{name}_null_mean", null.mean(0), f"{text}, mean of permutations")
            add(f"{name}_null_std", null.std(0, correction=0), f"{text}, deviation of permutations")
            tails = {"lower": null <= observed + slack, "upper": null >= observed - slack}
            for tail, extreme in tails.items():
                p = (1 + extreme.sum(0).double()) / (1 + n_permutations)
                p = p.masked_fill(observed.isnan(), torch.nan)
                add(f"{name}_p_{tail}", p, f"{text}, p-value of the {tail} tail")
    configuration = {
        "by": by if isinstance(by, str) else "given",
        "condition": condition if condition is None or isinstance(condition, str) else "given",
        "loss": loss if isinstance(loss, str) else "callable",
        "loss_mask": None if loss_mask is None else "given",
        "num_matvecs": num_matvecs,
        "n_permutations": n_permutations,
    }
    return xr.Dataset(variables, coords, {**lin.attrs, "configuration": json.dumps(configuration)})


@experimental
@in_full_precision
def interference_operator(
    lin: Linearization, task: Any, task_in: Any, by: Any = "task"
) -> TrajectoryOperator:
    """P_i K_ij P_j*: how the errors of one task move the trajectories of another.

    Parameters
    ----------
    lin : Linearization
        About the trials of all tasks together.
    task, task_in : label
        The task i whose trajectories change, and the task j that is learned.
    by : str or array_like
        Coordinate of trials that names the task, or a label for each trial.

    Returns
    -------
    TrajectoryOperator
        From the trajectories of task j to those of task i; positive if i = j. Nothing is computed
        for other trials. A gradient step on the error of task j alone moves task i by minus the
        learning rate times this operator on that error (for ``measure="sum"``).

    Raises
    ------
    ValueError
        If there is no such task, or `by` makes fewer than two groups.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(torch.nn.GRU(3, 4, batch_first=True), torch.zeros(5, 6, 3))
    >>> kpops.interference_operator(lin, "Pro", "Anti", by=["Pro", "Pro", "Anti", "Anti", "Anti"])
    <P_i K_ij P_j* (trial: 3, time: 6, unit: 4) -> (trial: 2, time: 6, unit: 4), float32 on cpu>
    """
    groups = tasks.group_trials(lin, by)
    i, j = groups.position(task), groups.position(task_in)
    scale = 1.0 if lin.measure == "sum" else 1.0 / lin.trajectory.n_valid  # of all tasks' steps
    to = tasks.of_trials(lin, groups.members[i])
    if i == j:
        scale /= lin.forcing_step**2  # which J has already
        K = ParameterOperator(to.engine, to.space, tuple(to.parameters), scale)
        block = to.P @ K @ to.P.H
        block.symbol = "P_i K_ii P_i*"
    else:
        of = tasks.of_trials(lin, groups.members[j])
        block = to.P @ (scale * (to.J @ of.J.H)) @ of.P.H
        block.symbol = "P_i K_ij P_j*"
    block.attrs = lin.attrs
    return block


def accumulate_interference(result: xr.Dataset, learning_rate: float = 1.0) -> xr.Dataset:
    """Add up, over training, what learning each task did to the loss of the others.

    Parameters
    ----------
    result : Dataset
        ``loss_change`` (step, task, task_in), as :func:`kpops.over_training` collects it from
        :func:`kpops.interference`.
    learning_rate : float
        Of the gradient descent, with one update per step.

    Returns
    -------
    Dataset
        ``accumulated_loss_change`` (step, task, task_in): learning rate times the integral of
        ``loss_change`` over the steps so far; ``accumulated_from_others`` (step, task): its sum
        over all other tasks, positive where they did harm.

    Raises
    ------
    ValueError
        If there is no ``loss_change`` with these dimensions, or steps do not increase.
    TypeError
        If `result` is no Dataset.

    Notes
    -----
    By the trapezoidal rule between checkpoints. The sum over all tasks is the change of the whole
    loss by plain gradient descent, up to errors of the order of the learning rate and of the
    squared distance of checkpoints. With another optimiser, the result is what gradient flow would
    have done at the weights that training passed through.

    Examples
    --------
    >>> import numpy as np, xarray as xr, kpops
    >>> pairs = {"step": [0, 10], "task": ["Pro", "Anti"], "task_in": ["Pro", "Anti"]}
    >>> change = xr.DataArray([[[-2.0, 1], [1, -2]], [[-1.0, 0], [0, -1]]], pairs, list(pairs))
    >>> total = kpops.accumulate_interference(xr.Dataset({"loss_change": change}), 0.1)
    >>> total.accumulated_from_others.sel(task="Pro").values
    array([0. , 0.5])
    """
    remedy = "pass what kpops.over_training makes of kpops.interference with targets"
    if not isinstance(result, xr.Dataset):
        raise TypeError(f"result is {described(result)}: {remedy}")
    check_real("learning_rate", learning_rate)
    if "loss_change" not in result or {"step", *PAIR} - set(result.loss_change.dims):
        raise ValueError(
            f"result has the variables {sorted(map(str, result))}, expected loss_change with the "
            f"dims step, task and task_in: {remedy}"
        )
    change = result.loss_change
    names = [change[dim].values.tolist() for dim in ("task", "task_in")]
    if names[0] != names[1]:
        raise ValueError(f"task is {names[0]} and task_in {names[1]}: give both the same labels")
    if (np.diff(change["step"]) <= 0).any():
        raise ValueError("the steps of result do not increase: sort them by result.sortby('step')")
    total = (learning_rate * change.cumulative_integrate("step")).astype(change.dtype)
    others = total.where(change["task"] != change["task_in"], 0).sum("task_in", skipna=False)
    text = "accumulated change of the loss"
    of_others = f"{text} by other tasks"
    return xr.Dataset(
        {
            "accumulated_loss_change": total.assign_attrs(long_name=text, units="1"),
            "accumulated_from_others": others.assign_attrs(long_name=of_others, units="1"),
        },
        attrs={**result.attrs, "learning_rate": float(learning_rate)},
    )


def _add_effects(
    add: Callable[..., None], lin: Linearization, groups: tasks.Groups, rows: Tensor
) -> None:
    """Effects of steps along the tasks' gradients ``g_i``, from the gradients of trials."""
    members = [torch.as_tensor(m, device=lin.device) for m in groups.members]
    gradients = torch.stack([rows[index].sum(0) for index in members])
    sizes = [parameter.numel() for parameter in lin.parameters.values()]
    by_parameter = torch.stack([tasks.gram(part) for part in gradients.split(sizes, dim=1)])
    inner = by_parameter.sum(0)
    add("gradient_norm", inner.diagonal().sqrt(), "length of the gradient", ("task",))
    text = "loss change -<g_i, g_j> per learning rate"
    add("loss_change", -inner, text)
    dims = ("parameter", *PAIR)
    add("loss_change_by_parameter", -by_parameter, f"{text}, by the parameter", dims)

    changes = lin.sensitivity.apply(-gradients)  # (task_in, trial, time, unit)
    of_tasks = torch.stack([tasks.gram(changes[:, index]) for index in members])
    norms = of_tasks.diagonal(dim1=1, dim2=2).sqrt()
    add("state_change_norm", norms, "length of the state change per learning rate")
    cosine = torch.stack([tasks.cosines(of_task)[i] for i, of_task in enumerate(of_tasks)])
    add("state_change_cosine", cosine, "cosine of the state change with that by own task")
