"""Train a model with checkpoints, read them back, and measure as the training goes."""

from kpops.learning.activations import (
    activation_ratio,
    feature_updates,
    fit_activation_ratio,
    softmax_collapse,
)
from kpops.learning.checkpoints import Checkpoints, checkpoints
from kpops.learning.homogeneity import homogeneity, naive_loss_minimization
from kpops.learning.kernel_evolution import kernel_evolution
from kpops.learning.measured import Measured, lightning_callback
from kpops.learning.options import logarithmic, mean_below
from kpops.learning.stability_gap import stability_gap
from kpops.learning.subspaces import InSubspace
from kpops.learning.training import train
from kpops.learning.watching import Watch
from kpops.learning.weights_over_training import correlated_modes, weight_pca, weight_trajectories
from kpops.reconstruction.teacher_forcing import reconstruct

__all__ = [
    "Checkpoints",
    "InSubspace",
    "Measured",
    "Watch",
    "activation_ratio",
    "checkpoints",
    "correlated_modes",
    "feature_updates",
    "fit_activation_ratio",
    "homogeneity",
    "kernel_evolution",
    "lightning_callback",
    "logarithmic",
    "mean_below",
    "naive_loss_minimization",
    "reconstruct",
    "softmax_collapse",
    "stability_gap",
    "train",
    "weight_pca",
    "weight_trajectories",
]
