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
from kpops.learning.gradient_flow import gradient_flow
from kpops.learning.losses import Loss
from kpops.learning.task_alignment import (
    centred_states,
    cosines,
    gram,
    of_sums,
    operator_alignments,
    state_cka,
    tuning,
)
from kpops.learning.trial_groups import Groups, group_trials, of_trials, trial_gradients
from kpops.linalg.rounding import noise_floor
from kpops.linearization import Linearization
from kpops.maturity import experimental
from kpops.operators import ParameterOperator, TrajectoryOperator
from kpops.precision import in_full_precision
from kpops.scalars import generator as random_generator

PAIR = ("task", "task_in")

Statistic = Callable[[Groups], Tensor]
"""A matrix (task, task), for any groups."""

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
        Coordinate of trials that tells the task, or a label for each trial.
    targets : Tensor, array_like or DataArray, optional
        As of :func:`kpops.gradient_flow`. Without them, all that needs an error is left out.
    loss : {"mse", "cross_entropy"} or callable
        As of :func:`kpops.gradient_flow`; a callable should be a sum or mean over trials.
    loss_mask : array_like or DataArray, optional
        As of :func:`kpops.gradient_flow`.
    condition : str or array_like, optional
        Coordinate of trials (or a label for each) by which trials of one task correspond to
        trials of another, such as ``"angle"``. Default: the k-th trial of one task to the k-th of
        another, if all have equally many. What compares trial with trial is left out if they do
        not correspond.
    num_matvecs : int
        Random vectors for the alignments of operators, at least 2, each of which costs two
        products with P J and two with its adjoint; 0 leaves these alignments out.
    n_permutations : int
        How often to exchange trials between tasks at random, for the null distributions.
    rng : int, Generator or None
        Source of the random vectors and of the permutations, in this order.
    progress : bool
        Show a bar of the matvecs.

    Returns
    -------
    Dataset
        Dims ``task`` (i, the one that is changed) and ``task_in`` (j, the one that is learned):

        ``state_cosine``, ``state_cka``, ``state_tuning_cosine``
            Alignment of the states of tasks i and j, whose trials correspond.
        ``trace_alignment``, ``gauss_newton_alignment``, ``kernel_alignment``
            Alignment of their operators, whatever the targets; with ``..._stderr``, which is zero
            where the alignment is exact: where the parameters, or the trajectories of a task, are
            at most 1024 numbers.
        ``gradient_cosine``, ``gradient_tuning_cosine``, ``gradient_norm`` (task)
            Of the gradients of their errors, in the space of the recurrent parameters.
        ``state_change_norm``, ``state_change_cosine``
            Length of the change of task i's trajectories by a gradient step on task j alone, and
            its cosine with the change by a step on task i.
        ``loss_change``, ``loss_change_by_parameter`` (parameter, task, task_in)
            What that step does to the loss of task i. Steps and changes are per learning rate.
        ``loss`` ()
            Of all tasks.
        ``..._null_mean``, ``..._null_std``, ``..._p_lower``, ``..._p_upper``
            Of the four cosines of states and gradients, if there are permutations: mean and
            deviation over them, and the probability of a cosine as low, or as high.

        Cosines with what is zero are NaN.

    Raises
    ------
    ValueError
        If `by` makes fewer than two groups, the conditions of the tasks differ, a number is out
        of range, or `targets`, `loss` or `loss_mask` are not what :func:`kpops.gradient_flow`
        takes.
    TypeError
        If `lin` is no linearization.
    MemoryError
        If the gradients of all trials would not fit: take fewer trials.

    Notes
    -----
    Let X_i be the states of task i less their mean over its trials and steps, Err_i the rows of
    Err = dL/dh of its trials, and ``D_i = P_i J_i`` the derivative of its states by the parameters.
    P does not couple trials, so that the flow operator leads from the errors of task j to the
    states of task i by its block ``Phi_ij = P_i K_ij P_j* = D_i D_j*`` alone
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
                                not correspond
    ``kernel_alignment``        cosine of Phi_ii and Phi_jj, both centred over trials: of tangent
                                kernels, with trials as examples
    ``gradient_cosine``         ``<Err_i, Phi_ij Err_j>`` over the root of its values for i, i and
                                j, j; that is ``<g_i, g_j> / (|g_i| |g_j|)`` with the gradients
                                ``g_i = D_i* Err_i``
    ``gradient_tuning_cosine``  of the gradients of single trials less their mean over the task's,
                                corresponding ones with one another
    ``loss_change``             ``<Err_i, dh_ij> = -<g_i, g_j>`` with the state changes
                                ``dh_ij = -Phi_ij Err_j``
    =========================== ==================================================================

    Norms are Frobenius norms. Error and loss of a task are its share of the whole: ``loss_change``
    sums over all i and j to minus the squared gradient of the whole loss, and
    ``loss_change_by_parameter`` sums over parameters to ``loss_change`` (Theorem 1 of the paper).

    The KPFlow paper (arXiv 2507.06381) reads from ``P_i K_ij P_j*`` how far the objectives of
    sub-tasks agree. Of a block by itself that is ``trace_alignment``, and between the errors of
    both tasks ``gradient_cosine``. Only what contains errors can tell Pro from Anti where their
    inputs are alike; what all trials have in common, such as the fixation, may hide the rest, and
    the tuning is free of it. CKA: Kornblith, Norouzi, Lee and Hinton, ICML 2019; centred kernel
    alignment: Cortes, Mohri and Rostamizadeh, JMLR 13 (2012).

    Permutations exchange the tasks of corresponding trials, or of all trials if they do not
    correspond. ``p = (1 + k) / (1 + n_permutations)``, where k of them are as extreme (Phipson and
    Smyth 2010), is valid on its side; for both sides, double the smaller. The null hypothesis is
    that all tasks are exchangeable.

    Steps are of the K of ``measure="sum"``, and of the recurrent parameters that learn; those of
    the readout play no part.

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
    groups = group_trials(lin, by, condition)
    generator = random_generator(rng)
    table = _Table(lin, groups)
    if num_matvecs:
        found = operator_alignments(lin, groups, num_matvecs, generator)
        for name, (estimate, stderr) in found.items():
            table.add(name, estimate, _TEXTS[name])
            table.add(f"{name}_stderr", stderr, "standard error")
    statistics: dict[str, Statistic] = {}
    if groups.matched:
        table.add("state_cka", state_cka(centred_states(lin, groups)), "linear CKA of states")
        statistics |= _of_states(lin)
    if targets is not None:
        flow = gradient_flow(lin, targets, loss, loss_mask=loss_mask)
        table.variables["loss"] = flow.loss
        rows = trial_gradients(lin, as_tensor(flow.adjoint.values, "adjoint").to(lin.device))
        _add_effects(table, lin, groups, rows)
        statistics |= _of_gradients(rows, groups.matched)
    for name, statistic in statistics.items():
        table.add(name, statistic(groups), _TEXTS[name])
        if n_permutations:
            _add_null(table, name, statistic, groups, n_permutations, generator)
    configuration = {
        "by": by if isinstance(by, str) else "given",
        "condition": condition if condition is None or isinstance(condition, str) else "given",
        "loss": loss if isinstance(loss, str) else "callable",
        "loss_mask": None if loss_mask is None else "given",
        "num_matvecs": num_matvecs,
        "n_permutations": n_permutations,
    }
    return table.dataset({**lin.attrs, "configuration": json.dumps(configuration)})


@experimental
def interference_operator(
    lin: Linearization, task: Any, task_in: Any, by: Any = "task"
) -> TrajectoryOperator:
    """P_i K_ij P_j*: what the errors of one task do to the trajectories of another.

    Parameters
    ----------
    lin : Linearization
        About the trials of all tasks together.
    task, task_in : label
        The task i whose trajectories change, and the task j that is learned.
    by : str or array_like
        Coordinate of trials that tells the task, or a label for each trial.

    Returns
    -------
    TrajectoryOperator
        From the trajectories of task j to those of task i; positive if they are the same. Nothing
        is computed for other trials. A gradient step on the error of task j alone moves task i by
        minus the learning rate times this of that error (for ``measure="sum"``).

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
    groups = group_trials(lin, by)
    i, j = groups.position(task), groups.position(task_in)
    scale = 1.0 if lin.measure == "sum" else 1.0 / lin.trajectory.n_valid  # of all tasks' steps
    to = of_trials(lin, groups.members[i])
    if i == j:
        scale /= lin.forcing_step**2  # which J has already
        K = ParameterOperator(to.engine, to.space, tuple(to.parameters), scale)
        block = to.P @ K @ to.P.H
        block.symbol = "P_i K_ii P_i*"
    else:
        of = of_trials(lin, groups.members[j])
        block = to.P @ (scale * (to.J @ of.J.H)) @ of.P.H
        block.symbol = "P_i K_ij P_j*"
    block.attrs = lin.attrs
    return block


class _Table:
    """The result in the making: matrices between tasks, labelled."""

    def __init__(self, lin: Linearization, groups: Groups) -> None:
        self.dtype = numpy_dtype(lin.dtype)
        self.variables: dict[str, Any] = {}
        self.coords: dict[str, Any] = {}
        self.label("task", groups.names, "task that is changed")
        self.label("task_in", groups.names, "task that is learned")

    def label(self, dim: str, names: np.ndarray, long_name: str) -> None:
        self.coords[dim] = (dim, names, {"long_name": long_name, "units": "1"})

    def add(self, name: str, values: Tensor, long_name: str, dims: tuple[str, ...] = PAIR) -> None:
        attrs = {"long_name": long_name, "units": "1"}
        self.variables[name] = (dims, to_numpy(values).astype(self.dtype), attrs)

    def dataset(self, attrs: dict[str, str]) -> xr.Dataset:
        return xr.Dataset(self.variables, self.coords, attrs)


def _of_states(lin: Linearization) -> dict[str, Statistic]:
    return {
        "state_cosine": lambda groups: cosines(gram(centred_states(lin, groups))),
        "state_tuning_cosine": tuning(lin.trajectory.restrict(lin.trajectory.states[None])[0]),
    }


def _of_gradients(rows: Tensor, matched: bool) -> dict[str, Statistic]:
    tuned = {"gradient_tuning_cosine": tuning(rows)} if matched else {}
    return {"gradient_cosine": partial(of_sums, gram(rows)), **tuned}


def _add_effects(table: _Table, lin: Linearization, groups: Groups, rows: Tensor) -> None:
    """What steps along the tasks' gradients ``g_i`` do, from those of trials."""
    members = [torch.as_tensor(m, device=lin.device) for m in groups.members]
    gradients = torch.stack([rows[index].sum(0) for index in members])
    sizes = [parameter.numel() for parameter in lin.parameters.values()]
    by_parameter = torch.stack([gram(part) for part in gradients.split(sizes, dim=1)])
    inner = by_parameter.sum(0)
    table.label("parameter", np.array(list(lin.parameters), dtype=object), "parameter")
    table.add("gradient_norm", inner.diagonal().sqrt(), "length of the gradient", ("task",))
    text = "loss change -<g_i, g_j> per learning rate"
    table.add("loss_change", -inner, text)
    dims = ("parameter", *PAIR)
    table.add("loss_change_by_parameter", -by_parameter, f"{text}, by the parameter", dims)

    changes = lin.sensitivity.apply(-gradients)  # (task_in, trial, time, unit)
    of_tasks = torch.stack([gram(changes[:, index]) for index in members])
    norms = of_tasks.diagonal(dim1=1, dim2=2).sqrt()
    table.add("state_change_norm", norms, "length of the state change per learning rate")
    cosine = torch.stack([cosines(of_task)[i] for i, of_task in enumerate(of_tasks)])
    table.add("state_change_cosine", cosine, "cosine of the state change with that by own task")


def _add_null(
    table: _Table,
    name: str,
    statistic: Statistic,
    groups: Groups,
    n_permutations: int,
    rng: np.random.Generator,
) -> None:
    """Mean, deviation and both tails of a statistic when tasks are shuffled."""
    observed = statistic(groups)
    null = torch.stack([statistic(groups.shuffled(rng)) for _ in range(n_permutations)])
    slack = noise_floor(torch.float32 if table.dtype == np.float32 else torch.float64)  # of ties
    text = _TEXTS[name]
    table.add(f"{name}_null_mean", null.mean(0), f"{text}, mean of permutations")
    table.add(f"{name}_null_std", null.std(0, correction=0), f"{text}, deviation of permutations")
    tails = {"lower": null <= observed + slack, "upper": null >= observed - slack}
    for tail, extreme in tails.items():
        p = (1 + extreme.sum(0).double()) / (1 + n_permutations)
        p = p.masked_fill(observed.isnan(), torch.nan)
        table.add(f"{name}_p_{tail}", p, f"{text}, p-value of the {tail} tail")
