"""Trials spread over processes: the one object that communicates, and what gathers results."""

from __future__ import annotations

from kpops.distributed.gathering import gather
from kpops.distributed.parts import WHOLE, DistributedError, Parts
from kpops.distributed.saving import to_zarr

__all__ = ["WHOLE", "DistributedError", "Parts", "gather", "to_zarr"]
