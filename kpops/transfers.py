"""Between the host and a device: every transfer to the host waits for all that the device does."""

from __future__ import annotations

import torch
from torch import Tensor

_PINNED = 2**22  # bytes of a tensor that is pinned, at most


def on_host(*parts: Tensor) -> tuple[Tensor, ...]:
    """The tensors on the host, brought there in one transfer."""
    away = [part for part in parts if part.device.type != "cpu"]
    if not away:
        return parts
    together = torch.cat([part.flatten() for part in away]).cpu()
    pieces = iter(together.split([part.numel() for part in away]))
    return tuple(
        part if part.device.type == "cpu" else next(pieces).view(part.shape).to(part.dtype)
        for part in parts
    )


def on_device(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A tensor on a device, in that dtype; one of the host does not wait for a CUDA device."""
    tensor = tensor.to(dtype)
    from_host = tensor.device.type == "cpu" and device.type == "cuda"
    # PyTorch keeps pinned memory for ever; and a CUDA device may be simulated.
    from_host &= tensor.nbytes <= _PINNED and torch.backends.cuda.is_built()
    # The copy reads pinned memory later; PyTorch gives it to no other tensor before that.
    return (tensor.pin_memory() if from_host else tensor).to(device, non_blocking=from_host)


def beside(tensor: Tensor, other: Tensor) -> Tensor:
    """A tensor on the device of another, in its dtype."""
    return on_device(tensor, other.device, other.dtype)
