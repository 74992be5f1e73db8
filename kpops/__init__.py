"""kpops: how gradient descent shapes the dynamics of recurrent networks.

Linearise a PyTorch model about its trajectories and hold the operators of the KPFlow paper,
matrix-free: the parameter operator K, the linearized flow propagator P and the flow operator
P K P*.
"""

import importlib
from typing import Any

from kpops import distributed, koopman, models, plot, reconstruction, systems, tasks, training
from kpops import html as html  # what notebooks show registers itself
from kpops.dynamics.at_points import linearize_at, stationary_response
from kpops.dynamics.continuation import continuation
from kpops.dynamics.covariant import covariant_lyapunov_vectors
from kpops.dynamics.critical import critical_channel
from kpops.dynamics.fixed_points import fixed_points
from kpops.dynamics.lyapunov import lyapunov_spectrum
from kpops.dynamics.lyapunov_statistics import entropy_bound, kaplan_yorke_dimension
from kpops.dynamics.state_space_form import state_space_form
from kpops.dynamics.tokens import token_dynamics
from kpops.koopman.comparing import compare
from kpops.learning.collapse import collapse
from kpops.learning.gradient_flow import gradient_flow, truncated_flow
from kpops.learning.interference import accumulate_interference, interference, interference_operator
from kpops.learning.learning_rule import learning_rule
from kpops.learning.over_training import over_training
from kpops.learning.rank_bounds import rank_bounds
from kpops.learning.stability import stability
from kpops.learning.step_results import MeasureError
from kpops.learning.subspaces import subspace
from kpops.learning.task_similarity import task_similarity
from kpops.learning.telescope import telescope
from kpops.learning.trajectories import trajectory_dimension
from kpops.linearization import Linearization
from kpops.linearizing import linearize
from kpops.models.network import Network
from kpops.operators import TrajectoryOperator
from kpops.site_linearization import SiteLinearization
from kpops.spectral import (
    alignment,
    controllability_gramian,
    diagonal,
    effective_rank,
    eigsh,
    eigvalsh,
    frobenius_map,
    frobenius_norm,
    greens_fractions,
    greens_map,
    observability_gramian,
    predictive_information,
    schatten_norm,
    spectral_density,
    spectral_norm,
    svds,
    trace,
    truncate,
)
from kpops.studies import FailedPointsWarning, Study, StudyError
from kpops.work import ConvergenceWarning, InterruptWarning, LongWorkWarning

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import kpops.testing when it is first asked for."""
    if name == "testing":
        return importlib.import_module("kpops.testing")
    raise AttributeError(f"module 'kpops' has no attribute {name!r}")


__all__ = [
    "ConvergenceWarning",
    "FailedPointsWarning",
    "InterruptWarning",
    "Linearization",
    "LongWorkWarning",
    "MeasureError",
    "Network",
    "SiteLinearization",
    "Study",
    "StudyError",
    "TrajectoryOperator",
    "accumulate_interference",
    "alignment",
    "collapse",
    "compare",
    "continuation",
    "controllability_gramian",
    "covariant_lyapunov_vectors",
    "critical_channel",
    "diagonal",
    "distributed",
    "effective_rank",
    "eigsh",
    "eigvalsh",
    "entropy_bound",
    "fixed_points",
    "frobenius_map",
    "frobenius_norm",
    "gradient_flow",
    "greens_fractions",
    "greens_map",
    "interference",
    "interference_operator",
    "kaplan_yorke_dimension",
    "koopman",
    "learning_rule",
    "linearize",
    "linearize_at",
    "lyapunov_spectrum",
    "models",
    "observability_gramian",
    "over_training",
    "plot",
    "predictive_information",
    "rank_bounds",
    "reconstruction",
    "schatten_norm",
    "spectral_density",
    "spectral_norm",
    "stability",
    "state_space_form",
    "stationary_response",
    "subspace",
    "svds",
    "systems",
    "task_similarity",
    "tasks",
    "telescope",
    "testing",
    "token_dynamics",
    "trace",
    "training",
    "trajectory_dimension",
    "truncate",
    "truncated_flow",
]
