"""Traces from random vectors: a file for each method, and the registry of them."""
