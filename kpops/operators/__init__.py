"""Operators: the mathematics a user holds in hand."""

from kpops.operators.base import TrajectoryOperator
from kpops.operators.parameter import ParameterJacobian, ParameterOperator
from kpops.operators.propagator import InversePropagator, Propagator
from kpops.operators.readout import ReadoutJacobian, ReadoutParameterJacobian
from kpops.operators.reduce import Average, Restriction

__all__ = [
    "Average",
    "InversePropagator",
    "ParameterJacobian",
    "ParameterOperator",
    "Propagator",
    "ReadoutJacobian",
    "ReadoutParameterJacobian",
    "Restriction",
    "TrajectoryOperator",
]
