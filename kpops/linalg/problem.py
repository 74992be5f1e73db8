"""The one place that decides in which space a spectrum is computed.

What is asked of an operator A is asked of a self-adjoint operator G with the same spectrum, in the
smallest space that has it:

=================== ================== ======================================================
asked               G                  where
=================== ================== ======================================================
eigenvalues         ``R* R``           ``A = R R*`` is known, R having fewer columns than rows
eigenvalues         A                  else
singular values     ``A* A``           they are the roots of the eigenvalues of G
singular values     ``A A*``           A has fewer rows than columns
=================== ================== ======================================================

Where G couples no two positions of some dims, as P couples no two trials, there is a problem for
each of them, all of one size. One end of the spectrum is made that of largest magnitude by a shift,
``s + A`` or ``s - A`` with s above ``||A||``: Krylov spaces are the same, and so is all that is
known of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kpops.linalg.rounding import flatten_vectors
from kpops.linalg.scaling import normalized_blocks
from kpops.operators.base import TrajectoryOperator
from kpops.operators.dense import Batches, block_diagonal_dims


class BatchedSpace(NamedTuple):
    """The spaces of independent problems of one size.

    Attributes
    ----------
    n_problems, size : int
        Number of problems, and entries of a vector of each.
    dtype, device
        In which they are computed.
    """

    n_problems: int
    size: int
    dtype: torch.dtype
    device: torch.device


class Modes(NamedTuple):
    """Approximate modes of a batch of problems, the leading ones of all.

    Attributes
    ----------
    values : Tensor, shape (mode,)
        Of falling magnitude, in float64.
    problem : Tensor, shape (mode,)
        To which each belongs.
    vectors : tuple of Tensor, shape (mode, entry)
        Eigenvectors, or left and right singular vectors, in that problem.
    n_certified : int
        How many of them, from the first on, are known to be the leading ones.
    """

    values: Tensor
    problem: Tensor
    vectors: tuple[Tensor, ...]
    n_certified: int


class SpectralProblem:
    """The eigenvalues, or the singular values, of an operator as the algorithms see them.

    Parameters
    ----------
    op : TrajectoryOperator
        A, of about one (:func:`kpops.linalg.scaling.normalized`).
    symmetric : bool
        Whether it is self-adjoint and its eigenvalues are asked for, else its singular values.
    n_modes : int
        Modes that are wanted; zeros that G lacks are among them where it has no more others.
    together : bool
        Take independent problems as one.
    sign, shift : float
        Solve for ``sign * A + shift`` in place of A, which is symmetric.

    Attributes
    ----------
    G : TrajectoryOperator
        The operator that is solved for, without sign and shift.
    factor : TrajectoryOperator or None
        F with ``G = F* F``, if it is another operator than A.
    positive : bool
        Whether no eigenvalue is negative, by construction.
    sides : Batches
        The space of G as independent problems.
    space : BatchedSpace
        The same in numbers.
    n_zeros : int
        Eigenvalues that G lacks, all zero.
    cost : int
        Matvecs with A that one with G is worth.
    """

    def __init__(
        self,
        op: TrajectoryOperator,
        symmetric: bool = True,
        *,
        n_modes: int = 0,
        together: bool = False,
        sign: float = 1.0,
        shift: float = 0.0,
    ) -> None:
        self.op, self.symmetric = op, symmetric
        self.sign, self.shift = sign, shift
        self.factor = None if shift else _factor(op, symmetric, n_modes)
        self.G = op if self.factor is None else self.factor.H @ self.factor
        self.positive = not shift and (self.factor is not None or op.positive)
        self.dims = () if together else block_diagonal_dims(self.G)
        self.sides = Batches(self.G.domain, self.dims)
        self.space = BatchedSpace(self.sides.count, self.sides.size, op.torch_dtype, op.device)
        self.n_zeros = op.shape[0] - self.G.shape[0] if symmetric else 0
        self.cost = 1 if symmetric else 2

    @property
    def where(self) -> str:
        """The space in words."""
        if self.dims:
            problems = f"{self.sides.count} problems of size {self.sides.size}"
            where = f"{problems}, one per {' and '.join(self.dims)}"
        elif self.factor is None or not self.symmetric:
            where = f"the {self.sides.size} dims of the operator"
        else:
            where = f"the {self.sides.size} dims of the domain of {self.factor.symbol}"
        return where + (f", shifted by {self.shift:.3g}" if self.shift else "")

    def act(self, x: Tensor) -> Tensor:
        """Apply ``sign * G + shift``; (problem, vector, entry) to the same."""
        block = self.sides.join(x)
        image = self.G.apply(block)
        if self.shift:
            image = torch.add(image * self.sign, block, alpha=self.shift)
        return self.sides.split(image).contiguous()

    def dense(self) -> tuple[Tensor, float]:
        """G as matrices (problem, row, column) of about one, and their scale."""
        return normalized_blocks(self.G)

    def values(self, eigenvalues: Tensor) -> Tensor:
        """Eigenvalues or singular values of A, of eigenvalues of G."""
        eigenvalues = eigenvalues.clamp_min(0) if self.factor is not None else eigenvalues
        return eigenvalues if self.symmetric else eigenvalues.sqrt()

    def bring(self, block: Tensor) -> Tensor:
        """Vectors of the domain of A (vector, *dims) to the space of G (problem, vector, entry).

        Modes of A, or right singular vectors, come to modes of G, up to their lengths.
        """
        if self.moves:
            assert self.factor is not None
            block = self.factor.apply_adjoint(block) if self.symmetric else self.op.apply(block)
        return self.sides.split(block).contiguous()

    @property
    def moves(self) -> bool:
        """Whether G acts on another space than the domain of A."""
        return self.factor is not None and (self.symmetric or self.factor is not self.op)

    def own_modes(self, modes: Modes) -> Tensor:
        """Eigenvectors of G as functions (mode, *dims)."""
        vectors = modes.vectors[0]
        whole = vectors.new_zeros(self.sides.count, len(vectors), self.sides.size)
        whole[modes.problem, torch.arange(len(vectors))] = vectors
        return self.sides.join(whole)

    def lift(self, modes: Modes) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenfunctions (mode, *dims) of A; those of G if A is not symmetric."""
        values = (self.sign * (modes.values - self.shift)).to(self.op.torch_dtype)
        block = self.own_modes(modes)
        if self.symmetric and self.factor is not None:
            images = flatten_vectors(self.factor.apply(block))
            block = in_order(images).reshape(-1, *self.op.domain.shape)
        return values, block


def _factor(op: TrajectoryOperator, symmetric: bool, n_modes: int) -> TrajectoryOperator | None:
    """F with ``G = F* F``; None if G is the operator itself."""
    if not symmetric:
        return op.H if op.shape[0] < op.shape[1] else op
    root = op.root
    if root is None or not n_modes < root.shape[1] < root.shape[0]:
        return None
    # The blocks of A may be smaller than the whole domain of R.
    size = Batches(root.domain, block_diagonal_dims(root)).size
    return root if size <= Batches(op.domain, block_diagonal_dims(op)).size else None


def in_order(rows: Tensor) -> Tensor:
    """Orthonormal rows with the same leading spans; what vanishes is replaced by something.

    The images of modes are orthogonal but for rounding, which comes from the largest and spoils
    the smallest: so each is freed from those before it.
    """
    unit = rows.double()  # of long rows, single precision would lose a digit
    unit /= unit.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    q, r = torch.linalg.qr(unit.mT)
    return (q * torch.where(r.diagonal() < 0, -1, 1)).mT.to(rows.dtype).contiguous()
