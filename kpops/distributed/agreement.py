"""What processes have to agree on before they share an operator, and how they fail together."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from kpops.arrays import to_numpy
from kpops.distributed.parts import WHOLE, DistributedError, Parts
from kpops.kinds import described


class Processes:
    """The processes of a group while they work in step; this one alone where `group` is None."""

    def __init__(self, group: Any) -> None:
        self.group = group
        if group is None:
            self.rank, self.n = 0, 1
            return
        if isinstance(group, int) and group == dist.GroupMember.NON_GROUP_MEMBER:
            raise ValueError("the process group does not include this process: leave it out here")
        if not isinstance(group, dist.ProcessGroup):
            raise TypeError(
                f"the process group is {described(group)}: pass torch.distributed.group.WORLD "
                "after torch.distributed.init_process_group, or the result of new_group"
            )
        self.rank, self.n = dist.get_rank(group), dist.get_world_size(group)

    def spread(
        self, n_trials: int, n_valid: int, facts: Mapping[str, Any], device: torch.device
    ) -> tuple[Parts, int]:
        """Agree on `facts`; how the trials are spread, and the valid steps of all processes."""
        if self.group is None:
            return WHOLE, n_valid
        backend = dist.get_backend(self.group)
        if (backend == "nccl") != (device.type == "cuda"):
            raise ValueError(
                f"the model is on {device}, and process_group communicates by {backend}: "
                f"initialise it with backend {'gloo' if backend == 'nccl' else 'nccl'!r}, or pass "
                "device="
            )
        everyone = self.agree(facts, (n_trials, n_valid, rounding()))
        if len({rounded for *_, rounded in everyone}) > 1:
            raise DistributedError(
                "the processes round differently, as different processors or numbers of threads "
                "do, and would decide differently: start all with the same environment variables, "
                "such as OMP_NUM_THREADS=1, ATEN_CPU_CAPABILITY=avx2 and MKL_CBWR=AVX2"
            )
        counts = tuple(n for n, *_ in everyone)
        parts = Parts(counts, weakref.ref(self.group)) if self.n > 1 else WHOLE
        return parts, sum(n for _, n, _ in everyone)

    def agree(self, facts: Mapping[str, Any], own: Any = None) -> list[Any]:
        """Refuse facts that differ between the processes; return what each has of its `own`."""
        everyone = self.exchange((dict(facts), own))
        first = everyone[0][0]
        for rank, (theirs, _) in enumerate(everyone):
            name = next((name for name in first if theirs.get(name) != first[name]), None)
            if name is not None:
                raise DistributedError(
                    f"process {rank} has {name} {theirs.get(name)}, process 0 {first[name]}: "
                    "pass the same on every process, in which only the trials may differ"
                )
        return [theirs for _, theirs in everyone]

    def exchange(self, mine: Any = None) -> list[Any]:
        """What every process has; raises if one of them failed before."""
        everyone: list[Any] = [mine] * self.n
        if self.group is not None:
            with _meeting():
                dist.all_gather_object(everyone, mine, group=self.group)
        for rank, theirs in enumerate(everyone):
            if isinstance(theirs, _Failure):
                raise DistributedError(f"process {rank} failed: {theirs.message}")
        return everyone

    def in_turn(self, mine: Any) -> Iterator[Any]:
        """What each process has, of which one at a time is held here."""
        for rank in range(self.n):
            held = [mine if rank == self.rank else None]
            if self.group is not None:
                source = dist.get_global_rank(self.group, rank)
                with _meeting():
                    dist.broadcast_object_list(held, src=source, group=self.group)
            yield held[0]


class _Failure(NamedTuple):
    message: str


@contextmanager
def _meeting() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL raise it when a peer is gone, or too late
        raise DistributedError(
            "the processes of the group could not meet, since one has ended or did not answer "
            f"within the timeout of the group ({error}): look for the first error among them, and "
            "start all again"
        ) from error


@contextmanager
def in_step(group: Any) -> Iterator[Processes]:
    """Let an error of one process be one of all, so that none waits for it."""
    processes = Processes(group)
    try:
        yield processes
    except DistributedError:
        raise  # the others know
    except Exception as error:
        with suppress(DistributedError):  # their errors, or our own come back
            processes.exchange(_Failure(f"{type(error).__name__}: {error}"))
        raise


def rounding() -> str:
    """A short hash of how small matrices, which all processes have whole, are rounded here."""
    a = torch.arange(4096, dtype=torch.float64).sin().reshape(64, 64)
    return fingerprint(a, a @ a.mT, *torch.linalg.eigh(a + a.mT), *torch.linalg.qr(a))


def fingerprint(*holders: Any) -> str:
    """A short hash of the values of arrays, and of the tensors of modules, to compare them."""
    found = hashlib.sha256()
    for holder in holders:
        held = holder.state_dict() if isinstance(holder, nn.Module) else {"": holder}
        for name, value in held.items():
            found.update(name.encode())
            if isinstance(value, Tensor):
                value = to_numpy(value)
            if isinstance(value, np.ndarray):
                text = value.dtype == object
                found.update(str(value.tolist()).encode() if text else value.tobytes())
    return found.hexdigest()[:16]
