"""What processes have to agree on before they share an operator, and how they fail together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
import torch.distributed as dist
from torch import Tensor, nn

from kpops.arrays import to_numpy
from kpops.distributed.parts import WHOLE, DistributedError, Parts


class Spread(NamedTuple):
    """How the trials are spread, and the number of valid steps on all processes."""

    parts: Parts
    n_valid: int


class Processes:
    """The processes of a group while they linearise together; none where `group` is None."""

    def __init__(self, group: Any) -> None:
        self.group = group
        if group is None:
            return
        if not isinstance(group, dist.ProcessGroup):
            raise TypeError(
                f"process_group is a {type(group).__name__}: pass torch.distributed.group.WORLD "
                "after torch.distributed.init_process_group, or the result of new_group"
            )
        if dist.get_rank(group) < 0:
            raise ValueError("process_group does not include this process: leave it out here")

    def spread(self, states: Tensor, n_valid: int, facts: Mapping[str, Any]) -> Spread:
        """Agree on everything but the trials."""
        if self.group is None:
            return Spread(WHOLE, n_valid)
        nccl = dist.get_backend(self.group) == "nccl"
        if nccl != (states.device.type == "cuda"):
            raise ValueError(
                f"the model is on {states.device}, and process_group communicates by "
                f"{dist.get_backend(self.group)}: initialise it with backend "
                f"{'gloo' if nccl else 'nccl'!r}, or pass device="
            )
        facts = {"dtype": str(states.dtype), "steps": states.shape[1], **facts}
        facts = {**facts, "units": states.shape[2]}
        everyone = self.agree(facts, (len(states), n_valid))
        counts = tuple(n for n, _ in everyone)
        parts = Parts(counts, self.group) if len(counts) > 1 else WHOLE
        return Spread(parts, sum(n for _, n in everyone))

    def agree(self, facts: Mapping[str, Any], own: Any = None) -> list[Any]:
        """Refuse facts that differ between the processes; return what each has of its `own`."""
        if self.group is None:
            return [own]
        everyone = self.exchange((dict(facts), own))
        for rank, (theirs, _) in enumerate(everyone):
            wrong = [name for name in facts if theirs[name] != everyone[0][0][name]]
            if wrong:
                name = wrong[0]
                raise DistributedError(
                    f"process {rank} has {name} {theirs[name]}, process 0 {everyone[0][0][name]}: "
                    "pass the same on every process, in which only the trials may differ"
                )
        return [theirs for _, theirs in everyone]

    def exchange(self, mine: Any) -> list[Any]:
        """What every process has; raises if one of them failed before."""
        everyone: list[Any] = [None] * dist.get_world_size(self.group)
        try:
            dist.all_gather_object(everyone, mine, group=self.group)
        except RuntimeError as error:
            raise DistributedError(
                f"the processes of the group could not meet ({error}): look for the first error "
                "among them, and start all again"
            ) from error
        for rank, theirs in enumerate(everyone):
            if isinstance(theirs, _Failure):
                raise DistributedError(f"process {rank} failed: {theirs.message}")
        return everyone


class _Failure(NamedTuple):
    message: str


@contextmanager
def in_step(group: Any) -> Iterator[Processes]:
    """Let an error of one process be one of all, so that none waits for it."""
    processes = Processes(group)
    try:
        yield processes
    except DistributedError:
        raise  # the others know
    except Exception as error:
        if group is not None:
            with suppress(DistributedError):  # their errors, or our own come back
                processes.exchange(_Failure(f"{type(error).__name__}: {error}"))
        raise


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
