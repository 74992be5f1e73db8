"""Neural ODEs: the map of a fixed-step solver is the recurrence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from kpops.models.time_grid import TimeStepped, refuse_method

# Pairs (c_i, b_i): stage i takes the field where the last stage points after the fraction c_i of
# the step, and enters the sum with weight b_i. These are the explicit Runge-Kutta methods whose
# matrix has a single subdiagonal.
_STAGES: dict[str, tuple[tuple[float, float], ...]] = {
    "euler": ((0, 1),),
    "midpoint": ((0, 0), (1 / 2, 1)),
    "rk4": ((0, 1 / 6), (1 / 2, 1 / 3), (1 / 2, 1 / 3), (1, 1 / 6)),
}


class NeuralODE(TimeStepped):
    r"""A vector field and a fixed-step solver of ``dh/dt = f(t, x, h)``, one step at a time.

    Parameters
    ----------
    field : nn.Module or callable
        The vector field, called as `arguments` says; returns dh/dt of the shape of h. The
        parameters of a module learn; a plain function has none.
    dt : float or None
        Length of a step. None: it varies and comes with the inputs.
    method : {"euler", "midpoint", "rk4"}
        Explicit Runge-Kutta method, of order 1, 2 or 4 (the classical one).
    n_substeps : int
        Equal steps of the solver within each step of the recurrence.
    forcing : {"state", "rate"}
        Whether a perturbation q kicks the state after a step or is a density in time; see Notes.
    arguments : {"th", "xh", "txh"}
        What the field takes, in this order: time t of shape (row, 1), external inputs x (row,
        feature), state h (row, unit). The default, ``field(t, h)``, is the order of torchdiffeq,
        whose vector fields plug in as they are, unless they need t to be a scalar.

    Raises
    ------
    TypeError
        If `field` cannot be called.
    ValueError
        If an argument is out of range; if `forcing` is "rate" and `dt` None.

    Notes
    -----
    *Discretise, then optimise.* The recurrence is the map of the solver, h[t] = F(x[t], h[t-1]). So
    A, P and J are exact for the computed numbers, and P* is the exact adjoint of P at every dt.
    External inputs are constant within a step.

    *Inputs* have the features [length of the step, if `dt` is None | time at which it starts, if
    the field takes t | x, if it takes x]: :meth:`inputs` joins them. A field that takes only x and
    h does not need it, and one that ignores t accepts any number. Pass the start as ``h0`` to
    :func:`kpops.linearize`; it also gives the size of the state. Results are labelled with the
    times at which the steps end, unless the inputs are a DataArray with times of its own; if trials
    have different grids, these are the coordinate ``trial_time``.

    *Forcing.* In dh/dt = f(h) + q(t) the perturbation is a density: it moves the trajectory by the
    integral of q through the propagator of the continuous flow. With ``forcing="rate"`` the
    operators are those of densities,

        P -> dt P,    J -> J / dt,    K -> K / dt^2,

    while P K P* and P J = dh/dtheta do not change. With equal steps, the inner product of L2 in
    time is dt times the plain one on both sides. Hence the singular values of dt P are those
    between L2 spaces; as dt -> 0 they converge to those of the integral operator
    :math:`q \mapsto \int_0^t \Phi(t, s) q(s) ds`. (With unequal steps they would not, so `dt` is
    required.)

    *Order.* The blocks of P, products of the solver's steps, converge at the order of the method,
    and so do the singular values of dt P towards those of the exact flow on the same steps. The
    sum that replaces the integral over s adds an error. Forcing enters after a step, a rectangle
    rule: the singular values converge to those of the integral operator only at first order, as if
    T were T + dt/2 (exactly so for f = 0). Two remedies reach the order of the method:

    - up to 2, the midpoint rule: subtract half of each step's own effect, ``dt (P - I/2)``;
    - up to 4, the same at dt and at dt/2, with singular values s and s': ``(4 s' - s) / 3``.

    Examples
    --------
    >>> import torch, kpops
    >>> class Field(torch.nn.Module):  # as for torchdiffeq
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.net = torch.nn.Linear(2, 2)
    ...     def forward(self, t, h):
    ...         return torch.tanh(self.net(h)) - h
    >>> ode = kpops.models.NeuralODE(Field(), dt=0.1, method="rk4", forcing="rate")
    >>> inputs = ode.inputs(0.1 * torch.arange(21), n_trials=3)
    >>> lin = kpops.linearize(ode, inputs, h0=torch.randn(3, 2))
    >>> lin.P
    <0.1 P (trial: 3, time: 20, unit: 2), float32 on cpu>
    >>> lin.states.time.values[-1].item()
    2.0
    """

    def __init__(
        self,
        field: nn.Module | Callable[..., Tensor],
        dt: float | None,
        method: str = "euler",
        *,
        n_substeps: int = 1,
        forcing: str = "state",
        arguments: str = "th",
    ) -> None:
        super().__init__(dt, arguments)
        refuse_method(field, "field")
        if method not in _STAGES:
            raise ValueError(f"method={method!r}: choose one of {list(_STAGES)}")
        if not isinstance(n_substeps, int) or n_substeps < 1:
            raise ValueError(f"n_substeps={n_substeps!r}: pass an int, 1 or more")
        if forcing not in ("state", "rate"):
            raise ValueError(f"forcing={forcing!r}: choose 'state' or 'rate'")
        if forcing == "rate" and dt is None:
            raise ValueError(
                "forcing='rate' with dt=None: singular values are those of L2 in time only if all "
                "steps are equally long; pass dt, or forcing='state'"
            )
        self.field = field
        self.method = method
        self.n_substeps = n_substeps
        self.forcing = forcing
        if "x" not in arguments:
            self.input_size = 1 + (dt is None)

    @property
    def forcing_step(self) -> float:
        """Factor of P and divisor of J: `dt` if `forcing` is "rate", else 1."""
        return self.dt if self.forcing == "rate" and self.dt is not None else 1.0

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state; (row, feature), (row, unit) -> (row, unit)."""
        length, t, external = self._split(x)
        dt = length / self.n_substeps
        for i in range(self.n_substeps):
            h = self._solver_step(None if t is None else t + i * dt, dt, external, h)
        return h

    def _solver_step(self, t: Tensor | None, dt: Tensor | float, x: Tensor, h: Tensor) -> Tensor:
        change: Tensor | float = 0.0
        rate: Tensor | float = 0.0
        for node, weight in _STAGES[self.method]:
            here = None if t is None else t + node * dt
            rate = self._rate(self.field, here, x, h + node * dt * rate)
            change = change + weight * rate
        return h + dt * change

    def inputs(self, times: Any, x: Any = None, *, n_trials: int = 1) -> Tensor:
        """Inputs for :func:`kpops.linearize` on a grid of times.

        Parameters
        ----------
        times : array_like, shape (time + 1,) or (trial, time + 1)
            Rising times, from the start of the first step to the end of the last.
        x : array_like, shape (trial, time, feature), optional
            External inputs, if the field takes them.
        n_trials : int
            Number of trials, if neither `x` nor `times` has trials.

        Returns
        -------
        Tensor, shape (trial, time, feature)
            In the dtype and on the device of the parameters.

        Raises
        ------
        ValueError
            If times do not rise, or do not have the step `dt`; if shapes disagree; if `x` is given
            and the field does not take it, or the reverse.

        Examples
        --------
        >>> import kpops
        >>> ode = kpops.models.NeuralODE(lambda t, h: -t * h, dt=None)
        >>> ode.inputs([0.0, 0.5, 2.0])[0]  # length of each step, and time at which it starts
        tensor([[0.5000, 0.0000],
                [1.5000, 0.5000]])
        """
        return self._features(times, x, n_trials)[0]

    def extra_repr(self) -> str:
        """Return the options, for the repr."""
        return (
            f"dt={self.dt}, method={self.method!r}, n_substeps={self.n_substeps}, "
            f"forcing={self.forcing!r}, arguments={self.arguments!r}"
        )
