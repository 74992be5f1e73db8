"""Baseline: stored state Jacobians and a Python loop over time, one vector at a time.

This is how flow operators of recurrent networks were first computed: all A[b, t] are made
beforehand, and ARPACK gets a SciPy LinearOperator over NumPy vectors. P and P* step through time, K
differentiates one step for all rows at once.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor
from torch.func import jacrev, vmap

from benchmarks import cells
from benchmarks.cases import Case
from benchmarks.contenders import (
    Contender,
    require_memory,
    require_setup_time,
    state_jacobian_flops,
)
from benchmarks.torch_func import maps

_CHUNK_BYTES = 2**28


class StoredJacobians:
    """P, P*, K and flow on flat NumPy vectors in C-order of (trial, time, unit)."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.shape = (case.trials, case.steps, case.state_size)
        weights, drive = cells.weights_of(case.module()), case.drive()
        x, previous = cells.rows(case.kind, weights, drive)

        def one_step(theta: cells.Weights) -> Tensor:
            return cells.next_state(case.kind, theta, cells.from_inputs(theta, x), previous)

        self.step = maps(one_step, weights)

        self.jacobians = state_jacobians(case, weights, x, previous)
        self.products = {"P": self.P, "P*": self.P_adjoint, "K": self.K, "flow": self.flow}

    def P(self, q: np.ndarray) -> np.ndarray:
        """v[t] = q[t] + A[t] v[t-1]."""
        forcing = self._enter(q)
        states = [forcing[:, 0]]
        for t in range(1, self.case.steps):
            moved = self.jacobians[t] @ states[-1][..., None]
            states.append(forcing[:, t] + moved[..., 0])
        return self._leave(torch.stack(states, dim=1))

    def P_adjoint(self, q: np.ndarray) -> np.ndarray:
        """v[t] = q[t] + A[t+1]^T v[t+1]."""
        forcing = self._enter(q)
        states = [forcing[:, -1]]
        for t in range(self.case.steps - 1, 0, -1):
            moved = self.jacobians[t].mT @ states[-1][..., None]
            states.append(forcing[:, t - 1] + moved[..., 0])
        return self._leave(torch.stack(states[::-1], dim=1))

    def K(self, q: np.ndarray) -> np.ndarray:
        """J J* q."""
        return self._leave(self.step.push(self.step.pull(self._enter(q).flatten(0, 1))))

    def flow(self, q: np.ndarray) -> np.ndarray:
        """P K P* q."""
        return self.P(self.K(self.P_adjoint(q)))

    def operator(self, name: str) -> LinearOperator:
        """The operator for ARPACK."""
        n = int(np.prod(self.shape))
        dtype = str(self.case.dtype).removeprefix("torch.")
        return LinearOperator((n, n), matvec=self.products[name], dtype=dtype)

    def _enter(self, q: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(q)).reshape(self.shape).to(self.case.device)

    def _leave(self, q: Tensor) -> np.ndarray:
        return q.reshape(-1).cpu().numpy()


def state_jacobians(case: Case, weights: cells.Weights, x: Tensor, previous: Tensor) -> Tensor:
    """All A[b, t], shape (time, trial, unit, unit), without a second copy in memory."""

    def time_major(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (case.trials, case.steps)).transpose(0, 1).flatten(0, 1)

    def of_state(from_x: Tensor, state: Tensor) -> Tensor:
        return cells.next_state(case.kind, weights, from_x, state)

    from_x, states = time_major(cells.from_inputs(weights, x)), time_major(previous)
    jacobian_of = vmap(jacrev(of_state, argnums=1))
    jacobians = states.new_empty(case.rows, case.state_size, case.state_size)
    per_row = 4 * case.state_size * case.gates * case.hidden * case.itemsize
    chunk = max(1, _CHUNK_BYTES // per_row)
    for start in range(0, case.rows, chunk):
        part = slice(start, start + chunk)
        jacobians[part] = jacobian_of(from_x[part], states[part])
    return jacobians.unflatten(0, (case.steps, case.trials))


def stored(case: Case, rate: float, most_setup_s: float) -> Contender:
    """The baseline, unless its Jacobians are too large or too slow to make at `rate` flop/s."""
    require_memory(case.rows * case.state_size**2 * case.itemsize, case)
    require_setup_time(state_jacobian_flops(case), rate, most_setup_s)
    baseline = StoredJacobians(case)

    def product(name: str):
        operator = baseline.operator(name)

        def of_block(q: Tensor) -> Tensor:
            vectors = [operator.matvec(u) for u in q.flatten(1).cpu().numpy()]
            return torch.from_numpy(np.stack(vectors)).reshape(q.shape)

        return of_block

    return Contender(
        "stored Jacobians", {name: product(name) for name in baseline.products}, one_by_one=True
    )
