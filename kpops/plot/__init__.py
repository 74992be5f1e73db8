"""Figures from labelled results. matplotlib is imported at the first plot, not before."""

from kpops.plot.lines import over_training, spectrum

__all__ = ["over_training", "spectrum"]
