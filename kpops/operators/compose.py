"""Adjoints, products, sums and multiples that stay on the device and keep their labels.

Self-adjointness and positivity are inferred where the algebra shows them: a product that reads
the same backwards, like ``P @ K @ P.H``, is self-adjoint, and positive when its middle is.
"""

from __future__ import annotations

import math
import numbers
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from kpops.engines.unit_blocks import UnitBlocks
from kpops.operators.base import TrajectoryOperator


class Adjoint(TrajectoryOperator):
    """The adjoint ``A*`` of an operator; its adjoint is the operator itself."""

    def __init__(self, parent: TrajectoryOperator) -> None:
        super().__init__(
            parent.codomain,
            parent.domain,
            dtype=parent.torch_dtype,
            device=parent.device,
            symbol=bracketed(parent) + "*",
            attrs=parent.attrs,
        )
        self.parent = parent
        self.uncoupled = parent.uncoupled

    @property
    def num_matvecs(self) -> int:
        """Number of vectors that the operator or its adjoint has been applied to."""
        return self.parent.num_matvecs

    def _apply(self, block: Tensor) -> Tensor:
        return self.parent.apply_adjoint(block)

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        return self.parent.apply(block)

    def _adjoint(self) -> TrajectoryOperator:
        return self.parent


class Product(TrajectoryOperator):
    """The product ``A B C ...``, applied from right to left.

    Raises
    ------
    ValueError
        If the spaces, dtypes or devices of neighbours differ.
    """

    factors: list[TrajectoryOperator]

    def __init__(self, *factors: TrajectoryOperator) -> None:
        flat = [part for factor in factors for part in _factors(factor)]
        for left, right in pairwise(flat):
            _check_same(left, right, "domain", "codomain")
        pairs = list(zip(flat, reversed(flat), strict=True))
        palindrome = all(_are_adjoint(a, b) for a, b in pairs)
        middle = flat[len(flat) // 2]
        super().__init__(
            flat[-1].domain,
            flat[0].codomain,
            dtype=flat[0].torch_dtype,
            device=flat[0].device,
            symbol=" ".join(bracketed(f) for f in flat),
            attrs=_common(*flat),
            self_adjoint=palindrome,
            positive=palindrome and (len(flat) % 2 == 0 or middle.positive),
        )
        self.factors = flat
        self.uncoupled = _everywhere(flat)

    def _make_root(self) -> TrajectoryOperator | None:
        half = len(self.factors) // 2
        if len(self.factors) % 2 == 0:
            return _product(self.factors[:half])
        middle = self.factors[half].root
        return None if middle is None else _product([*self.factors[:half], middle])

    def _apply(self, block: Tensor) -> Tensor:
        for factor in reversed(self.factors):
            block = factor.apply(block)
        return block

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        for factor in self.factors:
            block = factor.apply_adjoint(block)
        return block


class Sum(TrajectoryOperator):
    """The sum ``A + B + ...`` of operators between the same spaces.

    Raises
    ------
    ValueError
        If the spaces, dtypes or devices differ.
    """

    terms: list[TrajectoryOperator]

    def __init__(self, *terms: TrajectoryOperator) -> None:
        flat: list[TrajectoryOperator] = []
        for term in terms:
            flat += term.terms if isinstance(term, Sum) else [term]
        for left, right in pairwise(flat):
            _check_same(left, right, "domain", "domain")
            _check_same(left, right, "codomain", "codomain")
        super().__init__(
            flat[0].domain,
            flat[0].codomain,
            dtype=flat[0].torch_dtype,
            device=flat[0].device,
            symbol=" + ".join(t.symbol for t in flat).replace("+ -", "- "),
            attrs=_common(*flat),
            self_adjoint=all(t.self_adjoint for t in flat),
            positive=all(t.positive for t in flat),
        )
        self.terms = flat
        self.uncoupled = _everywhere(flat)

    def _apply(self, block: Tensor) -> Tensor:
        return sum((t.apply(block) for t in self.terms[1:]), self.terms[0].apply(block))

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        first, *rest = self.terms
        return sum((t.apply_adjoint(block) for t in rest), first.apply_adjoint(block))


class Scaled(TrajectoryOperator):
    """The multiple ``factor * A``.

    Raises
    ------
    TypeError
        If `factor` is not a real number.
    ValueError
        If it is not finite, or too large or too small for the dtype of the operator.

    Notes
    -----
    A product raises ``OverflowError`` if the factor makes infinity of a finite image.
    """

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
            dtype=operator.torch_dtype,
            device=operator.device,
            symbol=f"{'-' if value == -1 else f'{value:.6g} '}{bracketed(operator)}",
            attrs=operator.attrs,
            self_adjoint=operator.self_adjoint,
            positive=operator.positive and value >= 0,
        )
        self.operator = operator
        self.factor = value
        self.uncoupled = operator.uncoupled

    def _make_root(self) -> TrajectoryOperator | None:
        root = self.operator.root
        return None if root is None else Scaled(root, self.factor**0.5)

    def unit_blocks(self) -> UnitBlocks | None:
        """Return the operator unit by unit, where it is known to couple no two; else None."""
        blocks = self.operator.unit_blocks() if self.positive else None
        return blocks and blocks.scaled(self.factor)

    def _apply(self, block: Tensor) -> Tensor:
        return self._times(self.operator.apply(block))

    def _apply_adjoint(self, block: Tensor) -> Tensor:
        return self._times(self.operator.apply_adjoint(block))

    def _times(self, image: Tensor) -> Tensor:
        scaled = self.factor * image
        if abs(self.factor) > 1 and scaled.isinf().any() and not image.isinf().any():
            raise OverflowError(
                f"a product with {self!r} leaves the range of {self.torch_dtype}: use a smaller "
                "factor, or linearise with dtype=torch.float64"
            )
        return scaled


def _factors(operator: TrajectoryOperator) -> list[TrajectoryOperator]:
    """The factors of a product, or of its adjoint."""
    if isinstance(operator, Product):
        return operator.factors
    if isinstance(operator, Adjoint) and isinstance(operator.parent, Product):
        return [factor.H for factor in reversed(operator.parent.factors)]
    return [operator]


def _product(factors: list[TrajectoryOperator]) -> TrajectoryOperator:
    return factors[0] if len(factors) == 1 else Product(*factors)


def _everywhere(operators: list[TrajectoryOperator]) -> tuple[str, ...]:
    """Dims that none of the operators couples."""
    return tuple(d for d in operators[0].uncoupled if all(d in o.uncoupled for o in operators))


def _are_adjoint(a: TrajectoryOperator, b: TrajectoryOperator) -> bool:
    """Whether `a` is known to be the adjoint of `b`."""
    if a is b:
        return a.self_adjoint
    return (isinstance(a, Adjoint) and a.parent is b) or (isinstance(b, Adjoint) and b.parent is a)


def _check_same(a: TrajectoryOperator, b: TrajectoryOperator, of_a: str, of_b: str) -> None:
    space_a, space_b = getattr(a, of_a), getattr(b, of_b)
    if space_a != space_b:
        labels = space_a.misaligned(space_b) if space_a.dims == space_b.dims else []
        detail = f"; the labels of {labels} differ" if labels else ""
        raise ValueError(
            f"{of_a} of {a!r} is {space_a}, {of_b} of {b!r} is {space_b}: they must be equal"
            + detail
        )
    if (a.torch_dtype, a.device) != (b.torch_dtype, b.device):
        raise ValueError(
            f"{a!r} and {b!r} compute in different dtypes or on different devices: linearise both "
            "with the same dtype= and device="
        )


def _common(*operators: TrajectoryOperator) -> dict[str, str]:
    """Provenance that no operator contradicts."""
    merged: dict[str, set[str]] = {}
    for operator in operators:
        for key, value in operator.attrs.items():
            merged.setdefault(key, set()).add(value)
    return {key: values.pop() for key, values in merged.items() if len(values) == 1}


def bracketed(operator: TrajectoryOperator) -> str:
    """Symbol of an operator as a factor of a product."""
    compound = isinstance(operator, Sum | Product | Scaled)
    return f"({operator.symbol})" if compound else operator.symbol
