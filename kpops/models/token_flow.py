"""Tokens that flow through ever more selective layers: the limit of infinite depth."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kpops.models.cells import check_sizes
from kpops.models.diagonal import Rng
from kpops.models.recurrence import is_real
from kpops.scalars import generator as random_generator


class TokenFlow(nn.Module):
    r"""The vector field by which a deep stack of selective layers moves its tokens.

    With tokens x_1 .. x_L in R^D, and time as depth,

    ``dx_l/dt = sum_{j <= l} (C x_l . B x_j) delta_j exp(-a sum_{k = j+1}^{l} delta_k) x_j``,
    ``delta_j = softplus(s . x_j)``

    Parameters
    ----------
    size : int
        Size D of a token.
    n_states : int
        Number of rows of B and C.
    decay : float
        a, above 0, the same for all states.
    rng : int, Generator or None
        Seed or source of the weights. They are drawn in float64 and rounded.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    A selective layer (:class:`SelectiveLayer`) with one step size and one rate for all channels
    mixes the tokens by these weights. With the layer on the branch of a residual stack and a small
    step, depth becomes time and the stack this flow. The state is that of a
    :class:`NeuralODE` around it, token by token, ``forward(t, h)``. So P, exponents and K of the
    depth are those of any neural ODE.

    The parameters are ``key_weight`` (state, channel) B, ``query_weight`` (state, channel) C and
    ``step_weight`` (channel,) s; a does not learn. What becomes of the tokens depends on
    ``mu = C^T B``: see :func:`kpops.token_dynamics`. Weights start normal, over sqrt(size).

    References
    ----------
    T. Vo, D.-T. Pham, X. T. Tong and T. M. Nguyen, Demystifying the token dynamics of deep
    selective state space models, ICLR 2025 (arXiv 2410.03292).

    Examples
    --------
    >>> import torch, kpops
    >>> flow = kpops.models.TokenFlow(2, 4, rng=0)
    >>> ode = kpops.models.NeuralODE(flow, dt=0.1, method="rk4")
    >>> tokens = 0.1 * torch.randn(3, 5 * 2)
    >>> kpops.linearize(ode, ode.inputs(0.1 * torch.arange(11)), h0=tokens[:1]).P
    <P (trial: 1, time: 10, unit: 10), float32 on cpu>
    """

    def __init__(self, size: int, n_states: int, *, decay: float = 1.0, rng: Rng = None) -> None:
        super().__init__()
        check_sizes(size=size, n_states=n_states)
        if not (is_real(decay) and 0 < decay < math.inf):
            raise ValueError(f"decay={decay!r}: pass a number above 0")
        self.size = size
        self.n_states = n_states
        self.decay = decay
        generator, dtype = random_generator(rng), torch.get_default_dtype()
        shapes = (n_states, size), (n_states, size), (size,)
        self.key_weight, self.query_weight, self.step_weight = (
            nn.Parameter(
                torch.from_numpy(generator.standard_normal(shape) / math.sqrt(size)).to(dtype)
            )
            for shape in shapes
        )

    def forward(self, t: Tensor | None, h: Tensor) -> Tensor:
        """Velocity of all tokens; t is ignored, h (row, token * channel) -> the same."""
        x = h.unflatten(-1, (-1, self.size))
        delta = F.softplus(x @ self.step_weight)
        elapsed = delta.cumsum(-1)
        lag = elapsed[..., :, None] - elapsed[..., None, :]
        earlier = torch.ones_like(lag[..., :, :]).tril().bool()
        passed = torch.exp(-self.decay * lag.masked_fill(~earlier, math.inf))
        query, key = F.linear(x, self.query_weight), F.linear(x, self.key_weight)
        weights = query @ key.mT * delta[..., None, :] * passed
        return (weights @ x).flatten(-2)

    def mu(self) -> Tensor:
        """The matrix C^T B, shape (channel, channel)."""
        return self.query_weight.mT @ self.key_weight

    def extra_repr(self) -> str:
        """Return the options, for the repr."""
        return f"{self.size}, {self.n_states}, decay={self.decay}"
