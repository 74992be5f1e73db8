"""Dynamics: Lyapunov exponents and vectors, fixed points and slow points."""
