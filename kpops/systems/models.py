"""Flows and maps as models: the map of a solver, or the map itself, is the recurrence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from kpops.maturity import experimental
from kpops.models.ode import NeuralODE
from kpops.systems.registry import Entry


class Field(nn.Module):
    """Vector field of a flow, or right-hand side of a map, whose parameters are attributes."""

    def __init__(self, entry: Entry, values: Mapping[str, float]) -> None:
        super().__init__()
        self.entry = entry
        for name, value in values.items():
            parameter = nn.Parameter(torch.tensor(value, dtype=torch.float64))
            self.register_parameter(name, parameter)

    def forward(self, t: Any, h: Tensor) -> Tensor:
        """Rate, or next state; (.., unit) -> (.., unit). The time t has no effect."""
        values = {name: getattr(self, name) for name in self.entry.defaults}
        rates = self.entry.rates(h, values)
        if isinstance(rates, Tensor):
            return rates
        return torch.stack(torch.broadcast_tensors(*rates), -1)


class System:
    """What flows and maps share.

    Attributes
    ----------
    name, reference : str
        Name, and the publication of the equation.
    dt : float or None
        Time of a step; None for a map.
    start : Tensor, shape (unit,)
        A state on the attractor or near it.
    variables : tuple of str
        Names of the units.
    literature : tuple of float
        Exponents of a trusted table, or none.
    """

    start: Tensor
    field: Any
    dt: float | None
    entry: Entry

    def _describe(self, entry: Entry) -> None:
        self.entry = entry
        start = torch.tensor(entry.start, dtype=torch.float64)
        self.register_buffer("start", start)  # type: ignore[attr-defined]
        self.hidden_size = len(entry.start) if entry.variables else None

    @property
    def name(self) -> str:
        """Name of the system."""
        return self.entry.name

    @property
    def reference(self) -> str:
        """Publication of the equation."""
        return self.entry.reference

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the units of the initial state `start`."""
        return self.entry.variables or tuple(f"h{i}" for i in range(len(self.entry.start)))

    @property
    def literature(self) -> tuple[float, ...]:
        """Exponents of a trusted table at the default parameters; empty if there is none."""
        return tuple(float(value) for value in self.entry.literature.split())

    @property
    def settings(self) -> dict[str, float]:
        """Values of the parameters by name, as they are now."""
        return {name: float(getattr(self.field, name).detach()) for name in self.entry.defaults}


@experimental
class Flow(System, NeuralODE):
    """A flow, as :func:`kpops.systems.load` makes it: the step of RK4 on its vector field.

    ``flow.field`` is the vector field, with the parameters as attributes.
    """

    def __init__(self, entry: Entry, values: Mapping[str, float]) -> None:
        NeuralODE.__init__(self, Field(entry, values), entry.dt, "rk4", n_substeps=entry.n_substeps)
        self._describe(entry)

    def extra_repr(self) -> str:
        """Return name and solver, for the repr."""
        return f"{self.name!r}, {NeuralODE.extra_repr(self)}"


@experimental
class Map(System, nn.Module):
    """A map, as :func:`kpops.systems.load` makes it: a cell ``forward(x, h)`` without inputs.

    ``map.field`` is the right-hand side, with the parameters as attributes.
    """

    dt = None
    input_size = 0

    def __init__(self, entry: Entry, values: Mapping[str, float]) -> None:
        nn.Module.__init__(self)
        self.field = Field(entry, values)
        self._describe(entry)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state; (row, 0), (row, unit) -> (row, unit)."""
        return self.field(None, h)

    def extra_repr(self) -> str:
        """Return the name, for the repr."""
        return repr(self.name)


@experimental
class SemilinearFlow(System, nn.Module):
    r"""A stiff flow :math:`\dot h = L h + N(h)` on a ring, whose linear part is solved exactly.

    Its field has ``symbol(n)``, the eigenvalues of L on the n // 2 + 1 real Fourier modes, and
    ``bent(h)``, the rest N. Each of the `n_substeps` equal parts tau of a step dt is one of ETDRK4
    (Cox and Matthews 2002, J. Comput. Phys. 176, 430-455). With z = L tau, and
    :math:`\varphi_{j+1}(z) = (\varphi_j(z) - 1 / j!) / z`, :math:`\varphi_0 = \exp`::

        a = e^{z/2} h + tau/2 phi_1(z/2) N(h),   b = the same with N(a) for N(h),
        c = e^{z/2} a + tau/2 phi_1(z/2) (2 N(b) - N(h)),
        h' = e^z h + tau [(phi_1 - 3 phi_2 + 4 phi_3) N(h) + (2 phi_2 - 4 phi_3) (N(a) + N(b))
             + (4 phi_3 - phi_2) N(c)].
    """

    input_size = 0

    def __init__(self, entry: Entry, field: nn.Module) -> None:
        nn.Module.__init__(self)
        if entry.dt is None:
            raise ValueError(f"{entry.name} has no dt: give its entry the time of a step")
        self.field = field
        self.dt = entry.dt
        self.n_substeps = entry.n_substeps
        self._describe(entry)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state; (row, 0), (row, unit) -> (row, unit)."""
        field, dt = self.field, cast(float, self.dt)
        n, tau = h.shape[-1], dt / self.n_substeps
        z = tau * field.symbol(n)
        grow, push = torch.exp(z / 2), tau / 2 * _phi(z / 2)[1]
        full, one, two, three = _phi(z)
        weights = tau * (one - 3 * two + 4 * three), tau * (2 * two - 4 * three)
        last = tau * (4 * three - two)

        def rest(modes: Tensor) -> Tensor:
            return torch.fft.rfft(field.bent(torch.fft.irfft(modes, n)))

        modes = torch.fft.rfft(h)
        for _ in range(self.n_substeps):
            first = rest(modes)
            a = grow * modes + push * first
            second = rest(a)
            third = rest(grow * modes + push * second)
            fourth = rest(grow * a + push * (2 * third - first))
            bent = weights[0] * first + weights[1] * (second + third) + last * fourth
            modes = full * modes + bent
        return torch.fft.irfft(modes, n)

    def extra_repr(self) -> str:
        """Return name and step, for the repr."""
        return f"{self.name!r}, dt={self.dt}, n_substeps={self.n_substeps}"


def _phi(z: Tensor) -> list[Tensor]:
    """phi_0 to phi_3 of real numbers; by their series where the recursion would cancel."""
    near = z.abs() < 1
    small, large = z.where(near, torch.zeros_like(z)), z.where(~near, torch.ones_like(z))
    values = [torch.exp(z)]
    far = torch.exp(large)
    for j in range(3):
        far = (far - 1 / math.factorial(j)) / large
        series = sum(small**i / math.factorial(i + j + 1) for i in range(18))
        values.append(torch.where(near, series, far))
    return values
