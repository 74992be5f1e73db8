"""The one place that decides in which space a spectrum is computed: which side of a Gram.

The spectrum of an operator A is that of a self-adjoint operator G, in the smallest space that has
it:

=================== ================== ======================================================
wanted              G                  where
=================== ================== ======================================================
eigenvalues         ``R* R``           ``A = R R*`` is known, and R has fewer columns than rows
eigenvalues         A                  else
singular values     ``A* A``           they are the roots of the eigenvalues of G
singular values     ``A A*``           A has fewer rows than columns
=================== ================== ======================================================

Where G couples no two positions of some dimensions, as P couples no two trials, each position is a
problem of its own, all of one size. A shift makes one end of the spectrum that of largest
magnitude: ``s + A`` or ``s - A`` with s above ``||A||`` has the same Krylov spaces.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from kpops.linalg.rounding import flatten_vectors
from kpops.linalg.vectors import VectorSpace
from kpops.operators.base import TrajectoryOperator
from kpops.operators.dense import Batches, block_diagonal_dims
from kpops.transfers import beside, on_device


class Modes(NamedTuple):
    """Approximate modes of a batch of problems, the leading ones of all.

    Attributes
    ----------
    values
        Of falling magnitude, in float64, on the host.
    problem
        To which each belongs, on the host.
    vectors
        Eigenvectors, or right and left singular vectors, in that problem; zero where another
        process has it.
    n_certified
        How many of them, from the first on, are known to be the leading ones.
    """

    values: Float[Tensor, " mode"]
    problem: Int[Tensor, " mode"]
    vectors: tuple[Float[Tensor, "mode entry"], ...]
    n_certified: int


class SpectralProblem:
    """The eigenvalues, or the singular values, of an operator as the algorithms see them.

    Parameters
    ----------
    op
        A, of about one (:func:`kpops.linalg.scaling.normalized`).
    symmetric
        Whether A is self-adjoint and its eigenvalues are wanted, else its singular values.
    n_modes
        Number of modes that are wanted; they may include zeros that G lacks.
    together
        Treat independent problems as one.
    sign, shift
        Solve for ``sign * A + shift`` in place of A, which is symmetric.

    Attributes
    ----------
    G : TrajectoryOperator
        The operator that is solved for, without sign and shift.
    factor : TrajectoryOperator or None
        F with ``G = F* F``, if G is not A.
    positive : bool
        Whether no eigenvalue is negative, by construction.
    sides : Batches
        The space of G as independent problems.
    space : VectorSpace
        Their vectors.
    n_zeros : int
        Number of eigenvalues that G lacks, all zero.
    cost : int
        Matvecs with A that one with G is worth.
    moves : bool
        Whether G acts on another space than the domain of A.
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
        self.factor = None if shift else _gram_factor(op, symmetric, n_modes)
        self.G = op if self.factor is None else self.factor.H @ self.factor
        self.positive = not shift and (self.factor is not None or op.positive)
        self.dims = () if together else block_diagonal_dims(self.G)
        self.sides = Batches(self.G.domain, self.dims)
        self.space = VectorSpace.of(self.G, self.sides)
        self.n_zeros = op.shape[0] - self.G.shape[0] if symmetric else 0
        self.cost = 1 if symmetric else 2
        self.moves = self.factor is not None and (symmetric or self.factor is not op)

    @property
    def where(self) -> str:
        """The space in words."""
        if self.dims:
            problems = f"{self.sides.total_count} problems of size {self.sides.size}"
            where = f"{problems}, one per {' and '.join(self.dims)}"
        elif self.factor is None or not self.symmetric:
            where = f"the {self.sides.size} dims of the operator"
        else:
            where = f"the {self.sides.size} dims of the domain of {self.factor.symbol}"
        return where + (f", shifted by {self.shift:.3g}" if self.shift else "")

    def act(
        self, x: Float[Tensor, "problem vector entry"]
    ) -> Float[Tensor, "problem vector entry"]:
        """Apply ``sign * G + shift``."""
        block = self.sides.join(x)
        image = self.G.apply(block)
        if self.shift:
            image = torch.add(image * self.sign, block, alpha=self.shift)
        return self.sides.split(image).contiguous()

    def values(self, eigenvalues: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """Eigenvalues or singular values of A, from eigenvalues of G."""
        eigenvalues = eigenvalues.clamp_min(0) if self.factor is not None else eigenvalues
        return eigenvalues if self.symmetric else eigenvalues.sqrt()

    def bring(self, block: Float[Tensor, " vector *dims"]) -> Float[Tensor, "problem vector entry"]:
        """Map vectors of the domain of A to the space of G.

        Modes of A, or right singular vectors, become modes of G, up to their lengths.
        """
        if self.moves:
            assert self.factor is not None
            block = self.factor.apply_adjoint(block) if self.symmetric else self.op.apply(block)
        return self.sides.split(block).contiguous()

    def lift(self, modes: Modes) -> tuple[Float[Tensor, " mode"], Float[Tensor, " mode *dims"]]:
        """Eigenvalues and eigenfunctions of A; those of G if A is not symmetric."""
        values = self.sign * (modes.values - self.shift)
        values = on_device(values, self.op.device, self.op.torch_dtype)
        block = self.sides.join(by_problem(self.sides, modes.problem, modes.vectors[0]))
        if self.symmetric and self.factor is not None:
            images = flatten_vectors(self.factor.apply(block))
            space = VectorSpace.of(self.op, self.op.domain)
            block = _in_order(images, space).reshape(-1, *self.op.domain.shape)
        return values, block


def by_problem(
    sides: Batches, problem: Int[Tensor, " mode"], vectors: Shaped[Tensor, "mode entry"]
) -> Shaped[Tensor, "problem mode entry"]:
    """Place the vector of each mode in its problem, with zeros in the others."""
    whole = vectors.new_zeros(sides.count, *vectors.shape)
    here, mine = sides.here_of(problem)
    here, mine = (on_device(index, vectors.device, index.dtype) for index in (here, mine))
    whole[here, mine] = vectors[mine]
    return whole


def _gram_factor(
    op: TrajectoryOperator, symmetric: bool, n_modes: int
) -> TrajectoryOperator | None:
    """F with ``G = F* F``; None if G is the operator itself."""
    if not symmetric:
        return op.H if op.shape[0] < op.shape[1] else op
    root = op.root
    if root is None or not n_modes < root.shape[1] < root.shape[0]:
        return None
    # The blocks of A may be smaller than the whole domain of R.
    size = Batches(root.domain, block_diagonal_dims(root)).size
    return root if size <= Batches(op.domain, block_diagonal_dims(op)).size else None


def _in_order(rows: Float[Tensor, "mode entry"], space: VectorSpace) -> Float[Tensor, "mode entry"]:
    """Orthonormal rows with the same leading spans; rows that vanish become arbitrary ones.

    The images of modes are orthogonal but for rounding, which comes from the largest and spoils
    the smallest. Each image is therefore made orthogonal to those before it.
    """
    unit = rows.double()  # of long rows, single precision would lose a digit
    unit /= space.lengths(unit)[:, None].clamp_min(torch.finfo(rows.dtype).tiny)
    q, coords = space.orthonormal(unit)
    signs = beside(torch.where(coords.diagonal() < 0, -1, 1), q)
    return (q * signs[:, None]).to(rows.dtype)
