"""Train a model with checkpoints, and read checkpoints back."""

from kpops.learning.checkpoints import Checkpoints, checkpoints
from kpops.learning.options import logarithmic, mean_below
from kpops.learning.training import train
from kpops.learning.watching import Watch

__all__ = ["Checkpoints", "Watch", "checkpoints", "logarithmic", "mean_below", "train"]
