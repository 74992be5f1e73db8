"""Train a model with checkpoints, read them back, and measure as the training goes."""

from kpops.learning.checkpoints import Checkpoints, checkpoints
from kpops.learning.measured import Measured, lightning_callback
from kpops.learning.options import logarithmic, mean_below
from kpops.learning.subspaces import InSubspace
from kpops.learning.training import train
from kpops.learning.watching import Watch
from kpops.learning.weights_over_training import correlated_modes, weight_pca, weight_trajectories

__all__ = [
    "Checkpoints",
    "InSubspace",
    "Measured",
    "Watch",
    "checkpoints",
    "correlated_modes",
    "lightning_callback",
    "logarithmic",
    "mean_below",
    "train",
    "weight_pca",
    "weight_trajectories",
]
