"""Figures from labelled results. matplotlib is imported at the first plot, not before."""

from kpops.plot.bifurcations import branches
from kpops.plot.codes import transitions
from kpops.plot.dynamics import (
    covariant_angles,
    finite_time_exponents,
    lyapunov_history,
    lyapunov_spectrum,
)
from kpops.plot.estimates import alignment, effective_rank, over_training
from kpops.plot.fields import eigenfunctions, frobenius_map
from kpops.plot.greens import greens_map
from kpops.plot.interference import interference
from kpops.plot.learning import captured, rank_bounds
from kpops.plot.points import fixed_point_eigenvalues, fixed_points
from kpops.plot.spectra import density, spectrum

__all__ = [
    "alignment",
    "branches",
    "captured",
    "covariant_angles",
    "density",
    "effective_rank",
    "eigenfunctions",
    "finite_time_exponents",
    "fixed_point_eigenvalues",
    "fixed_points",
    "frobenius_map",
    "greens_map",
    "interference",
    "lyapunov_history",
    "lyapunov_spectrum",
    "over_training",
    "rank_bounds",
    "spectrum",
    "transitions",
]
