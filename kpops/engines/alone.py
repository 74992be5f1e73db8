"""What a product holds while it computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kpops.engines.base import ONE_AT_A_TIME
from kpops.engines.load import considerate


@contextmanager
def alone(device: torch.device) -> Iterator[None]:
    """One product at a time, in full precision, recorded by no autograd; see TrajectoryOperator."""
    autocast = torch.autocast(device.type, enabled=False)
    with ONE_AT_A_TIME, torch.inference_mode(False), torch.no_grad(), autocast, considerate():
        yield
