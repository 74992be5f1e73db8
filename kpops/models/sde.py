"""Neural SDEs along a fixed path of the noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kpops.models.time_grid import TimeStepped, refuse_method
from kpops.scalars import generator as random_generator


class NeuralSDE(TimeStepped):
    """The Euler-Maruyama step of the Ito SDE ``dh = f(t, x, h) dt + g(t, x, h) dW`` along a path W.

    Parameters
    ----------
    drift, diffusion : nn.Module or callable
        f and g, called as `arguments` says; both return the shape of h: the noise is diagonal, one
        Brownian motion for each unit. The parameters of modules learn.
    dt, arguments
        As for :class:`kpops.models.NeuralODE`, as are the errors raised.

    Notes
    -----
    ``h[t] = h[t-1] + f dt + g dW[t]`` with f and g at the start of the step and dW[t] of variance
    dt. The increments dW are the last S features of the inputs, after those of time and x. So the
    path is fixed: the linearization is that of the random flow along this path, and P, J and K are
    exact for the computed numbers. Different paths are different trials. Increments on a coarser
    grid are sums of those on a finer one.

    The method converges at strong order 1/2 in dt, 1 where g does not depend on h (Kloeden and
    Platen 1992, Numerical Solution of Stochastic Differential Equations, sections 10.2 and 10.3).

    Examples
    --------
    An Ornstein-Uhlenbeck process, whose rate learns:

    >>> import torch, kpops
    >>> class Decay(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.rate = torch.nn.Parameter(torch.tensor(2.0))
    ...     def forward(self, t, h):
    ...         return -self.rate * h
    >>> sde = kpops.models.NeuralSDE(Decay(), lambda t, h: 0.3 * torch.ones_like(h), dt=0.01)
    >>> inputs = sde.inputs(0.01 * torch.arange(51), n_units=4, n_trials=5, rng=0)
    >>> kpops.linearize(sde, inputs, h0=torch.zeros(4)).flow
    <P K P* (trial: 5, time: 50, unit: 4), float32 on cpu, PSD>
    """

    def __init__(
        self,
        drift: nn.Module | Callable[..., Tensor],
        diffusion: nn.Module | Callable[..., Tensor],
        dt: float | None,
        *,
        arguments: str = "th",
    ) -> None:
        super().__init__(dt, arguments)
        refuse_method(drift, "drift")
        refuse_method(diffusion, "diffusion")
        self.drift = drift
        self.diffusion = diffusion

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state; (row, feature), (row, unit) -> (row, unit)."""
        dt, t, rest = self._split(x)
        n_external = rest.shape[-1] - h.shape[-1]
        if n_external < 0 or (n_external > 0 and "x" not in self.arguments):
            raise ValueError(
                f"inputs has {rest.shape[-1]} features after those of time, NeuralSDE takes x (if "
                f"arguments has it) and {h.shape[-1]} increments of noise: make them with its "
                "method inputs"
            )
        external, increments = rest.split([n_external, h.shape[-1]], dim=-1)
        drift = self._rate(self.drift, t, external, h)
        return h + dt * drift + self._rate(self.diffusion, t, external, h) * increments

    def inputs(
        self,
        times: Any,
        n_units: int,
        x: Any = None,
        *,
        n_trials: int = 1,
        rng: int | np.random.Generator | None = None,
    ) -> Tensor:
        """Inputs for :func:`kpops.linearize`, with a path of the noise for every trial.

        Parameters
        ----------
        n_units : int
            Size S of the state.
        times, x, n_trials
            As for :meth:`kpops.models.NeuralODE.inputs`, as are the errors raised.
        rng : int, Generator or None
            Seed or source of the noise. It is drawn in float64 and rounded.

        Returns
        -------
        Tensor, shape (trial, time, feature)
            In the dtype and on the device of the parameters; the last S features are independent
            normal increments dW, whose variance is the length of their step.
        """
        features, lengths = self._features(times, x, n_trials)
        shape = (*lengths.shape[:2], n_units)
        drawn = torch.from_numpy(random_generator(rng).standard_normal(shape))
        increments = lengths.sqrt() * drawn.to(lengths)
        return torch.cat([features, increments], dim=-1)

    def extra_repr(self) -> str:
        """Return the options, for the repr."""
        return f"dt={self.dt}, arguments={self.arguments!r}"
