"""The step of a cell without inputs, in few operations, since thousands follow each other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kpops.models.piecewise_linear import PLRNNCell, ShallowPLRNNCell
from kpops.models.recurrence import changed

Step = Callable[[Tensor], Tensor]


def free_step(cell: nn.Module, n_features: int, like: Tensor) -> Step:
    """The map of states (trial, unit) to the next ones, of a cell whose inputs are 0.

    `like` is a tensor with as many trials. The weights are read once.
    """
    for kind, form in _FORMS.items():
        if isinstance(cell, kind) and not changed(cell, kind):
            return form(cell)
    x = like.new_zeros(len(like), n_features)
    return lambda h: cell(x, h)


def _almost_linear(cell: PLRNNCell) -> Step:
    """``h' = h (diag(A) + W_linear^T) + relu(h) W_rectified^T + b``."""
    n = cell.hidden_size - cell.rectified
    W = cell.W.t()
    linear = torch.diag(cell.A) + torch.cat([W[:n], torch.zeros_like(W[n:])])
    bent, b = W[n:], cell.b
    return lambda h: torch.addmm(torch.addmm(b, h, linear), torch.relu(h[:, n:]), bent)


def _shallow(cell: ShallowPLRNNCell) -> Step:
    """``h' = A h + b1 + relu(h W2^T + b2) W1^T``, and the clipped form."""
    A, b1, b2, outwards, inwards = cell.A, cell.b1, cell.b2, cell.W1.t(), cell.W2.t()
    if cell.clipped:

        def step(h: Tensor) -> Tensor:
            seen = h @ inwards
            bent = torch.relu(seen + b2) - torch.relu(seen)
            return torch.addmm(torch.addcmul(b1, A, h), bent, outwards)

        return step
    return lambda h: torch.addmm(
        torch.addcmul(b1, A, h), torch.relu(torch.addmm(b2, h, inwards)), outwards
    )


_FORMS: dict[type[nn.Module], Callable[..., Step]] = {
    PLRNNCell: _almost_linear,
    ShallowPLRNNCell: _shallow,
}
