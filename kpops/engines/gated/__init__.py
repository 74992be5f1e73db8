"""Gated cells: affine maps between the diagonals of elementwise gates, in torch."""
