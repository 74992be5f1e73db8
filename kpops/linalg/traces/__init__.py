"""Traces from random vectors."""
