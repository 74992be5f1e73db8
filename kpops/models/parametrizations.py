"""Constrained weights, for ``torch.nn.utils.parametrize``.

A parametrised weight W(V) is computed from the tensor V, which learns:
``dh/dV = (dh/dW) (dW/dV)``. So K is over V, and depends on the parametrisation although the step
does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kpops.arrays import as_tensor


class Masked(nn.Module):
    """Weights that are zero where they must be: ``W = V * mask``.

    Parameters
    ----------
    mask : array_like of bool
        True where a weight may be; of the shape of the weight, or one that broadcasts to it.

    Raises
    ------
    ValueError
        If `mask` has other values than 0 and 1, or does not fit the weight.

    Examples
    --------
    An RNN in which no unit acts on itself:

    >>> import torch, kpops
    >>> from torch.nn.utils import parametrize
    >>> rnn = torch.nn.RNN(3, 8, batch_first=True)
    >>> mask = ~torch.eye(8, dtype=torch.bool)
    >>> _ = parametrize.register_parametrization(rnn, "weight_hh_l0", kpops.models.Masked(mask))
    >>> rnn.weight_hh_l0.diagonal().abs().max().item()
    0.0
    >>> list(kpops.linearize(rnn, torch.randn(5, 6, 3)).parameters)[-1]
    'parametrizations.weight_hh_l0.original'
    """

    mask: Tensor

    def __init__(self, mask: Any) -> None:
        super().__init__()
        given = as_tensor(mask, "mask")
        if not ((given == 0) | (given == 1)).all():
            raise ValueError("mask has values other than 0 and 1: pass booleans")
        self.register_buffer("mask", given.bool().clone())

    def forward(self, original: Tensor) -> Tensor:
        """W of V, both of one shape."""
        try:
            mask = self.mask.expand_as(original)
        except RuntimeError:
            raise ValueError(
                f"the mask has shape {tuple(self.mask.shape)}, the weight {tuple(original.shape)}: "
                "pass one entry for each weight"
            ) from None
        return original * mask

    def right_inverse(self, weight: Tensor) -> Tensor:
        """V that gives W where the mask is True."""
        return self(weight)


class Dale(nn.Module):
    """Weights by Dale's law: each unit excites or inhibits all others, ``W_ij = size(V_ij) s_j``.

    Parameters
    ----------
    signs : array_like
        s_j of each presynaptic unit j, the columns of the weight: 1 or -1.
    size : {"abs", "relu", "exp"}
        Function of V that gives the size of a weight. The derivatives of ``"abs"`` and ``"relu"``
        at 0 are taken to be 0; with ``"relu"`` a weight that reaches 0 stays there.

    Raises
    ------
    ValueError
        If `signs` or `size` is out of range, or does not fit the weight.

    Notes
    -----
    On registration, or when the weight is assigned, V takes the sizes of the given weight, whose
    signs are lost. With ``"exp"``, weights that are zero become tiny.

    References
    ----------
    H. F. Song, G. R. Yang and X.-J. Wang, Training excitatory-inhibitory recurrent neural networks
    for cognitive tasks, PLoS Computational Biology 12 (2016).

    Examples
    --------
    Six units that excite and two that inhibit, none acting on itself:

    >>> import torch
    >>> from kpops.models import Dale, LeakyCell, Masked
    >>> from torch.nn.utils.parametrize import register_parametrization
    >>> cell = LeakyCell(3, 8, alpha=0.2, activation="relu")
    >>> _ = register_parametrization(cell, "weight_hh", Dale([1] * 6 + [-1] * 2))
    >>> _ = register_parametrization(cell, "weight_hh", Masked(1 - torch.eye(8)))
    >>> bool((cell.weight_hh[:, :6] >= 0).all() and (cell.weight_hh[:, 6:] <= 0).all())
    True
    """

    signs: Tensor

    def __init__(self, signs: Any, *, size: str = "abs") -> None:
        super().__init__()
        given = as_tensor(signs, "signs")
        if given.ndim != 1 or not ((given == 1) | (given == -1)).all():
            raise ValueError("signs must be a list of 1 and -1, one for each presynaptic unit")
        if size not in ("abs", "relu", "exp"):
            raise ValueError(f"size={size!r}: choose 'abs', 'relu' or 'exp'")
        self.size = size
        # Integers do not change the dtype of the weight.
        self.register_buffer("signs", given.to(torch.int8, copy=True))

    def forward(self, original: Tensor) -> Tensor:
        """W of V, both of one shape."""
        if original.shape[-1:] != self.signs.shape:
            raise ValueError(
                f"there are {len(self.signs)} signs for a weight of shape "
                f"{tuple(original.shape)}: pass one for each column"
            )
        return getattr(torch, self.size)(original) * self.signs

    def right_inverse(self, weight: Tensor) -> Tensor:
        """V that gives the sizes of W."""
        sizes = weight.abs()
        if self.size != "exp":
            return sizes
        return sizes.clamp_min(torch.finfo(sizes.dtype).tiny).log()

    def extra_repr(self) -> str:
        """Return the options, for the repr."""
        return f"{len(self.signs)} units, size={self.size!r}"
