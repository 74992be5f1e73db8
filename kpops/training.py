"""Train a model with checkpoints, read them back, and measure as the training goes."""

from kpops.learning.checkpoints import Checkpoints, checkpoints
from kpops.learning.measured import Measured, lightning_callback
from kpops.learning.options import logarithmic, mean_below
from kpops.learning.training import train
from kpops.learning.watching import Watch

__all__ = [
    "Checkpoints",
    "Measured",
    "Watch",
    "checkpoints",
    "lightning_callback",
    "logarithmic",
    "mean_below",
    "train",
]
