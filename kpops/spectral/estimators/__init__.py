"""Estimates from random vectors, with their error bars: what traces, norms and ranks build on."""
