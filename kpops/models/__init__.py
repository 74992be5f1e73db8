"""Models: what a recurrence is, and how a user's module becomes one."""

from kpops.models.cells import LeakyCell
from kpops.models.gated import Affine, GatedRecurrence
from kpops.models.initial import initialize_recurrent, spectral_radius
from kpops.models.network import Network
from kpops.models.recurrence import ModuleRecurrence, Recurrence, as_recurrence
from kpops.models.torch_rnn import TorchRecurrence

__all__ = [
    "Affine",
    "GatedRecurrence",
    "LeakyCell",
    "ModuleRecurrence",
    "Network",
    "Recurrence",
    "TorchRecurrence",
    "as_recurrence",
    "initialize_recurrent",
    "spectral_radius",
]
