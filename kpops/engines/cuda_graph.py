"""Time loops without launch overhead: record the launches once, then replay them.

A recursion through time is hundreds of small kernels, and on a GPU launching one takes longer than
running it. A CUDA graph replays them all by one launch. It reads and writes fixed memory, so
argument and result are copied in and out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kpops import precision

Action = Callable[[Tensor], Tensor]
Key = tuple[str, str, str]
"""Name of an action, shape of its argument, and precision of its matrix products."""

# What all recordings of an engine may keep: bytes of arguments, and vectors. Large blocks keep the
# device busy for longer than a launch takes.
_BYTES, _VECTORS = 2**28, 256
# Operations that wait for the device inside their kernels, by the beginnings of their names, with
# exceptions, and the tags of those that return a number, or a size that depends on numbers.
_WAITING = ("linalg_", "_linalg_", "cholesky", "geqrf", "ormqr", "lu_", "_assert_async")
_RUNNING = ("linalg_vector_norm", "linalg_cross", "linalg_solve_triangular")
_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Recording(NamedTuple):
    """A recorded action on one shape: where it reads, where it writes, how to run it.

    `bytes_inside` is the memory that it holds beside its argument.
    """

    argument: Tensor
    result: Tensor
    replay: Callable[[], None]
    bytes_inside: int = 0

    @property
    def nbytes(self) -> int:
        """All that it holds."""
        return self.argument.nbytes + max(self.bytes_inside, self.result.nbytes)


def record(action: Action, argument: Tensor) -> Recording:
    """Record `action` on a CUDA tensor that stays in place.

    The current stream is the same afterwards, also where this fails.

    Raises
    ------
    RuntimeError
        If the action waits for the device, or cannot be recorded for another reason.
    """
    with torch.cuda.device(argument.device):
        side, graph = _side_stream(argument.device), torch.cuda.CUDAGraph()
        with _beside(torch.cuda.current_stream(), side):
            # What CUDA refuses in the midst of a recording leaves its allocator and its generator
            # of random numbers in a state of their own, so that is found out before. Libraries set
            # themselves up for the stream meanwhile.
            with _RefuseWaits():
                action(argument)
            before = torch.cuda.memory_reserved()
            # Other threads, such as those of a data loader, may allocate at the same time.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                result = action(argument)
            finally:
                graph.capture_end()
        inside = torch.cuda.memory_reserved() - before
    return Recording(argument, result, graph.replay, inside)


RECORD: dict[str, Callable[[Action, Tensor], Recording]] = {"cuda": record}
"""How loops are recorded, by type of device."""


@contextmanager
def _beside(current: torch.cuda.Stream, side: torch.cuda.Stream) -> Iterator[None]:
    """Launch on another stream, after what was launched before and before what comes next."""
    side.wait_stream(current)
    try:
        with torch.cuda.stream(side):
            yield
    finally:
        current.wait_stream(side)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which loops are recorded: CUDA refuses the default one."""
    return torch.cuda.Stream(device)


class _RefuseWaits(TorchDispatchMode):
    """Refuses operations for which the host waits for the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, result)) if isinstance(x, Tensor)]
        name = func.overloadpacket.__name__
        mixed = {x.device.type for x in tensors if x.ndim or name in ("_to_copy", "copy_")}
        if len(mixed) > 1:  # a copy; also of an index
            waits = True
        elif name == "lift_fresh":  # torch.tensor(..., device=), which copies before
            waits = result.device.type != "cpu"
        elif "index" in name:  # a mask is counted first
            waits = any(x.dtype in (torch.bool, torch.uint8) for x in tensors[1:])
        elif name.startswith(_RUNNING):
            waits = False
        else:
            waits = bool(_TAGS & set(func.tags)) or name.startswith(_WAITING)
        if waits:
            raise RuntimeError(f"{name} waits for the device")
        return result


def is_recording() -> bool:
    """Whether the user records what is launched now, so that nothing else may be."""
    return torch.backends.cuda.is_built() and torch.cuda.is_current_stream_capturing()


class Recorder:
    """Actions by name, recorded for the shapes in which their arguments come again.

    A recording costs a few runs of the loop, so one that comes once is not recorded. Of the
    recordings, those used last are kept. An action that cannot be recorded is run as it is, from
    then on; `failure` says why.
    """

    def __init__(self, record: Callable[[Action, Tensor], Recording] | None = None) -> None:
        self._record = record  # as RECORD says by default
        self._recordings: dict[Key, Recording] = {}  # those used last at the end
        self._met: set[Key] = set()
        self.failure: str | None = None
        self._was_short = False

    def __call__(self, name: str, action: Action, argument: Tensor) -> Tensor:
        """Return ``action(argument)``, by a recording where there is one."""
        if not 0 < argument.nbytes <= recorded_bytes(argument[:1]) // 2 or is_recording():
            return action(argument)
        key = name, str(tuple(argument.shape)), precision.current()
        recording = self._recordings.pop(key, None)
        if recording is None and key in self._met and self.failure is None:
            recording = self._try(action, argument)
        if recording is None:
            self._met.add(key)
            return action(argument)
        self._recordings[key] = recording
        recording.argument.copy_(argument)
        recording.replay()
        return recording.result.clone()

    def _try(self, action: Action, argument: Tensor) -> Recording | None:
        kept = 2 * argument.nbytes + sum(r.nbytes for r in self._recordings.values())
        while self._recordings and kept > recorded_bytes(argument[:1]):
            kept -= self._recordings.pop(next(iter(self._recordings))).nbytes
        record = self._record or RECORD[argument.device.type]
        try:
            return record(action, argument.clone())
        except RuntimeError as error:
            # A recording takes no memory that PyTorch has in reserve: free it, and try once more.
            short = isinstance(error, torch.OutOfMemoryError)
            if short:
                self._recordings.clear()
                torch.cuda.empty_cache()
            if self._was_short or not short:
                self.failure = str(error).partition("\n")[0]
            self._was_short = short
        return None

    def __getstate__(self) -> dict[str, Any]:
        # A copy makes anew what its engine keeps, so its first loop is not to be recorded either.
        return {**self.__dict__, "_recordings": {}, "_met": set()}


def recorded_bytes(vector: Tensor) -> int:
    """Bytes that all recordings of an engine take, but for the temporaries of the last."""
    return 2 * min(_BYTES, _VECTORS * vector.nbytes)
