r"""The engine for models that couple no two units: the propagator as a scan over time.

State Jacobians are diagonal, or small blocks over the variables of a unit. Two steps are one of the
same kind, with A[2i+1] A[2i] as Jacobian, so half of the steps, then a quarter of them, and so on
are propagated alone, and the steps between them are filled in behind (odd-even reduction; Blelloch
1990, Prefix sums and their applications). With v = P q, positions t from 0:

    q'[i] = q[2i+1] + A[2i+1] q[2i],    A'[i] = A[2i+1] A[2i],    v[1::2] = P' q',
    v[2i] = q[2i] + A[2i] v[2i-1],

and for P\* the same transposed, in the opposite order. That makes about 2 n multiplications by A
for a vector of n numbers in about 2 log2(T) rounds, instead of n in T rounds. Nothing is ever
divided by a product of Jacobians, which underflows, and nothing is formed but such products.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from kpops.engines.base import Engine
from kpops.engines.memory import uninitialised_like
from kpops.engines.rowwise import TEMPORARIES
from kpops.engines.trajectory import Block, Trajectory
from kpops.models.diagonal import DiagonalRecurrence
from kpops.models.recurrence import Recurrence

Blocks = Float[Tensor, "to from trial time hidden"]
"""State Jacobians of uncoupled units: for each, a matrix over its variables."""
Round = Float[Tensor, "to from trial _ hidden"]
"""Those of the steps of a round of the scan."""
Split = Float[Tensor, "block trial time variable hidden"]
"""Vectors, variable by variable."""


class ScanEngine(Engine):
    """Stored diagonals of the state Jacobians, a scan over time, and kept maps J and J*.

    A GPU is busy with all units of a few steps only for a moment, so there the propagator is a scan
    of logarithmically many rounds. A core of a CPU is kept busy by a single step, so there it is
    one compiled pass, which takes each number once.

    With `check`, derivatives at one trial's first steps are compared with automatic
    differentiation; a ValueError says that the model couples units.
    """

    name = "scan"
    serves = DiagonalRecurrence
    known_as = "to couple no two units"
    keeps = True
    recomputed = ("blocks", "rounds")
    recurrence: DiagonalRecurrence

    def __init__(
        self,
        recurrence: Recurrence,
        parameters: dict[str, Tensor],
        trajectory: Trajectory,
        *,
        check: bool = True,
    ) -> None:
        super().__init__(recurrence, parameters, trajectory)
        self.n_variables = len(self.recurrence.variables)
        if check:
            ScanEngine(recurrence, parameters, trajectory.beginning, check=False).check_derivatives(
                (),
                "couples units, which its {} denies",
                "the next state of a unit may depend on that unit's own variables alone",
            )

    @staticmethod
    def bytes_needed(
        recurrence: Recurrence, names: Sequence[str], trajectory: Trajectory, *, exact: bool = False
    ) -> int:
        """The blocks of all rounds, and about 24 numbers per state variable for J and J*."""
        assert isinstance(recurrence, DiagonalRecurrence)
        return trajectory.states.nbytes * (2 * len(recurrence.variables) + TEMPORARIES)

    @cached_property
    def blocks(self) -> Blocks:
        """A[b, t]: one jvp for each variable gives it."""
        states = self.trajectory.states
        ones = states.new_zeros(self.n_variables, *states.shape)
        for variable, tangent in enumerate(ones):
            self._split(tangent)[..., variable, :] = 1
        columns = self._split(self._unflatten(self.rows.state_jvp(ones.flatten(1, 2))))
        return columns.movedim(3, 0).contiguous()

    @cached_property
    def rounds(self) -> list[Round]:
        """The blocks of every round of the scan."""
        return paired(self.blocks)

    def _split(self, v: Float[Tensor, "*batch unit"]) -> Float[Tensor, "*batch variable hidden"]:
        return v.unflatten(-1, (self.n_variables, -1))

    def _recur(self, q: Block, *, backwards: bool) -> Block:
        if q.device.type != "cpu":
            return recur(self.rounds, q, backwards=backwards)
        from kpops.engines.cpu import scan_kernels

        return scan_kernels.recur(self.blocks, q, backwards=backwards)

    def _jvp_steps(self, v: Block) -> Block:
        result = torch.zeros_like(v)
        _jvp(self.blocks, self._split(v), into=self._split(result))
        return result

    def _vjp_steps(self, a: Block) -> Block:
        result = torch.zeros_like(a)
        _jvp(self.blocks.transpose(0, 1), self._split(a), into=self._split(result))
        return result

    def step_jacobians(self, t: int) -> Float[Tensor, "trial unit unit"]:
        """A of the step at position t."""
        blocks = torch.diag_embed(self.blocks[:, :, :, t])  # (to, from, trial, hidden, hidden)
        return blocks.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)


# The scan. What is written to are views of one tensor.


def paired(blocks: Blocks) -> list[Round]:
    """A of all steps, of pairs of steps, of pairs of pairs, and so on to a single one."""
    rounds = [blocks]
    while rounds[-1].shape[3] > 1:
        later = rounds[-1][:, :, :, 1::2]
        earlier = rounds[-1][:, :, :, : 2 * later.shape[3] : 2]
        rounds.append(torch.einsum("ij...,jk...->ik...", later, earlier))
    return rounds


def recur(rounds: Sequence[Round], q: Block, *, backwards: bool) -> Block:
    """P q, or P* q if `backwards`, by a scan."""
    v = uninitialised_like(q).copy_(q)
    scan = _scan_back if backwards else _scan
    scan(rounds, v.unflatten(-1, (len(rounds[0]), -1)))
    return v


def _scan(rounds: Sequence[Round], v: Split) -> None:
    """Turn q into P q."""
    if v.shape[2] == 1:
        return
    A, *coarser = rounds
    odd = v[:, :, 1::2]
    _jvp(A[:, :, :, 1::2], v[:, :, : 2 * odd.shape[2] : 2], into=odd)
    _scan(coarser, odd)
    _jvp(A[:, :, :, 2::2], v[:, :, 1:-1:2], into=v[:, :, 2::2])


def _scan_back(rounds: Sequence[Round], v: Split) -> None:
    """Turn a into P* a: every line of :func:`_scan` transposed, from the last to the first."""
    if v.shape[2] == 1:
        return
    A, *coarser = rounds
    transposed, odd = A.transpose(0, 1), v[:, :, 1::2]
    _jvp(transposed[:, :, :, 2::2], v[:, :, 2::2], into=v[:, :, 1:-1:2])
    _scan_back(coarser, odd)
    _jvp(transposed[:, :, :, 1::2], odd, into=v[:, :, : 2 * odd.shape[2] : 2])


def _jvp(A: Blocks, v: Split, into: Split) -> None:
    """Add A v to `into`."""
    for row, blocks in enumerate(A):
        for column, block in enumerate(blocks):
            into[..., row, :].addcmul_(block, v[..., column, :])
