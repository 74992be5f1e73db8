"""Models: recurrences, and how a user's module becomes one."""

from kpops.models.cells import LeakyCell, LowRankCell
from kpops.models.diagonal import DiagonalRecurrence, DiagonalSSM, LinearTimeVarying, SelectiveSSM
from kpops.models.exponential_euler import ExponentialEuler
from kpops.models.gated import Affine, GatedRecurrence
from kpops.models.initial import initialize_recurrent, spectral_radius
from kpops.models.initial_state import LearnedStart
from kpops.models.linear_attention import LinearAttention
from kpops.models.minimal import MGUCell, MinGRUCell
from kpops.models.network import Network
from kpops.models.observer import Observer
from kpops.models.ode import NeuralODE
from kpops.models.orthogonal_flow import OrthogonalFlow
from kpops.models.parametrizations import Dale, Masked
from kpops.models.piecewise_linear import PLRNNCell, ShallowPLRNNCell
from kpops.models.recurrence import ModuleRecurrence, Recurrence, as_recurrence
from kpops.models.s4d import s4d
from kpops.models.sde import NeuralSDE
from kpops.models.selective import SelectiveLayer
from kpops.models.switching import SwitchingLinear
from kpops.models.token_flow import TokenFlow
from kpops.models.torch_rnn import TorchRecurrence
from kpops.models.unrolled import Unrolled
from kpops.models.wrapping import TeacherForced

__all__ = [
    "Affine",
    "Dale",
    "DiagonalRecurrence",
    "DiagonalSSM",
    "ExponentialEuler",
    "GatedRecurrence",
    "LeakyCell",
    "LearnedStart",
    "LinearAttention",
    "LinearTimeVarying",
    "LowRankCell",
    "MGUCell",
    "Masked",
    "MinGRUCell",
    "ModuleRecurrence",
    "Network",
    "NeuralODE",
    "NeuralSDE",
    "Observer",
    "OrthogonalFlow",
    "PLRNNCell",
    "Recurrence",
    "SelectiveLayer",
    "SelectiveSSM",
    "ShallowPLRNNCell",
    "SwitchingLinear",
    "TeacherForced",
    "TokenFlow",
    "TorchRecurrence",
    "Unrolled",
    "as_recurrence",
    "initialize_recurrent",
    "s4d",
    "spectral_radius",
]
