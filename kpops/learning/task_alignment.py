"""Tasks as groups of trials, and how alike they are in their states and operators.

Tasks i and j have equally many trials, the k-th of one matched with the k-th of the other. X_i are
the states and D_i = P_i J_i their derivative by the parameters. The flow operator has the blocks
``Phi_ij = P_i K_ij P_j* = D_i D_j*``; ``G_i = D_i* D_i`` is the Gauss-Newton operator of a squared
loss on the states of task i. Padded steps are zeros.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from kpops.engines.memory import check_allocation
from kpops.engines.random_vectors import RandomVectors
from kpops.labels import Space, by_name
from kpops.learning.required import require_linearization
from kpops.linalg.exact import is_cheap
from kpops.linalg.probes import jackknife
from kpops.linalg.rounding import noise_floor
from kpops.linalg.vectors import VectorSpace
from kpops.linearization import Linearization

_BLOCK = 16  # vectors that the operators are applied to at once
_COLUMNS = 2**16  # entries of vectors that are converted to float64 at a time


@dataclass(frozen=True)
class Groups:
    """Trials in two or more groups."""

    names: np.ndarray  # in the order in which they first appear
    members: tuple[np.ndarray, ...]  # positions of the trials of each group
    matched: bool  # whether the k-th members of all groups are of one condition

    def __len__(self) -> int:
        return len(self.names)

    def position(self, name: Any) -> int:
        """Number of the group `name`."""
        here = np.flatnonzero(self.names == name)
        if not here.size:
            raise ValueError(f"no task {name!r}: choose from {self.names.tolist()}")
        return int(here[0])

    def shuffled(self, rng: np.random.Generator) -> Groups:
        """Exchange trials between groups, only within each condition if they are matched."""
        if self.matched:
            members = tuple(rng.permuted(np.stack(self.members), axis=0))
        else:
            ends = np.cumsum([len(m) for m in self.members])[:-1]
            members = tuple(np.split(rng.permutation(np.concatenate(self.members)), ends))
        return dataclasses.replace(self, members=members)


def group_trials(lin: Linearization, by: Any, condition: Any = None) -> Groups:
    """Group the trials of a linearization, and match them.

    `by` and `condition` name a coordinate of trials, or label each trial. Trials of one condition
    match; without conditions, the k-th trials of groups of equal size do.
    """
    return groups_in(require_linearization(lin).space, by, condition)


def groups_in(space: Space, by: Any, condition: Any = None) -> Groups:
    """The same for the trials of a space."""
    labels = _labels(space, by, "by")
    _, first, codes = np.unique(labels, return_index=True, return_inverse=True)
    if len(first) < 2:
        raise ValueError(
            f"by={_shown(by)}: all trials are of {labels[0]!r}, a comparison needs two groups"
        )
    order = np.argsort(first)
    members = tuple(np.flatnonzero(codes == code) for code in order)
    names = labels[first[order]]
    if condition is None:
        return Groups(names, members, len({len(m) for m in members}) == 1)
    values = _labels(space, condition, "condition")
    members = tuple(m[np.argsort(values[m], kind="stable")] for m in members)
    for name, mine in zip(names[1:], members[1:], strict=True):
        if not np.array_equal(values[mine], values[members[0]]):
            raise ValueError(
                f"condition={_shown(condition)}: the conditions of {name!r} and {names[0]!r} are "
                "not the same, each as often; give every task the same ones, for example by "
                "angles='even'"
            )
    return Groups(names, members, True)


def of_trials(lin: Linearization, positions: np.ndarray) -> Linearization:
    """The linearization of some trials alone, at no cost for the others.

    Its J and P are rows and blocks of the whole; its K, under ``measure="mean"``, is not.
    """
    index = torch.as_tensor(positions, device=lin.device)
    trajectory = lin.trajectory.of_trials(index)
    space = lin.space.take({"trial": np.asarray(positions)})
    return dataclasses.replace(lin, trajectory=trajectory, space=space)


def trial_gradients(lin: Linearization, adjoint: Tensor) -> Tensor:
    """Each trial's part of the gradient, ``J_b* (P* Err)_b``, shape (trial, parameter)."""
    n_trials, n_parameters = len(adjoint), lin.parameter_space.size
    n_bytes = n_trials * n_parameters * adjoint.element_size()
    check_allocation(f"the gradients of {n_trials} trials", n_bytes, lin.device)
    rows = adjoint.new_empty(n_trials, n_parameters)
    # One matvec needs no cache, and this engine is the quickest to set up.
    cheap = dataclasses.replace(lin, engine_asked="autodiff", gates_asked="auto")
    for b in range(n_trials):
        rows[b] = of_trials(cheap, np.array([b])).J.apply_adjoint(adjoint[None, b : b + 1])[0]
    return rows


def _labels(space: Space, given: Any, argument: str) -> np.ndarray:
    """A label for each trial; strings as objects, which files can hold."""
    n_trials = space.sizes["trial"]
    if isinstance(given, str):
        known = sorted(k for k, c in space.coords.items() if c.dims == ("trial",))
        if given not in known:
            raise ValueError(
                f"{argument}={given!r} is no coordinate of trials, which are {known}: linearise "
                f"inputs that are a DataArray with it, or pass an array of {n_trials} labels"
            )
        values = np.asarray(space.coords[given][1])
    else:
        if isinstance(given, xr.DataArray):
            given = by_name(given, space.keep(("trial",)), argument)
        values = np.asarray(given)
        if values.shape != (n_trials,):
            raise ValueError(
                f"{argument} has shape {values.shape}, expected ({n_trials},): one label per trial"
            )
    missing = np.flatnonzero(values != values)
    if missing.size:
        raise ValueError(f"{argument} is not a number at trial {missing[0]}: label every trial")
    return values.astype(object) if values.dtype.kind in "UST" else values


def _shown(given: Any) -> str:
    return repr(given) if isinstance(given, str) else "<array>"


def gram(vectors: Tensor) -> Tensor:
    """Inner products (vector, vector) of vectors (vector, ...), in float64."""
    pieces = (piece.double() for piece in vectors.flatten(1).split(_COLUMNS, dim=1))
    return reduce(torch.add, (piece @ piece.mT for piece in pieces))


def cosines(inner: Tensor) -> Tensor:
    """``<v_i, v_j> / (|v_i| |v_j|)`` from inner products (task, task); NaN where a v is zero."""
    lengths = inner.diagonal().clamp_min(0).sqrt()
    cosine = (inner / lengths[:, None] / lengths).clamp(-1, 1)
    own = torch.full_like(lengths, torch.nan).masked_fill(lengths > 0, 1)  # without rounding
    return cosine.diagonal_scatter(own)


def of_sums(inner: Tensor, groups: Groups) -> Tensor:
    """Cosines of the sums of each task's vectors, from inner products (trial, trial)."""
    belongs = inner.new_zeros(len(groups), len(inner))
    for row, members in zip(belongs, groups.members, strict=True):
        row[torch.as_tensor(members, device=inner.device)] = 1
    return cosines(belongs @ inner @ belongs.mT)


def tuning(vectors: Tensor) -> Callable[[Groups], Tensor]:
    """Cosines of what differs between a task's trials, for vectors (trial, ...).

    For trials k of task i with vectors v_ik and mean m_i, cosines of the v_ik - m_i side by side:
    ``sum_k <v_ik - m_i, v_jk - m_j> = sum_k <v_ik, v_jk> - sum_kl <v_ik, v_jl> / n``.
    """
    inner = gram(vectors)
    floor = max(noise_floor(torch.float64), noise_floor(vectors.dtype) ** 2)

    def of_groups(groups: Groups) -> Tensor:
        index = torch.as_tensor(np.stack(groups.members), device=inner.device)
        pairs = inner[index[:, :, None, None], index]  # (task, trial, task, trial)
        same = pairs.diagonal(dim1=1, dim2=3).sum(-1)
        apart = same - pairs.sum((1, 3)) / index.shape[1]
        own = apart.diagonal()
        nothing = own <= floor * same.diagonal()  # beyond rounding
        return cosines(apart.diagonal_scatter(own.masked_fill(nothing, 0)))

    return of_groups


def centred_states(lin: Linearization, groups: Groups) -> Tensor:
    """X_i (task, trial, ..., unit): states less the task's mean over valid trials and steps."""
    index = torch.as_tensor(np.stack(groups.members), device=lin.device)
    states = lin.trajectory.restrict(lin.trajectory.states[None])[0][index]
    if lin.trajectory.mask is None:
        return states - states.mean(tuple(range(1, states.ndim - 1)), keepdim=True)
    valid = lin.trajectory.mask[index][..., None]
    mean = states.sum((1, 2), keepdim=True) / valid.sum((1, 2), keepdim=True)
    return torch.where(valid, states - mean, 0)


def state_cosine(lin: Linearization, groups: Groups) -> Tensor:
    """``<X_i, X_j> / (|X_i| |X_j|)``."""
    return cosines(gram(centred_states(lin, groups)))


def state_cka(states: Tensor) -> Tensor:
    """``|X_i^T X_j|^2 / (|X_i^T X_i| |X_j^T X_j|)`` of centred states, rows (trial, time)."""
    rows = states.flatten(1, -2)
    squares = [[(a.mT @ b).double().square().sum() for b in rows] for a in rows]
    return cosines(torch.tensor(squares, dtype=torch.float64, device=states.device))


def operator_alignments(
    lin: Linearization, groups: Groups, num_matvecs: int, rng: np.random.Generator
) -> dict[str, tuple[Tensor, Tensor]]:
    """Alignments of the blocks of the flow operator with their standard errors, by name.

    Let w be a random vector of parameters and, if tasks are matched, z one of trajectories, both
    of covariance 1, and C the subtraction of the mean over trials. Then

        tr Phi_ij = E <D_i w, D_j w>
        |Phi_ij|^2 = tr G_i G_j = E <G_i w, G_j w>
        <C Phi_ii C, C Phi_jj C> = E <C Phi_ii C z, C Phi_jj C z>.

    All tasks see the same `num_matvecs` vectors, so that a factor common to all inner products of
    a vector cancels in the cosine; the jackknife gives the error. A basis of at most 1024 vectors
    replaces the random ones, and the result is exact.
    """
    parts = [of_trials(lin, m) for m in groups.members]

    def of_parameters(w: Tensor) -> list[Tensor]:
        tangents = [part.sensitivity.apply(w) for part in parts]
        cotangents = [p.sensitivity.apply_adjoint(y) for p, y in zip(parts, tangents, strict=True)]
        return [_grams(cotangents), *([_grams(tangents)] if groups.matched else [])]

    def of_trajectories(z: Tensor) -> list[Tensor]:
        z = _off_mean(z.unflatten(1, parts[0].space.shape))
        cotangents = [part.sensitivity.apply_adjoint(z) for part in parts]
        pairs = zip(parts, cotangents, strict=True)
        return [_grams([_off_mean(part.sensitivity.apply(g)) for part, g in pairs])]

    n_parameters = lin.parameter_space.size
    samples = _averaged(of_parameters, n_parameters, lin, num_matvecs, rng)
    names = ["gauss_newton_alignment", "trace_alignment", "kernel_alignment"]
    if groups.matched:
        samples += _averaged(of_trajectories, parts[0].space.size, lin, num_matvecs, rng)
    return {name: _cosines_and_errors(s) for name, s in zip(names, samples, strict=False)}


def _grams(blocks: list[Tensor]) -> Tensor:
    """Inner products (vector, task, task) of one block (vector, ...) for each task."""
    stacked = torch.stack([block.flatten(1) for block in blocks], 1)
    return torch.stack([gram(rows) for rows in stacked])


def _off_mean(block: Tensor) -> Tensor:
    """Subtract the mean over trials; (vector, trial, time, unit)."""
    return block - block.mean(1, keepdim=True)


def _averaged(
    act: Callable[[Tensor], list[Tensor]],
    size: int,
    lin: Linearization,
    num_matvecs: int,
    rng: np.random.Generator,
) -> list[Tensor]:
    """`act` of each random vector; or its sum over a basis, as if of one vector."""
    space = VectorSpace(1, size, lin.dtype, lin.device)
    exact = is_cheap(size)
    if exact:
        blocks = iter(torch.eye(size, dtype=lin.dtype, device=lin.device).split(_BLOCK))
    else:
        counts = [min(_BLOCK, num_matvecs - start) for start in range(0, num_matvecs, _BLOCK)]
        source = RandomVectors(rng)
        blocks = (space.sphere(source, n) for n in counts)
    whole = [torch.cat(pieces) for pieces in zip(*map(act, blocks), strict=True)]
    return [x.sum(0, keepdim=True) for x in whole] if exact else whole


def _cosines_and_errors(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of the means of inner products (vector, task, task)."""
    n_tasks = samples.shape[-1]
    estimate = cosines(samples.mean(0))
    error = torch.zeros_like(estimate)
    for i in range(n_tasks if len(samples) > 1 else 0):
        for j in range(i):
            triple = samples[:, i, j], samples[:, i, i], samples[:, j, j]
            value, stderr = jackknife(lambda ab, aa, bb: ab / (aa.sqrt() * bb.sqrt()), *triple)
            estimate[i, j] = estimate[j, i] = min(max(value, -1.0), 1.0)
            error[i, j] = error[j, i] = stderr
    return estimate, error
