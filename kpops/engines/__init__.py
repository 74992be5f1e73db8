"""Engines: how the actions of A, P, J and their adjoints are computed."""
