"""GMRES for many systems of one size at once, each with a Krylov space of its own.

Saad and Schultz (1986). The basis V of a space is made by Arnoldi's process, ``A V = V' H`` with H
of one row more than columns, and the correction ``V y`` minimises ``| |r| e_1 - H y |``. From cycle
to cycle the space doubles up to `_LONGEST`, and a cycle starts at the residual of the last one.
SciPy's solver takes one system at a time, and on the host.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

_SHORTEST, _LONGEST = 8, 128
MOST_MATVECS = 1000
NUMBERS_PER_ENTRY = _LONGEST + 4
"""Numbers that are held at once for each entry of a right-hand side."""

Systems = Float[Tensor, "*system entry"]


def gmres(
    matvec: Callable[[Systems], Systems], b: Systems, tol: float
) -> tuple[Systems, Float[Tensor, "*system"]]:
    """Solve ``A x = b`` for every vector b along the last dimension.

    Returns x and the backward errors ``|b - A x| / (|b| + |A| |x|)``, with a lower bound in the
    place of |A|. It ends when none of them exceeds `tol`, or after `MOST_MATVECS`.
    """
    tiny = torch.finfo(b.dtype).tiny
    x, r = torch.zeros_like(b), b
    norm = torch.ones_like(b[..., 0])
    size, spent = _SHORTEST, 0
    while True:
        length = r.norm(dim=-1)
        error = length / (b.norm(dim=-1) + norm * x.norm(dim=-1)).clamp_min(tiny)
        if spent >= MOST_MATVECS or bool((error <= tol).all()):
            return x, error
        basis, H = _arnoldi(matvec, r / length.clamp_min(tiny)[..., None], min(size, b.shape[-1]))
        goal = torch.zeros_like(H[..., :1])
        goal[..., 0, 0] = length
        y = torch.linalg.lstsq(H, goal, driver="gels").solution[..., 0]
        x = x + torch.einsum("...j,j...i->...i", y, basis)
        r = b - matvec(x)
        norm = torch.maximum(norm, H.norm(dim=-2).amax(-1))
        spent += len(basis) + 1
        size = min(2 * size, _LONGEST)


def _arnoldi(
    matvec: Callable[[Systems], Systems], start: Systems, n: int
) -> tuple[Float[Tensor, "step *system entry"], Float[Tensor, "*system more step"]]:
    """V, of n vectors, and H, from unit vectors."""
    basis = start.new_zeros(n + 1, *start.shape)
    H = start.new_zeros(*start.shape[:-1], n + 1, n)
    basis[0] = start
    for j in range(n):
        w = matvec(basis[j])
        before = w.norm(dim=-1)
        for _ in range(2):  # one pass leaves an error of the order of what it removes
            along = torch.einsum("j...i,...i->j...", basis[: j + 1], w)
            w = w - torch.einsum("j...,j...i->...i", along, basis[: j + 1])
            H[..., : j + 1, j] += along.movedim(0, -1)
        left = w.norm(dim=-1)
        # What is left is rounding if the space holds the solution. All that follows is zero then,
        # and the 1 makes its coefficient zero.
        left = torch.where(left > 16 * torch.finfo(w.dtype).eps * before, left, 0)
        H[..., j + 1, j] = torch.where(before > 0, left, 1)
        basis[j + 1] = torch.where(left > 0, 1 / left, 0)[..., None] * w
    return basis[:n], H
