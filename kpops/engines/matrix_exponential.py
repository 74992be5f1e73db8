"""Matrix exponentials whose derivative is prepared once.

PyTorch differentiates ``exp(A)`` in a direction E by the exponential of a matrix of twice the size
that contains E, in every product anew, and waits for a GPU there. But the derivative is linear in E
(Al-Mohy and Higham 2009, Computing the Frechet derivative of the matrix exponential),

    L(E) = int_0^1 e^{sA} E e^{(1-s)A} ds,

and Gauss's rule gives it to rounding for ``||A|| <= 1``. A larger A is halved m times first, and
``d(X^2) = X dX + dX X`` doubles it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kpops.precision import in_full_precision

_NAMES = {torch.matrix_exp, torch.linalg.matrix_exp, torch.Tensor.matrix_exp}
# Of n nodes the error is at most 2^{2n} (n!)^4 / ((2n + 1) (2n)!^3): 2e-18 of 8.
_NODES = 8


class PreparedExponentials(TorchFunctionMode):
    """Within it, first derivatives of ``torch.matrix_exp`` are products with prepared matrices.

    Higher derivatives are those of a linear function: take none.
    """

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call `func`, or what takes its place."""
        return (_exp if func in _NAMES else func)(*args, **(kwargs or {}))


@in_full_precision  # what is prepared is kept
def _exp(*args: Tensor, **kwargs: Tensor) -> Tensor:
    """exp(A), as the linear function of A that has its value and derivative there."""
    (A,) = *args, *kwargs.values()  # its name differs
    if not A.requires_grad or A.ndim != 2:  # a matrix of every row would take much memory
        return torch.matrix_exp(A)
    here = A.detach()
    norm = float(torch.linalg.matrix_norm(here, 1)) if here.numel() else 0.0
    m = max(0, math.frexp(norm)[1]) if math.isfinite(norm) else 0
    small, change = here / 2**m, (A - here) / 2**m
    nodes, weights = (x.tolist() for x in np.polynomial.legendre.leggauss(_NODES))
    powers = [torch.matrix_exp(0.5 * (1 + s) * small) for s in nodes]
    # The nodes lie symmetrically: where one is s, another is 1 - s.
    terms = zip(weights, powers, reversed(powers), strict=True)
    slope = reduce(torch.add, (0.5 * w * (X @ change @ Y) for w, X, Y in terms))
    X = torch.matrix_exp(small)
    for _ in range(m):
        slope, X = X @ slope + slope @ X, X @ X
    return torch.matrix_exp(here) + slope
