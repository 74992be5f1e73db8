"""Operators: the mathematics a user holds in hand.

Annotations give shapes, which `make shapes` checks at every call. The words for axes are ``block``
(vectors), ``trial``, ``time``, ``unit``, ``output``, ``parameter``, ``coefficient`` (of the thin
factor of K), ``row`` (of a matrix, or trial and time of a readout) and ``column``, ``problem`` and
``entry`` (of block-diagonal parts), ``probe``, ``vector``, ``kept`` and ``traced`` (of partial
traces). ``*domain`` and ``*codomain`` are the dimensions of an operator's spaces, ``*given`` and
``*image`` those before and after any map.
"""

from kpops.operators.base import TrajectoryOperator
from kpops.operators.curvature import Hessian, LossHessian, LossRoot, SideBySide
from kpops.operators.dense import DenseOperator
from kpops.operators.foreign import ForeignOperator
from kpops.operators.low_rank import LowRank
from kpops.operators.parameter import FlowOperator, ParameterJacobian, ParameterOperator, ThinFactor
from kpops.operators.partial_trace import PartialTrace, ProbedGram, ProbedTrace
from kpops.operators.propagator import InversePropagator, Propagator
from kpops.operators.readout import OutputKernel, ReadoutJacobian, ReadoutParameterJacobian
from kpops.operators.reduce import Average, Restriction

__all__ = [
    "Average",
    "DenseOperator",
    "FlowOperator",
    "ForeignOperator",
    "Hessian",
    "InversePropagator",
    "LossHessian",
    "LossRoot",
    "LowRank",
    "OutputKernel",
    "ParameterJacobian",
    "ParameterOperator",
    "PartialTrace",
    "ProbedGram",
    "ProbedTrace",
    "Propagator",
    "ReadoutJacobian",
    "ReadoutParameterJacobian",
    "Restriction",
    "SideBySide",
    "ThinFactor",
    "TrajectoryOperator",
]
