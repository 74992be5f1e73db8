"""Spectra, traces and ranks on tensors: no labels, no public names; `spectral/` labels them."""
