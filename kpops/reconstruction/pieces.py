"""The linear pieces of piecewise-linear cells.

At a constant input x, every such cell here is one layer of L relus beside a linear map,

    f(h) = M h + V relu(R h + r) + c,

with M and R known from the weights, and x in c alone. A pattern d in {0, 1}^L says which relus are
open. Where the pattern of a state is d, a region bounded by hyperplanes, f is affine:

    f(h) = A_d h + b_d,    A_d = M + V diag(d) R,    b_d = c + V (d r).

A relu whose argument is 0 counts as closed, as in the derivative that PyTorch takes.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kpops.dynamics.given import bring, like_what, n_inputs, read_model
from kpops.kinds import described
from kpops.linalg.rounding import noise_floor
from kpops.linearization import Linearization
from kpops.models.piecewise_linear import PLRNNCell, ShallowPLRNNCell
from kpops.models.recurrence import Recurrence, changed


class Pieces(NamedTuple):
    """The matrices of f: M (unit, unit), V (unit, relu), R (relu, unit), r (relu,), c (unit,)."""

    M: Tensor
    V: Tensor
    R: Tensor
    r: Tensor
    c: Tensor

    def patterns(self, h: Tensor) -> Tensor:
        """Which relus are open at states (..., unit): booleans (..., relu)."""
        return self.arguments(h) > 0

    def arguments(self, h: Tensor) -> Tensor:
        """Arguments of the relus at states (..., unit), (..., relu)."""
        return h @ self.R.mT + self.r

    def doubt(self, h: Tensor) -> Tensor:
        """What rounding may change of the arguments at solved states (row, phase, unit).

        The states of a row come from one system of equations, and share the error of the largest.
        """
        size = h.abs().amax((1, 2))[:, None, None]
        return noise_floor(h.dtype) * (size * self.R.abs().sum(1) + self.r.abs())

    def maps(self, patterns: Tensor) -> tuple[Tensor, Tensor]:
        """A (..., unit, unit) and b (..., unit) of patterns (..., relu)."""
        d = patterns.to(self.M.dtype)
        return self.M + (self.V * d[..., None, :]) @ self.R, self.c + (d * self.r) @ self.V.mT

    def step(self, h: Tensor) -> Tensor:
        """Next states of states (..., unit)."""
        return h @ self.M.mT + torch.relu(self.arguments(h)) @ self.V.mT + self.c


def read_pieces(
    model: Any,
    input: Any = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> tuple[Recurrence, Pieces, Tensor]:
    """A private copy of a model, its pieces and the constant input x (feature,)."""
    given = model.recurrence if isinstance(model, Linearization) else model
    recurrence = read_model(given, dtype, device)
    like = like_what(recurrence, {}, dtype)
    size = n_inputs(recurrence)
    x = like.new_zeros(size) if input is None else bring(input, like, "input", dtype is not None)
    if tuple(x.shape) != (size,):
        raise ValueError(
            f"input has shape {tuple(x.shape)}, expected (feature,) = ({size},): one constant "
            "input; call once for each"
        )
    with torch.no_grad():
        return recurrence, pieces_of(recurrence.module, x), x


@singledispatch
def pieces_of(cell: nn.Module, x: Tensor) -> Pieces:
    """Pieces of a cell at the input x (feature,)."""
    raise TypeError(
        f"model is {described(cell)}, whose linear pieces are unknown: pass a "
        "kpops.models.PLRNNCell or a kpops.models.ShallowPLRNNCell"
    )


@pieces_of.register
def _of_plrnn(cell: PLRNNCell, x: Tensor) -> Pieces:
    _refuse_changed(cell, PLRNNCell)
    linear = cell.hidden_size - cell.rectified
    always, through = cell.W.split([linear, cell.rectified], 1)
    M = cell.A.diag()
    M[:, :linear] += always
    last = torch.eye(cell.hidden_size).to(M)[linear:]
    return Pieces(M, through.clone(), last, M.new_zeros(cell.rectified), cell.C @ x + cell.b)


@pieces_of.register
def _of_shallow(cell: ShallowPLRNNCell, x: Tensor) -> Pieces:
    _refuse_changed(cell, ShallowPLRNNCell)
    weights = [cell.W1.clone(), cell.W2.mT.clone(), cell.b2[None].clone()]
    if cell.clipped:  # another relu of opposite weight for each, at zero
        others = (-cell.W1, cell.W2.mT, torch.zeros_like(cell.b2)[None])
        weights = [torch.cat(pair, 1) for pair in zip(weights, others, strict=True)]
    after, before, threshold = weights
    return Pieces(cell.A.diag(), after, before.mT, threshold[0], cell.C @ x + cell.b1)


def _refuse_changed(cell: nn.Module, kind: type[nn.Module]) -> None:
    if changed(cell, kind):
        raise TypeError(
            f"{type(cell).__name__} changes the step of {kind.__name__}, or has hooks, so that its "
            f"linear pieces are unknown: pass a plain {kind.__name__}"
        )


def written(patterns: np.ndarray) -> np.ndarray:
    """Patterns (..., relu) as strings of 0 and 1 (...), as objects, which Zarr can hold."""
    text = np.empty(patterns.shape[:-1], object)
    for index in np.ndindex(text.shape):
        text[index] = "".join("01"[bit] for bit in patterns[index].astype(int))
    return text
