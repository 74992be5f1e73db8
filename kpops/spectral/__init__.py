"""Spectra and ranks: algorithms that know an operator only by its action."""

from kpops.spectral.eig import eigsh
from kpops.spectral.exact import eigvalsh
from kpops.spectral.rank import effective_rank
from kpops.spectral.svd import svds

__all__ = ["effective_rank", "eigsh", "eigvalsh", "svds"]
