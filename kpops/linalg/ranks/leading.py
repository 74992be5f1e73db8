"""Leading modes, and what is left of the squared Frobenius norm off them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kpops import work
from kpops.linalg.eigenpairs import eigenpairs
from kpops.linalg.moments import NEEDS_POSITIVE
from kpops.linalg.probes import BLOCK, dots, sphere
from kpops.linalg.rounding import flatten_vectors
from kpops.linalg.symmetry import refuse_indefinite
from kpops.linalg.triplets import singular_triplets
from kpops.operators.base import TrajectoryOperator


def leading_modes(
    op: TrajectoryOperator, symmetric: bool, k: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor, float, int]:
    """The k leading left vectors as rows, values, relative residual, products that they took."""
    work.check()
    modes = (eigenpairs if symmetric else singular_triplets)(op, k, rng=rng)
    values = modes.unit * modes.values
    if symmetric:
        refuse_indefinite(op, values, NEEDS_POSITIVE)
    work.check()
    return flatten_vectors(modes.vectors[0]), values, float(modes.residual.max()), modes.num_matvecs


def squares_off(
    op: TrajectoryOperator, left: Tensor, scale: float, m: int, rng: np.random.Generator
) -> Tensor:
    """Estimates of ``||A* (I - U U*)||_F^2 / scale^2``, shape (m,), float64.

    `left` holds orthonormal rows u; random vectors are uniform on the sphere off them.
    """
    like = torch.empty(0, dtype=op.torch_dtype, device=op.device)
    dim, left = op.codomain.size - len(left), left.to(like)
    squares = torch.zeros(m, dtype=torch.float64, device=op.device)
    if dim == 0:
        return squares
    for first in range(0, m, BLOCK):
        z = sphere(rng, min(BLOCK, m - first), op.codomain.size, like)
        for _ in range(2):  # once leaves rounding of the order of what it takes away
            z = z - (z @ left.T) @ left
        z = z * (dim**0.5 / z.norm(dim=1, keepdim=True))
        images = op.apply_adjoint(z.reshape(-1, *op.codomain.shape)).flatten(1) / scale
        squares[first : first + len(z)] = dots(images, images)
        if work.interrupted():
            return squares[: first + len(z)]
    return squares
