"""Trials spread over processes: the one object that communicates, and what gathers results."""

from __future__ import annotations

from kpops.distributed.parts import WHOLE, DistributedError, Parts

__all__ = ["WHOLE", "DistributedError", "Parts"]
