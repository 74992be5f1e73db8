"""A self-adjoint operator as the solvers see it, in the smallest space that has its spectrum.

- Where the operator couples no two trials, each is a problem of its own.
- Where ``A = R R*`` is known with fewer columns of R than rows, ``R* R`` has the same eigenvalues
  but for zeros, and ``u = R v / sigma`` leads back.

The operator is scaled to about one, since squares of small numbers would underflow in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from kpops.operators.base import TrajectoryOperator
from kpops.operators.dense import Batches, uncoupled
from kpops.spectral import common
from kpops.spectral.solvers.krylov import Family, Lanczos, Modes, run
from kpops.spectral.solvers.search import Search

# Vectors of a block that looks for one mode, to see whether any is missing.
FEW = 2


class EigenProblem:
    """The eigenvalue problem of an operator.

    Parameters
    ----------
    op : TrajectoryOperator
        Self-adjoint.
    k : int
        Number of modes that are wanted.
    rng : numpy.random.Generator
        Source of the vector that finds the scale.
    together : bool
        Take independent problems as one.

    Attributes
    ----------
    family : Family
        The space, or the spaces, in which it is solved.
    where : str
        The same in words.
    scale : float
        By which eigenvalues are divided; zero for the zero operator.
    """

    def __init__(
        self, op: TrajectoryOperator, k: int, rng: np.random.Generator, *, together: bool = False
    ) -> None:
        self.op = op
        self.sides = Batches(op.domain, () if together else uncoupled(op))
        root = op.root if self.sides.count == 1 else None
        # The zeros that R* R lacks are wanted if there are no more others than modes.
        shorter = root is not None and k < root.domain.size < op.domain.size
        self.root = root if shorter else None
        if self.root is not None:
            self.sides = Batches(self.root.domain, ())
            self.where = f"the {self.sides.size} dims of the domain of {self.root.symbol}"
        elif self.sides.count > 1:
            dims = " and ".join(uncoupled(op))
            self.where = f"{self.sides.count} problems of size {self.sides.size}, one per {dims}"
        else:
            self.where = f"the {self.sides.size} dims of the operator"
        self.family = Family(self.sides.count, self.sides.size, op.torch_dtype, op.device)
        space = op.domain if self.root is None else self.root.domain
        probe = common.random_block(op, space, 1, rng)
        self.scale = 1.0
        self.scale = float(self.act(self.sides.split(probe)).double().norm() / probe.norm())
        if not np.isfinite(self.scale):
            raise ValueError(f"{op!r} is not finite: check the weights and the scale")

    def act(self, x: Tensor) -> Tensor:
        """Apply the scaled operator; (problem, vector, entry) to the same."""
        block = self.sides.join(x)
        if self.root is None:
            image = self.op.apply(block)
        else:
            image = self.root.apply_adjoint(self.root.apply(block))
        image = self.sides.split(image).contiguous()
        return image if self.scale in (0, 1) else image.div_(self.scale)

    def solve(self, method: Callable[..., Modes], search: Search, block: int) -> Modes:
        """Modes by a method that takes (act, family, search, block)."""
        return method(self.act, self.family, search, block)

    def vouch(self, modes: Modes, search: Search) -> bool:
        """Whether nothing larger is left off these modes, by a fresh random block.

        A method may converge to other modes than the leading ones, or find too few copies of one.
        """
        given = self.family
        found = modes.vectors[0].new_zeros(len(modes.values), given.n_problems, given.size)
        found[torch.arange(len(found)), modes.problem] = modes.vectors[0]
        found = found.transpose(0, 1).contiguous()
        least = float(modes.values.abs().min())
        largest = float(modes.values.abs().max())
        slack = 0.5 * search.tol * (math.sqrt(least * largest) if search.squares else largest)

        def off(x: Tensor) -> Tensor:
            return x - (x @ found.mT) @ found

        def larger(told: object) -> bool:
            return bool(abs(told.values[0]) > least + slack)  # type: ignore[attr-defined]

        budget = search.budget - search.spent
        rest = Search(
            1,
            search.tol,
            budget,
            search.rng,
            callback=larger,
            floor=largest,
            rounding=search.rounding,
            below=least + slack,
            squares=search.squares,
        )
        block = min(FEW, given.size)
        if not rest.can_afford(block):
            return False
        left = run(Lanczos(lambda x: off(self.act(off(x))), given, rest, block), rest, block)
        search.spend(rest.spent)
        return left.sure == 1 and float(left.values[0].abs()) <= least + slack

    def lift(self, modes: Modes) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenfunctions (mode, *dims) of the operator itself."""
        values = (modes.values * self.scale).to(self.op.torch_dtype)
        vectors = modes.vectors[0]
        if self.root is not None:
            images = common.columns(self.root.apply(vectors))
            return values, in_order(images).reshape(-1, *self.op.domain.shape)
        whole = vectors.new_zeros(self.family.n_problems, len(vectors), self.family.size)
        whole[modes.problem, torch.arange(len(vectors))] = vectors
        return values, self.sides.join(whole)


def block_lanczos(act: Callable, family: Family, search: Search, block: int) -> Modes:
    """Leading modes by :class:`kpops.spectral.solvers.krylov.Lanczos`."""
    return run(Lanczos(act, family, search, block), search, block)


def in_order(rows: Tensor) -> Tensor:
    """Orthonormal rows with the same leading spans; what vanishes is replaced by something.

    The images of modes are orthogonal but for rounding, which comes from the largest and spoils
    the smallest: so each is freed from those before it.
    """
    lengths = rows.norm(dim=1, keepdim=True)
    q, r = torch.linalg.qr((rows / lengths.clamp_min(torch.finfo(rows.dtype).tiny)).mT)
    return (q * torch.where(r.diagonal() < 0, -1, 1)).mT.contiguous()
