"""Operators: the mathematics a user holds in hand."""

from kpops.operators import cupy as cupy  # its method registers itself
from kpops.operators.base import TrajectoryOperator
from kpops.operators.dense import DenseOperator
from kpops.operators.flow import FlowOperator
from kpops.operators.foreign import ForeignOperator
from kpops.operators.low_rank import LowRank
from kpops.operators.parameter import ParameterJacobian, ParameterOperator, ThinFactor
from kpops.operators.partial_trace import PartialTrace, ProbedGram, ProbedTrace
from kpops.operators.propagator import InversePropagator, Propagator
from kpops.operators.readout import ReadoutJacobian, ReadoutParameterJacobian
from kpops.operators.reduce import Average, Restriction

__all__ = [
    "Average",
    "DenseOperator",
    "FlowOperator",
    "ForeignOperator",
    "InversePropagator",
    "LowRank",
    "ParameterJacobian",
    "ParameterOperator",
    "PartialTrace",
    "ProbedGram",
    "ProbedTrace",
    "Propagator",
    "ReadoutJacobian",
    "ReadoutParameterJacobian",
    "Restriction",
    "ThinFactor",
    "TrajectoryOperator",
]
