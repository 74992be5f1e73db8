"""The one object that communicates: how the trials of a vector are spread over processes.

Each process of a group holds some of the trials, in the order of the ranks, and all parameters. A
sum over trials is then a sum over processes; nothing else is ever sent. On one process the sums are
what they are given. Solvers and estimators, which know no other way to add up, run on every process
in step, on equal small numbers.
"""

from __future__ import annotations

import hashlib
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


class DistributedError(RuntimeError):
    """The processes of a group disagree, or one of them has ended."""


@dataclass
class Traffic:
    """How often this process has communicated, and how many bytes of its own it has sent."""

    calls: int = 0
    n_bytes: int = 0


@dataclass(frozen=True)
class Parts:
    """Trials spread over the processes of a group.

    Attributes
    ----------
    counts : tuple of int
        Number of trials of each process, in the order of the ranks; empty for one process.
    held : weak reference to a torch.distributed.ProcessGroup, or None
        Who communicates. A group that outlives ``destroy_process_group`` aborts Python at its exit.
    traffic : Traffic
        What has been sent.
    """

    counts: tuple[int, ...] = ()
    held: weakref.ref[dist.ProcessGroup] | None = field(default=None, compare=False)
    traffic: Traffic = field(default_factory=Traffic, compare=False)

    @property
    def many(self) -> bool:
        """Whether the trials are spread at all."""
        return len(self.counts) > 1

    @property
    def group(self) -> Any:
        """Who communicates; None for one process."""
        group = self.held and self.held()
        if self.many and group is None:
            raise DistributedError(
                "the process group of this operator has been destroyed: linearise again with a new "
                "one, and call torch.distributed.destroy_process_group at the end of the script"
            )
        return group

    @property
    def rank(self) -> int:
        """Position of this process."""
        return dist.get_rank(self.group) if self.many else 0

    @property
    def offset(self) -> int:
        """Number of the first trial here among all."""
        return sum(self.counts[: self.rank])

    @property
    def of_here(self) -> float:
        """Number of all trials over that of the trials here."""
        return sum(self.counts) / self.counts[self.rank] if self.many else 1.0

    def __getstate__(self) -> dict[str, Any]:
        if self.many:
            raise TypeError(
                "an operator spread over processes does not pickle: save its results, or "
                "linearise again where it is needed"
            )
        return self.__dict__

    def refuse_spread(self, what: object) -> None:
        """Raise where a function is not for trials spread over processes."""
        if self.many:
            raise ValueError(
                f"{what!r} is spread over {len(self.counts)} processes, which this does not take: "
                "eigsh, svds, eigvalsh, trace, frobenius_norm, spectral_norm, effective_rank, "
                "alignment and gradient_flow do; for the rest linearise in one process"
            )

    def check_interrupt(self, on_interrupt: str) -> None:
        """Refuse partial results, since processes do not stop at the same matvec."""
        if self.many and on_interrupt == "return":
            raise ValueError(
                f"on_interrupt='return' with {len(self.counts)} processes, which Ctrl-C does not "
                "stop at the same matvec: leave it at 'raise'"
            )

    def sum(self, *parts: Tensor) -> Any:
        """Sums over all processes, of tensors of one dtype and device, in one message."""
        if not self.many:
            return parts[0] if len(parts) == 1 else parts
        flat = torch.cat([part.detach().reshape(-1) for part in parts]).to(self.device)
        self._reduce(flat, dist.ReduceOp.SUM)
        flat = flat.to(parts[0].device)
        pieces = flat.split([part.numel() for part in parts])
        sums = tuple(p.view(part.shape) for p, part in zip(pieces, parts, strict=True))
        return sums[0] if len(sums) == 1 else sums

    def largest(self, value: float) -> float:
        """The largest of a number over all processes; NaN if one is."""
        if not self.many:
            return value
        is_nan = value != value  # which has no place in the order
        both = [-math.inf if is_nan else value, float(is_nan)]
        flat = torch.tensor(both, dtype=torch.float64, device=self.device)
        self._reduce(flat, dist.ReduceOp.MAX)
        largest, any_nan = flat.tolist()
        return math.nan if any_nan else largest

    def shared_generator(self, rng: np.random.Generator, *, fresh: bool) -> np.random.Generator:
        """That of the first process if it is fresh, else `rng`, which is the same on every one."""
        if fresh:
            seed = float(rng.integers(2**52)) if self.rank == 0 else 0.0
            return np.random.default_rng(int(self.sum(torch.tensor([seed], dtype=torch.float64))))
        state = repr(rng.bit_generator.state).encode()
        number = int.from_bytes(hashlib.sha256(state).digest()[:6], "big")
        if self.largest(number) != self.least(number):
            raise DistributedError(
                "rng is in different states on the processes: pass the same seed on every one, "
                "which draws other numbers for its own trials all the same"
            )
        return rng

    def least(self, value: float) -> float:
        """The least of a number over all processes."""
        return -self.largest(-value)

    def any(self, holds: bool) -> bool:
        """Whether something holds on one of the processes."""
        return bool(self.largest(float(holds)))

    def concatenated(self, mine: Tensor, lengths: Sequence[int]) -> Tensor:
        """Rows of all processes, as many as `lengths` says, in the order of the ranks."""
        if not self.many:
            return mine
        whole = mine.new_zeros(sum(lengths), *mine.shape[1:])
        whole.split(list(lengths))[self.rank].copy_(mine)
        return self.sum(whole)

    @property
    def device(self) -> torch.device:
        """Where what is sent has to be."""
        on_gpus = dist.get_backend(self.group) == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if on_gpus else torch.device("cpu")

    def _reduce(self, flat: Tensor, operation: Any) -> None:
        self.traffic.calls += 1
        self.traffic.n_bytes += flat.numel() * flat.element_size()
        try:
            dist.all_reduce(flat, op=operation, group=self.group)
        except RuntimeError as error:  # gloo and NCCL raise it when a peer is gone, or too late
            raise DistributedError(
                f"process {self.rank} of {len(self.counts)} has lost another one, which ended or "
                f"did not answer within the timeout of its process group ({error}): look for the "
                "first error among the processes, and start all again"
            ) from error


WHOLE = Parts()
"""Vectors that one process holds, or that every process holds whole."""
