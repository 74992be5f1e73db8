"""Spectra, ranks and estimates of operators: check arguments, compute in `linalg/`, label.

- Modes: ``eig``, ``svd``, ``eigvalsh``, ``truncation``.
- Numbers: ``traces``, ``norms``, ``rank``, ``align``.
- Distributions: ``density`` of the spectrum; ``maps`` and ``gramian`` in trial, time and unit;
  ``greens_maps`` and ``information`` of the propagator over time.
"""

from kpops.spectral.align import alignment
from kpops.spectral.density import spectral_density
from kpops.spectral.eig import eigsh
from kpops.spectral.eigvalsh import eigvalsh
from kpops.spectral.gramian import controllability_gramian, observability_gramian
from kpops.spectral.greens_maps import greens_fractions, greens_map
from kpops.spectral.information import predictive_information
from kpops.spectral.maps import frobenius_map
from kpops.spectral.norms import frobenius_norm, schatten_norm, spectral_norm
from kpops.spectral.rank import effective_rank
from kpops.spectral.svd import svds
from kpops.spectral.traces import diagonal, trace
from kpops.spectral.truncation import truncate

__all__ = [
    "alignment",
    "controllability_gramian",
    "diagonal",
    "effective_rank",
    "eigsh",
    "eigvalsh",
    "frobenius_map",
    "frobenius_norm",
    "greens_fractions",
    "greens_map",
    "observability_gramian",
    "predictive_information",
    "schatten_norm",
    "spectral_density",
    "spectral_norm",
    "svds",
    "trace",
    "truncate",
]
