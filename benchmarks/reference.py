"""The products with which every contender must agree before it is timed."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.contenders import Contender, engine

# Largest relative difference.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}


class Reference:
    """Products with single vectors of a block, by kpops' engine autodiff."""

    def __init__(self, case: Case, block: Tensor) -> None:
        self.case, self.block = case, block
        self.products = engine(case, "autodiff").products
        self.known: dict[tuple[str, int, bool], Tensor] = {}

    def check(self, contender: Contender, operator: str, result: Tensor) -> float:
        """Larger relative error of the first and the last vector of a contender's product.

        Raises
        ------
        AssertionError
            If it is larger than a rounding error.
        """
        errors = []
        for i in {0, len(result) - 1}:
            expected = self.of_vector(operator, i, contender.hidden_only)
            difference = result[i].to(expected) - expected
            errors.append(float(difference.norm() / expected.norm()))
        worst, tolerance = max(errors), _TOLERANCE[self.case.dtype]
        if not worst <= tolerance:  # also NaN
            raise AssertionError(
                f"{contender.name}: {operator} of {self.case.name}, block of {len(result)}, "
                f"differs from kpops autodiff by {worst:.2g}, more than {tolerance:g}"
            )
        return worst

    def of_vector(self, operator: str, i: int, hidden_only: bool) -> Tensor:
        """Product with vector i; with `hidden_only`, between the h of an LSTM alone."""
        key = operator, i, hidden_only
        if key not in self.known:
            q = self.block[i : i + 1].clone()
            if hidden_only:
                q[..., self.case.hidden :] = 0
            product = self.products[operator](q)[0]
            if hidden_only:
                product[..., self.case.hidden :] = 0
            self.known[key] = product
        return self.known[key]
