"""Reconstruction of dynamical systems: networks trained on series, and what they have learned."""

from kpops.reconstruction.pieces_code import symbolic_code
from kpops.reconstruction.pieces_cycles import cycles
from kpops.reconstruction.published import PublishedALRNN, published_alrnn

__all__ = ["PublishedALRNN", "cycles", "published_alrnn", "symbolic_code"]
