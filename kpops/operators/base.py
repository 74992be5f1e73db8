"""The operator that users hold, and its algebra.

Adjoints, products, sums and multiples stay on the device and keep their labels. The algebra infers
self-adjointness and positivity: a product that reads the same backwards, like ``P @ K @ P.H``, is
self-adjoint, and positive when its middle is.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
import xarray as xr
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from kpops.distributed.parts import WHOLE, Parts
from kpops.engines.blocks import Blocks
from kpops.kinds import described, is_operator, number_of, refuse_number
from kpops.operators.action import Action, check_same
from kpops.operators.shapes import Image, InCodomain, InDomain

Method = TypeVar("Method", bound=Callable[..., Any])


def as_method(function: Method) -> Method:
    """Make a function of an operator a method of every :class:`TrajectoryOperator`, too.

    So the files that restrict, trace or decompose operators import this one, not the reverse.
    """
    setattr(TrajectoryOperator, function.__name__, function)
    return function


class TrajectoryOperator(Action):
    """A linear operator between labelled spaces.

    It is a :class:`scipy.sparse.linalg.LinearOperator` and goes into any SciPy solver as it is.
    ``op @ q`` also takes torch and CuPy arrays, arrays with the dimensions of the space and
    labelled DataArrays, and returns the same kind. ``A @ B``, ``A + B``, ``A - B`` and ``2 * A``
    of such operators stay on the device and keep labels.

    A subclass implements ``_apply`` and, unless it is self-adjoint, ``_apply_adjoint`` on tensors
    ``(block, *dims)``.

    Parameters
    ----------
    domain, codomain : Space
        What the operator maps from and to.
    dtype : torch.dtype
        float32 or float64, in which it computes.
    device : torch.device
        Where it computes.
    symbol : str
        How theory writes the operator, for the repr.
    self_adjoint, positive : bool
        Whether it is known to be self-adjoint, and to be positive semi-definite.
    attrs : mapping, optional
        Provenance (model, measure, engine), which all results carry.
    precision : {"highest", "tf32x3", "tf32"}, optional
        That of its matrix products; see :func:`kpops.linearize`. Default: the highest, also next to
        operators of another precision.

    Attributes
    ----------
    dtype, torch_dtype : numpy.dtype, torch.dtype
        In which the operator computes.
    block_diagonal_dims : tuple of str
        The dimensions over which the operator is known to be block diagonal: it does not couple
        their positions.
    """

    # Attached by `as_method`.
    _beside: Callable[..., Any]
    select: Callable[..., TrajectoryOperator]
    expand_average: Callable[..., TrajectoryOperator]
    partial_trace: Callable[..., TrajectoryOperator]
    dense_tensor: Callable[..., Tensor]
    to_dense: Callable[..., np.ndarray]
    to_cupy: Callable[..., Any]
    eigsh: Callable[..., xr.Dataset]
    svds: Callable[..., xr.Dataset]
    trace: Callable[..., xr.Dataset]
    norm: Callable[..., xr.Dataset]

    # Structure.

    @cached_property
    def root(self) -> TrajectoryOperator | None:
        """R with ``op = R R*`` of a positive operator, where it is known; else None."""
        return self._make_root() if self.positive else None

    def _make_root(self) -> TrajectoryOperator | None:
        return None

    def unit_blocks(self) -> Blocks | None:
        """Return the operator unit by unit, if it is known not to couple units; else None."""
        return None

    # Algebra.

    def __matmul__(self, other: Any) -> Any:
        if is_operator(other):
            theirs = self._beside(other, codomain=self.domain)
            if theirs is None:
                return LinearOperator.dot(self, other)
            return Product(self, theirs)
        refuse_number(other)
        return self._act(other)

    def __rmatmul__(self, other: Any) -> Any:
        if is_operator(other):
            return self._beside(other, domain=self.codomain) @ self
        refuse_number(other)
        if getattr(other, "ndim", 1) == 2 and other.shape[-1] == self.shape[0]:
            return (self.T @ other.T).T  # rows are the vectors
        return self.T @ other

    def __call__(self, q: Any) -> Any:
        """Apply to `q`; the same as ``op @ q``."""
        return self @ q

    def __mul__(self, other: Any) -> Any:
        factor = number_of(other)
        return self @ other if factor is None else Scaled(self, factor)

    def __rmul__(self, other: Any) -> Any:
        return other @ self if number_of(other) is None else self * other

    def __truediv__(self, other: Any) -> Any:
        divisor = number_of(other)
        if not isinstance(divisor, numbers.Real):
            raise TypeError(f"{self!r} is divided by {described(other)}: divide by a real number")
        if divisor == 0:
            raise ZeroDivisionError(f"{self!r} is divided by zero")
        return self * (1 / divisor)

    def __pow__(self, power: Any) -> Any:
        whole = isinstance(power, numbers.Integral) and not isinstance(power, bool)
        if not whole or power < 1:
            raise ValueError(f"{self!r} to the power {power!r}: choose an int of 1 or more")
        return self if power == 1 else Product(*[self] * int(power))

    def __neg__(self) -> Any:
        return self * -1.0

    def __add__(self, other: Any) -> Any:
        return self._plus(other, 1)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return self._plus(other, -1)

    def __rsub__(self, other: Any) -> Any:
        return (-self)._plus(other, 1)

    def _plus(self, other: Any, sign: int) -> Any:
        if not is_operator(other):
            number = number_of(other)
            if isinstance(number, numbers.Real) and number == 0:
                return self  # sum() starts at 0
            raise TypeError(
                f"{self!r} and {described(other)} do not add up: add an operator; a number times "
                "scipy.sparse.eye_array(n), or a matrix as scipy.sparse.linalg.aslinearoperator(a)"
            )
        theirs = self._beside(other, domain=self.domain, codomain=self.codomain)
        if theirs is None:
            return LinearOperator.__add__(self, sign * other)
        return Sum(self, theirs if sign == 1 else -theirs)

    def dot(self, x: Any) -> Any:
        """Apply, compose or scale, as SciPy's ``LinearOperator.dot`` does."""
        return self * x

    def _adjoint(self) -> TrajectoryOperator:
        return self if self.self_adjoint else Adjoint(self)

    def _transpose(self) -> TrajectoryOperator:
        return self._adjoint()  # real operators


class Adjoint(TrajectoryOperator):
    """The adjoint ``A*`` of an operator; its adjoint is the operator itself."""

    is_composed = True

    def __init__(self, parent: TrajectoryOperator) -> None:
        symbol = bracketed(parent) + "*"
        super().__init__(parent.codomain, parent.domain, symbol=symbol, **parent.alike())
        self.parent, self.parts = parent, parent.parts
        self.block_diagonal_dims = parent.block_diagonal_dims

    @property
    def num_matvecs(self) -> int:
        """Those of the operator."""
        return self.parent.num_matvecs

    def _apply(self, q: InDomain) -> InCodomain:
        return self.parent.apply_adjoint(q)

    def _apply_adjoint(self, q: InCodomain) -> InDomain:
        return self.parent.apply(q)

    def _adjoint(self) -> TrajectoryOperator:
        return self.parent


class Product(TrajectoryOperator):
    """The product ``A B C ...``, applied from right to left.

    Raises
    ------
    ValueError
        If the spaces, dtypes, devices or precisions of neighbours differ.
    """

    is_composed = True

    def __init__(self, *factors: TrajectoryOperator) -> None:
        flat = [part for factor in factors for part in _factors(factor)]
        for left, right in pairwise(flat):
            check_same(left, right, "domain", "codomain")
        pairs = list(zip(flat, reversed(flat), strict=True))
        palindrome = all(_are_adjoint(a, b) for a, b in pairs)
        middle = flat[len(flat) // 2]
        super().__init__(
            flat[-1].domain,
            flat[0].codomain,
            symbol=" ".join(bracketed(f) for f in flat),
            **flat[0].alike(*flat[1:]),
            self_adjoint=palindrome,
            positive=palindrome and (len(flat) % 2 == 0 or middle.positive),
        )
        self.factors = flat
        self.parts = _shared(flat)
        self.block_diagonal_dims = _everywhere(flat)

    def _make_root(self) -> TrajectoryOperator | None:
        half = len(self.factors) // 2
        if len(self.factors) % 2 == 0:
            return _product(self.factors[:half])
        middle = self.factors[half].root
        return None if middle is None else _product([*self.factors[:half], middle])

    def _apply(self, q: InDomain) -> InCodomain:
        for factor in reversed(self.factors):
            q = factor.apply(q)
        return q

    def _apply_adjoint(self, q: InCodomain) -> InDomain:
        for factor in self.factors:
            q = factor.apply_adjoint(q)
        return q


class Sum(TrajectoryOperator):
    """The sum ``A + B + ...`` of operators between the same spaces, in one dtype, on one device."""

    is_composed = True

    def __init__(self, *terms: TrajectoryOperator) -> None:
        flat = [part for t in terms for part in (t.terms if isinstance(t, Sum) else [t])]
        for left, right in pairwise(flat):
            check_same(left, right, "domain", "domain")
            check_same(left, right, "codomain", "codomain")
        super().__init__(
            flat[0].domain,
            flat[0].codomain,
            symbol=" + ".join(t.symbol for t in flat).replace("+ -", "- "),
            **flat[0].alike(*flat[1:]),
            self_adjoint=all(t.self_adjoint for t in flat),
            positive=all(t.positive for t in flat),
        )
        self.terms: list[TrajectoryOperator] = flat
        self.parts = _shared(flat)
        self.block_diagonal_dims = _everywhere(flat)

    def _apply(self, q: InDomain) -> InCodomain:
        first, *rest = self.terms
        return sum((t.apply(q) for t in rest), first.apply(q))

    def _apply_adjoint(self, q: InCodomain) -> InDomain:
        first, *rest = self.terms
        return sum((t.apply_adjoint(q) for t in rest), first.apply_adjoint(q))


class Scaled(TrajectoryOperator):
    """The multiple ``factor * A``; a matvec that overflows by the factor raises OverflowError.

    Raises
    ------
    TypeError
        If `factor` is not a real number.
    ValueError
        If it is not finite, or too large or too small for the dtype of the operator.
    """

    is_composed = True

    def __init__(self, operator: TrajectoryOperator, factor: Any) -> None:
        if not isinstance(factor, numbers.Real):
            raise TypeError(f"factor {factor!r}: kpops operators are real, use a real number")
        try:
            value = float(factor)
        except OverflowError:  # a long int
            value = math.inf
        if not math.isfinite(value):
            raise ValueError(f"factor {value}: use a finite number")
        range_ = torch.finfo(operator.torch_dtype)
        if value != 0 and not range_.tiny <= abs(value) <= range_.max:
            raise ValueError(
                f"factor {value:.6g} is beyond {operator.torch_dtype}, which reaches from "
                f"{range_.tiny:.2g} to {range_.max:.2g}: linearise with dtype=torch.float64"
            )
        super().__init__(
            operator.domain,
            operator.codomain,
            symbol=f"{'-' if value == -1 else f'{value:.6g} '}{bracketed(operator)}",
            self_adjoint=operator.self_adjoint,
            positive=operator.positive and value >= 0,
            **operator.alike(),
        )
        self.operator, self.parts = operator, operator.parts
        self.factor = value
        self.block_diagonal_dims = operator.block_diagonal_dims

    def _make_root(self) -> TrajectoryOperator | None:
        root = self.operator.root
        return None if root is None else Scaled(root, self.factor**0.5)

    def unit_blocks(self) -> Blocks | None:
        """As of the operator, times the factor."""
        blocks = self.operator.unit_blocks() if self.positive else None
        return blocks and blocks.scaled(self.factor)

    def _apply(self, q: InDomain) -> InCodomain:
        return self._times(self.operator.apply(q))

    def _apply_adjoint(self, q: InCodomain) -> InDomain:
        return self._times(self.operator.apply_adjoint(q))

    def _times(self, image: Image) -> Image:
        scaled = self.factor * image
        if abs(self.factor) > 1 and not scaled.sum().isfinite() and _overflows(image, scaled):
            raise OverflowError(
                f"{self!r} leaves the range of {self.torch_dtype}: use a smaller factor, or "
                "linearise with dtype=torch.float64"
            )
        return scaled


def _overflows(image: Image, scaled: Image) -> bool:
    return bool(scaled.isinf().any() and not image.isinf().any())


def _factors(operator: TrajectoryOperator) -> list[TrajectoryOperator]:
    """The factors of a product, or of its adjoint."""
    if isinstance(operator, Product):
        return operator.factors
    if isinstance(operator, Adjoint) and isinstance(operator.parent, Product):
        return [factor.H for factor in reversed(operator.parent.factors)]
    return [operator]


def _product(factors: list[TrajectoryOperator]) -> TrajectoryOperator:
    return factors[0] if len(factors) == 1 else Product(*factors)


def _shared(operators: list[TrajectoryOperator]) -> Parts:
    """How they are spread, if one of them is: also a product such as J* J, of parameters alone."""
    return next((o.parts for o in operators if o.parts.many), WHOLE)


def _everywhere(operators: list[TrajectoryOperator]) -> tuple[str, ...]:
    """The dimensions over which all of the operators are block diagonal."""
    first, *rest = (o.block_diagonal_dims for o in operators)
    return tuple(d for d in first if all(d in other for other in rest))


def _are_adjoint(a: TrajectoryOperator, b: TrajectoryOperator) -> bool:
    """Whether `a` is known to be the adjoint of `b`."""
    if a is b:
        return a.self_adjoint
    return (isinstance(a, Adjoint) and a.parent is b) or (isinstance(b, Adjoint) and b.parent is a)


def bracketed(operator: TrajectoryOperator) -> str:
    """Symbol of an operator as a factor of a product."""
    compound = isinstance(operator, Sum | Product | Scaled)
    return f"({operator.symbol})" if compound else operator.symbol
