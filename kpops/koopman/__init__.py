"""Koopman spectra of labelled series, and distances between networks and between trainings."""

from kpops.koopman.modes import dmd, pseudospectrum
from kpops.koopman.spectra import spectral_distance

__all__ = ["dmd", "pseudospectrum", "spectral_distance"]
