"""Tasks: labelled trials as xarray Datasets of inputs, targets and mask."""

from kpops.tasks.memory_pro import memory_pro

__all__ = ["memory_pro"]
