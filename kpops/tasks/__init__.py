"""Tasks: labelled trials as xarray Datasets of inputs, targets and mask."""

from kpops.tasks.accuracy import accuracy
from kpops.tasks.driscoll import DRISCOLL_TASKS, driscoll
from kpops.tasks.memory_pro import (
    delay_anti,
    delay_pro,
    memory_anti,
    memory_pro,
    memory_pro_one_hot,
)
from kpops.tasks.mixing import four_task_mix, mix
from kpops.tasks.neurogym import from_neurogym
from kpops.tasks.registry import make, names, register
from kpops.tasks.streams import flip_flop, integration, low_rank_forecast

__all__ = [
    "DRISCOLL_TASKS",
    "accuracy",
    "delay_anti",
    "delay_pro",
    "driscoll",
    "flip_flop",
    "four_task_mix",
    "from_neurogym",
    "integration",
    "low_rank_forecast",
    "make",
    "memory_anti",
    "memory_pro",
    "memory_pro_one_hot",
    "mix",
    "names",
    "register",
]
