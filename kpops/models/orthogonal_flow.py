"""A recurrent weight that flows on the orthogonal group (ODE to ODE)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kpops.maturity import experimental
from kpops.models.cells import check_sizes
from kpops.models.diagonal import Rng
from kpops.models.recurrence import (
    ModuleRecurrence,
    as_recurrence,
    is_real,
    matching,
    unless_changed,
)
from kpops.scalars import generator as random_generator

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda u: u,
    "abs": torch.abs,
    "tanh": torch.tanh,
}


@experimental
class OrthogonalFlow(nn.Module):
    r"""A cell whose recurrent weight follows a flow on the orthogonal group O(d).

    ``W' = W Q(dt S)`` and ``h' = phi(W' h) + U x``,

    where S is the skew matrix whose entries below the diagonal are ``G x + g``, and
    ``Q(S) = (1 - S/2)^-1 (1 + S/2)`` its Cayley transform, an orthogonal matrix.

    Parameters
    ----------
    input_size : int
        Number of input features; they may contain the time. 0 for none.
    hidden_size : int
        Number of units d.
    dt : float
        Length of a step of the flow of W.
    activation : {"identity", "abs", "tanh"}
        phi.
    rng : int, Generator or None
        Seed or source of the weights. They are drawn in float64 and rounded.

    Raises
    ------
    ValueError
        If a size, `dt` or `activation` is out of range.

    Notes
    -----
    W is part of the state, which holds h, then W row by row (coordinates ``variable``, ``row`` and
    ``column`` of the units). It starts at 1 where h0 has only the d numbers of h, and a readout
    sees h. The step of W is that of ``dW/dt = W S`` to second order in dt, and stays on O(d) to
    rounding at every dt.

    The block of A from h to h is ``diag(phi') W'``. With the first two activations it is
    orthogonal, since phi' is 1 or -1. W does not depend on h, so between units h the blocks P[t, s]
    are products of such matrices, whose singular values are all 1: gradients neither vanish nor
    explode. With tanh they are at most 1. Between h and W nothing of the kind holds.

    The parameters are ``flow_weight`` (d (d - 1) / 2, input) G, ``flow_bias`` g and ``weight_ih``
    (d, input) U. G and g start normal, over sqrt(input_size) for G, and U uniform in
    +-1/sqrt(d).

    References
    ----------
    K. Choromanski et al., Ode to an ODE, NeurIPS 2020, where S comes from a network (the gated
    form). Their main flow is a differential equation; here it is a map, which keeps lengths
    exactly.

    Examples
    --------
    >>> import torch, kpops
    >>> cell = kpops.models.OrthogonalFlow(3, 4, rng=0)
    >>> lin = kpops.linearize(cell, torch.randn(1, 50, 3))
    >>> P = torch.from_numpy(lin.P.to_dense()).reshape(50, 20, 50, 20)[49, :4, 0, :4]
    >>> torch.allclose(torch.linalg.svdvals(P), torch.ones(4), atol=1e-5)
    True
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        dt: float = 0.1,
        activation: str = "identity",
        rng: Rng = None,
    ) -> None:
        super().__init__()
        check_sizes(0, input_size=input_size)
        check_sizes(hidden_size=hidden_size)
        if not (is_real(dt) and 0 < dt < math.inf):
            raise ValueError(f"dt={dt!r}: pass the length of a step, above 0")
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation={activation!r}: choose from {sorted(_ACTIVATIONS)}")
        self.input_size = input_size
        self.n_units = hidden_size
        self.state_size = hidden_size + hidden_size**2
        self.dt = float(dt)
        self.activation = activation
        generator, dtype = random_generator(rng), torch.get_default_dtype()
        entries = hidden_size * (hidden_size - 1) // 2
        bound = 1 / math.sqrt(hidden_size)
        drawn = (
            generator.standard_normal((entries, input_size)) / math.sqrt(max(input_size, 1)),
            generator.standard_normal(entries),
            generator.uniform(-bound, bound, (hidden_size, input_size)),
        )
        self.flow_weight, self.flow_bias, self.weight_ih = (
            nn.Parameter(torch.from_numpy(values).to(dtype)) for values in drawn
        )

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state; (row, input), (row, unit) -> (row, unit)."""
        h, flat = h.tensor_split([self.n_units], dim=-1)
        W = flat.unflatten(-1, (self.n_units, self.n_units)) @ self.rotation(x)
        new = _ACTIVATIONS[self.activation](torch.einsum("...ij,...j->...i", W, h))
        return torch.cat([new + F.linear(x, self.weight_ih), W.flatten(-2)], dim=-1)

    def rotation(self, x: Tensor) -> Tensor:
        """The orthogonal step of W at these inputs; (row, input) -> (row, unit, unit)."""
        half = self.dt / 2 * F.linear(x, self.flow_weight, self.flow_bias)
        one = torch.eye(self.n_units, dtype=half.dtype, device=half.device)
        rows, columns = torch.tril_indices(self.n_units, self.n_units, -1, device=half.device)
        # Entries are placed by a product, since a step changes nothing in place.
        below = one[rows][:, :, None] * one[columns][:, None, :]
        S = torch.einsum("...e,eij->...ij", half, below - below.mT)
        return torch.linalg.solve(one - S, one + S)

    def extra_repr(self) -> str:
        """Return the options, for the repr."""
        return f"{self.input_size}, {self.n_units}, dt={self.dt}, activation={self.activation!r}"


class _FlowRecurrence(ModuleRecurrence):
    """The structure of an OrthogonalFlow."""

    module: Any

    def output(self, h: Tensor) -> Tensor:
        return h[..., : self.module.n_units]

    def initial_state(self, h0: Any, n_trials: int, like: Tensor) -> Tensor:
        """Append W = 1 where `h0` has only the units h, or is None."""
        d = self.module.n_units
        start = like.new_zeros(d) if h0 is None else matching(h0, like, "h0")
        if start.shape[-1:] == (d,):
            one = torch.eye(d, dtype=like.dtype, device=like.device).flatten()
            start = torch.cat([start, one.expand(*start.shape[:-1], -1)], dim=-1)
        return super().initial_state(start, n_trials, like)

    def unit_coords(self, state_size: int) -> dict[str, np.ndarray]:
        """Variable, row and column of every unit; the column is -1 for h."""
        d = self.module.n_units
        return {
            "variable": np.repeat(np.array(["h", "W"], dtype=object), [d, d**2]),
            "row": np.concatenate([np.arange(d), np.repeat(np.arange(d), d)]),
            "column": np.concatenate([np.full(d, -1), np.tile(np.arange(d), d)]),
        }


as_recurrence.register(OrthogonalFlow, unless_changed(OrthogonalFlow, _FlowRecurrence))
