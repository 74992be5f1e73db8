"""Chaotic flows and maps as models, their verified exponents, and measured series."""

from kpops.systems.dysts import from_dysts
from kpops.systems.loading import load, names
from kpops.systems.measuring import measure
from kpops.systems.models import Flow, Map, SemilinearFlow
from kpops.systems.series import series
from kpops.systems.table import exponents
from kpops.systems.trajectories import trajectory

__all__ = [
    "Flow",
    "Map",
    "SemilinearFlow",
    "exponents",
    "from_dysts",
    "load",
    "measure",
    "names",
    "series",
    "trajectory",
]
