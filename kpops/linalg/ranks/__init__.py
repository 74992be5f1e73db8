"""Effective ranks: a file for each kind, and the registry of them."""
