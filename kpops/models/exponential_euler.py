"""Leaky dynamics stepped by the exponential Euler method, exact in the leak."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kpops.arrays import as_tensor
from kpops.maturity import experimental
from kpops.models.time_grid import TimeStepped, refuse_method


@experimental
class ExponentialEuler(TimeStepped):
    """The exponential Euler step of ``tau dh/dt = -h + f(t, x, h)``.

    ``h' = exp(-dt / tau) h + (1 - exp(-dt / tau)) f(t, x, h)``

    Parameters
    ----------
    field : nn.Module or callable
        f, the state to which h decays, called as `arguments` says; returns the shape of h. The
        parameters of a module learn.
    dt : float or None
        Length of a step. None: it varies and comes with the inputs.
    tau : float or array_like, shape (unit,)
        Time constants, all above 0. They learn, as their logarithms ``log_tau``. With one for each
        unit, the size of the state is known, and ``h0`` may be left out.
    arguments : {"th", "xh", "txh"}
        As for :class:`NeuralODE`.

    Raises
    ------
    TypeError
        If `field` cannot be called.
    ValueError
        If an argument is out of range.

    Notes
    -----
    It is exact at every dt where f does not change during a step, of first order otherwise, and the
    weights of h and f are never negative: unlike Euler's method it does not overshoot if dt > tau.
    It is Euler's method with dt / tau replaced by ``alpha = 1 - exp(-dt / tau)``. For a rate
    network with one time constant that is :class:`LeakyCell` with this alpha, which has faster
    engines. Inputs are made by :meth:`inputs`.

    References
    ----------
    M. Hochbruck and A. Ostermann, Exponential integrators, Acta Numerica 19 (2010).

    Examples
    --------
    >>> import torch, kpops
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh())
    >>> class Goal(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.net = net
    ...     def forward(self, t, h):
    ...         return self.net(h)
    >>> model = kpops.models.ExponentialEuler(Goal(), dt=0.5, tau=[0.1, 0.1, 10.0, 10.0])
    >>> lin = kpops.linearize(model, model.inputs(0.5 * torch.arange(21)), h0=torch.ones(4))
    >>> list(lin.parameters)
    ['log_tau', 'field.net.0.weight', 'field.net.0.bias']
    """

    def __init__(
        self,
        field: nn.Module | Callable[..., Tensor],
        dt: float | None,
        tau: Any,
        *,
        arguments: str = "th",
    ) -> None:
        super().__init__(dt, arguments)
        refuse_method(field, "field")
        given = as_tensor(tau, "tau")
        positive = bool((given > 0).all() and given.isfinite().all())
        if given.ndim > 1 or not given.numel() or not positive:
            raise ValueError(f"tau={tau!r}: pass one time constant, or one for each unit, above 0")
        self.field = field
        if given.ndim:
            self.state_size = len(given)
        own = next(field.parameters(), None) if isinstance(field, nn.Module) else None
        dtype = torch.get_default_dtype() if own is None else own.dtype
        device = None if own is None else own.device
        self.log_tau = nn.Parameter(given.double().log().to(dtype=dtype, device=device))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state; (row, feature), (row, unit) -> (row, unit)."""
        dt, t, external = self._split(x)
        exponent = -dt * torch.exp(-self.log_tau)
        # Not h + alpha (f - h), which loses the digits of a weight near zero.
        goal = self._rate(self.field, t, external, h)
        return torch.exp(exponent) * h - torch.expm1(exponent) * goal

    def inputs(self, times: Any, x: Any = None, *, n_trials: int = 1) -> Tensor:
        """Inputs for :func:`kpops.linearize` on a grid of times, as of :meth:`NeuralODE.inputs`.

        Parameters
        ----------
        times, x, n_trials
            As there, as are the errors raised.

        Returns
        -------
        Tensor, shape (trial, time, feature)
            In the dtype and on the device of the parameters.
        """
        return self._features(times, x, n_trials)[0]

    def extra_repr(self) -> str:
        """Return the options, for the repr."""
        return f"dt={self.dt}, arguments={self.arguments!r}"
