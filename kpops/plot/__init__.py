"""Figures from labelled results. matplotlib is imported at the first plot, not before."""

from kpops.plot.estimates import alignment, effective_rank, over_training
from kpops.plot.fields import eigenfunctions
from kpops.plot.interference import interference
from kpops.plot.learning import captured, rank_bounds
from kpops.plot.maps import frobenius_map
from kpops.plot.spectra import density, spectrum

__all__ = [
    "alignment",
    "captured",
    "density",
    "effective_rank",
    "eigenfunctions",
    "frobenius_map",
    "interference",
    "over_training",
    "rank_bounds",
    "spectrum",
]
