"""A self-adjoint operator as the solvers see it, in the smallest space that has its spectrum.

- Where the operator couples no two trials, each is a problem of its own.
- Where ``A = R R*`` is known with fewer columns of R than rows, ``R* R`` has the same eigenvalues
  but for zeros, and ``u = R v / sigma`` leads back.
- One end of the spectrum is made that of largest magnitude by a shift, ``s + A`` or ``s - A`` with
  s above ``||A||``. Krylov spaces are the same, and so is all that is known of them.

The operator is of about one (:func:`kpops.linalg.scaling.normalized`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kpops.linalg.lanczos import Act, Aside, Family, Lanczos, Modes, run
from kpops.linalg.rounding import columns
from kpops.linalg.search import Search
from kpops.operators.base import TrajectoryOperator
from kpops.operators.dense import Batches, uncoupled

# Vectors of a block that looks for one mode, to see whether any is missing.
FEW = 2


# Probability that a mode is missing at which it counts as excluded.
_UNSEEN = 1e-6


# Extent of the rest, as a part of the level, that is taken for rounding.
_FLAT = 1e-12


class EigenProblem:
    """The eigenvalue problem of an operator.

    Parameters
    ----------
    op : TrajectoryOperator
        Self-adjoint, of about one.
    k : int
        Number of modes that are wanted.
    together : bool
        Take independent problems as one.
    sign, shift : float
        Solve for ``sign * A + shift`` in place of A.

    Attributes
    ----------
    family : Family
        The space, or the spaces, in which it is solved.
    where : str
        The same in words.
    """

    def __init__(
        self,
        op: TrajectoryOperator,
        k: int,
        *,
        together: bool = False,
        sign: float = 1.0,
        shift: float = 0.0,
    ) -> None:
        self.op = op
        self.sign, self.shift = sign, shift
        self.positive = op.positive and not shift
        self.sides = Batches(op.domain, () if together else uncoupled(op))
        root = op.root if self.sides.count == 1 and not shift else None
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
        if shift:
            self.where += f", shifted by {shift:.3g}"
        self.family = Family(self.sides.count, self.sides.size, op.torch_dtype, op.device)

    def act(self, x: Tensor) -> Tensor:
        """Apply the operator; (problem, vector, entry) to the same."""
        block = self.sides.join(x)
        if self.root is None:
            image = self.op.apply(block)
            if self.shift:
                image = torch.add(image * self.sign, block, alpha=self.shift)
        else:
            image = self.root.apply_adjoint(self.root.apply(block))
        return self.sides.split(image).contiguous()

    def bring(self, block: Tensor) -> Tensor:
        """Vectors of the operator's domain (vector, *dims) in the space of the problem."""
        if self.root is not None:
            block = self.root.apply_adjoint(block)
        return self.sides.split(block).contiguous()

    def vouch(self, modes: Modes, search: Search, process: Lanczos | None = None) -> bool:
        """Whether nothing larger is left off these modes, by a fresh random block.

        A method may converge to other modes than the leading ones, or find too few copies of one.
        The search is aside from the modes, and from what else `process`, which found them, knows.
        """
        least = float(modes.values.abs().min())
        largest = float(modes.values.abs().max())
        unit = math.sqrt(least * largest) if search.squares else largest
        level = least + 0.5 * search.tol * unit
        aside = Aside(self._apart(modes), level) if process is None else process.aside(level)

        def off(x: Tensor) -> Tensor:
            return x - (x @ aside.vectors.mT) @ aside.vectors

        def act(x: Tensor) -> Tensor:
            return off(self.act(off(x)))

        def decided(theta: float, spent: int) -> bool:
            degree = spent // block - (1 if self.positive else 2)
            return theta > level or self._chance(theta, aside.level, degree, block) <= _UNSEEN

        rest = Search(
            1,
            search.tol,
            search.budget - search.spent,
            search.rng,
            floor=largest,
            rounding=search.rounding,
            ended=decided,
            squares=search.squares,
        )
        block = min(FEW, self.family.size)
        if not rest.can_afford(block):
            return False
        left = run(Lanczos(act, self.family, rest, block), rest, block)
        search.spend(rest.spent)
        return left.sure == 1 and float(left.values[0].abs()) <= aside.level

    def _apart(self, modes: Modes) -> Tensor:
        """The vectors of modes by problem, (problem, mode, entry); zeros in the other problems."""
        shape = len(modes.values), self.family.n_problems, self.family.size
        vectors = modes.vectors[0].new_zeros(shape)
        vectors[torch.arange(len(vectors)), modes.problem] = modes.vectors[0]
        return vectors.transpose(0, 1).contiguous()

    def _chance(self, theta: float, level: float, degree: int, block: int) -> float:
        """Bound the probability that a value above `level` is unseen when the largest is `theta`.

        Some polynomial of the degree is T (of Chebyshev) times as large at the level as anywhere
        in the interval [low, theta]. With a start whose part along the hidden mode is c, it would
        show as a value above theta unless ``c^2 T^2 (level - theta) <= theta - low``, and a random
        vector of n entries has so small a c with probability ``c sqrt(2 n / pi)`` at most (after
        Kuczynski and Wozniakowski 1992, Estimating the largest eigenvalue by the power and Lanczos
        algorithms with a random start). Every vector of the block has to miss it.
        """
        if theta >= level or degree < 1:
            return 1.0 if theta else 0.0
        low = 0.0 if self.positive else -theta
        ratio = (level - theta) / max(theta - low, _FLAT * level)
        growth = degree * math.acosh(1 + 2 * ratio) - math.log(2)
        log_miss = 0.5 * math.log(2 * self.family.size / math.pi / ratio) - growth
        return self.family.n_problems * math.exp(min(0.0, block * log_miss))

    def lift(self, modes: Modes) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenfunctions (mode, *dims) of the operator itself."""
        values = (self.sign * (modes.values - self.shift)).to(self.op.torch_dtype)
        vectors = modes.vectors[0]
        if self.root is not None:
            images = columns(self.root.apply(vectors))
            return values, in_order(images).reshape(-1, *self.op.domain.shape)
        whole = vectors.new_zeros(self.family.n_problems, len(vectors), self.family.size)
        whole[modes.problem, torch.arange(len(vectors))] = vectors
        return values, self.sides.join(whole)


def block_lanczos(act: Act, family: Family, search: Search, block: int) -> Modes:
    """Leading modes by :class:`kpops.linalg.lanczos.Lanczos`."""
    return run(Lanczos(act, family, search, block), search, block)


def in_order(rows: Tensor) -> Tensor:
    """Orthonormal rows with the same leading spans; what vanishes is replaced by something.

    The images of modes are orthogonal but for rounding, which comes from the largest and spoils
    the smallest: so each is freed from those before it.
    """
    unit = rows.double()  # of long rows, single precision would lose a digit
    unit /= unit.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    q, r = torch.linalg.qr(unit.mT)
    return (q * torch.where(r.diagonal() < 0, -1, 1)).mT.to(rows.dtype).contiguous()
