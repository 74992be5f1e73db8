"""SciPy's ARPACK, restarted until no copy of an eigenvalue is missing."""

from __future__ import annotations

import inspect

import numpy as np
import scipy.sparse.linalg
import torch

from kpops.arrays import to_numpy
from kpops.linalg.probes import Act
from kpops.linalg.problem import Modes
from kpops.linalg.search import Search
from kpops.linalg.vectors import VectorSpace
from kpops.transfers import on_device

# SciPy 1.17 and later draw restarts from a generator of their own unless they are given one.
_DRAWS = "rng" in inspect.signature(scipy.sparse.linalg.eigsh).parameters


def arpack(act: Act, space: VectorSpace, search: Search, block: int) -> Modes:
    """Leading eigenpairs of one problem, on the host and one vector at a time.

    `block` is not used. From one start vector, Lanczos sees one copy of a repeated eigenvalue.
    ARPACK finds the others by rounding, or misses them and goes on to smaller ones. It is therefore
    run again from a fresh vector, with the modes found deflated, until nothing larger than the
    least of them is left.

    Lehoucq, Sorensen and Yang (1998), ARPACK Users' Guide.
    """
    if space.parts.many:
        raise ValueError(
            "method='arpack' needs whole vectors, which are spread over processes here: use "
            "method='auto'"
        )
    n, k = space.size, search.k
    if k >= n:
        raise ValueError(f"k={k}: ARPACK finds at most n - 1 = {n - 1} modes; use method='exact'")
    dtype = to_numpy(torch.empty(0, dtype=space.dtype)).dtype
    small = np.finfo(dtype).eps * 64 * n**0.5

    def apply(x: np.ndarray) -> np.ndarray:
        if search.stopped:  # by Ctrl-C: the only way out of ARPACK
            nothing = np.zeros(0, dtype), np.zeros((n, 0), dtype)
            raise scipy.sparse.linalg.ArpackNoConvergence("interrupted", *nothing)
        block = on_device(torch.from_numpy(x), space.device, space.dtype)
        search.spend(1)
        return to_numpy(act(block.reshape(1, 1, n)).reshape(-1))

    def look(
        found: np.ndarray, k: int, largest: float | np.floating, near: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k leading modes once those found are deflated; fewer if the budget is too small."""

        def off_found(x: np.ndarray) -> np.ndarray:
            return x - found @ (found.T @ x)

        def matvec(x: np.ndarray) -> np.ndarray:
            return off_found(apply(off_found(x.ravel())))

        drawn = search.rng.standard_normal(n) if near is None else near
        start = off_found(drawn.astype(dtype))
        vectors = min(n, max(2 * k + 1, 20))
        left = search.budget - search.spent - vectors
        linear = scipy.sparse.linalg.LinearOperator((n, n), matvec=matvec, dtype=dtype)
        try:
            if np.linalg.norm(matvec(start)) <= small * largest:
                rest = off_found(search.rng.standard_normal((n, k)))
                return np.zeros(k, dtype), np.linalg.qr(rest)[0].astype(dtype)  # nothing is left
            # A quarter of the tolerance: ARPACK stops at a bound of its own, near the residual.
            values, modes = scipy.sparse.linalg.eigsh(
                linear, k, which="LM", tol=search.tol / 4, v0=start, ncv=vectors,
                maxiter=max(1, left // max(1, vectors - k)), **seeded,
            )  # fmt: skip
        except scipy.sparse.linalg.ArpackNoConvergence as stopped:
            values, modes = stopped.eigenvalues, stopped.eigenvectors
        order = np.argsort(-np.abs(values))
        return values[order], modes[:, order]

    seeded = {"rng": search.rng} if _DRAWS else {}
    near = None if search.near is None else to_numpy(search.near[0, 0])
    values, vectors = look(np.zeros((n, 0), dtype), k, 0.0, near)
    done = len(values) == k
    while done and vectors.shape[1] < n - 1:
        if not search.can_afford(1):
            done = False
            break
        largest = np.abs(values).max()
        more, another = look(vectors, 1, largest)
        done = len(more) == 1
        least = np.sort(np.abs(values))[-k]
        if not done or np.abs(more[0]) <= least + search.tol * largest:
            break
        values, vectors = np.append(values, more), np.hstack([vectors, another])
    order = np.argsort(-np.abs(values))[:k]
    found = torch.from_numpy(np.ascontiguousarray(vectors[:, order].T))
    found = on_device(found, space.device, space.dtype)
    numbers = torch.from_numpy(values[order].astype(float))
    return Modes(numbers, torch.zeros(len(order), dtype=torch.long), (found,), k if done else 0)
