"""kpops: how gradient descent shapes the dynamics of recurrent networks.

Linearise a PyTorch model about its trajectories and hold the operators of the KPFlow paper,
matrix-free: the parameter operator K, the linearized flow propagator P and the flow operator
P K P*.
"""

from kpops import models, plot, tasks, training
from kpops.learning.accumulation import accumulate_interference
from kpops.learning.collapse import collapse
from kpops.learning.gradient_flow import gradient_flow
from kpops.learning.interference import interference, interference_operator
from kpops.learning.over_training import over_training
from kpops.learning.rank_bounds import rank_bounds
from kpops.learning.trajectories import trajectory_dimension
from kpops.learning.truncated_flow import truncated_flow
from kpops.linearization import Linearization, linearize
from kpops.models.network import Network
from kpops.operators import TrajectoryOperator
from kpops.spectral import (
    alignment,
    controllability_gramian,
    diagonal,
    effective_rank,
    eigsh,
    eigvalsh,
    frobenius_map,
    frobenius_norm,
    observability_gramian,
    schatten_norm,
    spectral_density,
    spectral_norm,
    svds,
    trace,
    truncate,
)
from kpops.spectral.common import ConvergenceWarning

__version__ = "0.1.0"

__all__ = [
    "ConvergenceWarning",
    "Linearization",
    "Network",
    "TrajectoryOperator",
    "accumulate_interference",
    "alignment",
    "collapse",
    "controllability_gramian",
    "diagonal",
    "effective_rank",
    "eigsh",
    "eigvalsh",
    "frobenius_map",
    "frobenius_norm",
    "gradient_flow",
    "interference",
    "interference_operator",
    "linearize",
    "models",
    "observability_gramian",
    "over_training",
    "plot",
    "rank_bounds",
    "schatten_norm",
    "spectral_density",
    "spectral_norm",
    "svds",
    "tasks",
    "trace",
    "training",
    "trajectory_dimension",
    "truncate",
    "truncated_flow",
]
