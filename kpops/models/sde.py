"""Neural SDEs along a fixed path of the noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kpops.maturity import experimental
from kpops.models.time_grid import TimeStepped, refuse_method
from kpops.scalars import generator as random_generator


@experimental
class NeuralSDE(TimeStepped):
    """The Euler-Maruyama step of ``dh = f(t, x, h) dt + g(t, x, h) dW``, of Ito, along a path W.

    Parameters
    ----------
    drift, diffusion : nn.Module or callable
        f and g, called as `arguments` says; both return the shape of h: the noise is diagonal, one
        Brownian motion for each unit. The parameters of modules learn.
    dt : float or None
        Length of a step. None: it differs from step to step and comes with the inputs.
    arguments : {"th", "xh", "txh"}
        What f and g take, in this order; see :class:`kpops.models.NeuralODE`.

    Raises
    ------
    TypeError
        If `drift` or `diffusion` cannot be called.
    ValueError
        If an argument is out of range.

    Notes
    -----
    ``h[t] = h[t-1] + f dt + g dW[t]`` with f and g at the start of the step and dW[t] of variance
    dt. The increments dW are the last S features of the inputs, behind those of time and x, so that
    the path is fixed: the linearization is that of the random flow along this path, deterministic
    given the path, and P, J and K are exact for the numbers that are computed. Different paths are
    different trials. As increments, those of a coarser grid are sums of those of a finer one.

    The method converges at strong order 1/2 in dt, 1 where g does not depend on h (Kloeden and
    Platen 1992, Numerical Solution of Stochastic Differential Equations, sections 10.2 and 10.3).

    Examples
    --------
    An Ornstein-Uhlenbeck process, whose rate learns:

    >>> import torch, kpops
    >>> from kpops.models import NeuralSDE
    >>> class Decay(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.rate = torch.nn.Parameter(torch.tensor(2.0))
    ...     def forward(self, t, h):
    ...         return -self.rate * h
    >>> sde = NeuralSDE(Decay(), lambda t, h: 0.3 * torch.ones_like(h), dt=0.01)
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
                f"inputs has {rest.shape[-1]} features behind those of time, NeuralSDE takes x (if "
                f"arguments has it) and {h.shape[-1]} increments of noise: make them by its method "
                "inputs"
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
        times : array_like, shape (time + 1,) or (trial, time + 1)
            Rising times, from the start of the first step to the end of the last.
        n_units : int
            Size S of the state.
        x : array_like, shape (trial, time, feature), optional
            External inputs, if drift and diffusion take them.
        n_trials : int
            Number of trials, where neither `x` nor `times` tells.
        rng : int, Generator or None
            Seed or source of the noise. It is drawn in float64 and rounded.

        Returns
        -------
        Tensor, shape (trial, time, feature)
            In the dtype and on the device of the parameters; the last S features are independent
            normal increments dW, of the length of their step as variance.

        Raises
        ------
        ValueError
            As :meth:`kpops.models.NeuralODE.inputs` does.
        """
        features, lengths = self._features(times, x, n_trials)
        shape = (*lengths.shape[:2], n_units)
        drawn = torch.from_numpy(random_generator(rng).standard_normal(shape))
        increments = lengths.sqrt() * drawn.to(lengths)
        return torch.cat([features, increments], dim=-1)

    def extra_repr(self) -> str:
        """Return the options, for the repr."""
        return f"dt={self.dt}, arguments={self.arguments!r}"
