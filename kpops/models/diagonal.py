"""Recurrences that do not couple units, whose propagator is a scan, and state-space layers.

The layers are only the recurrent part, one step at a time: h' = A(x) h + b(x). What follows in a
deep state-space model, C h + D x and a nonlinearity, is the readout of :func:`kpops.linearize`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kpops.models.cells import check_sizes
from kpops.models.recurrence import ModuleRecurrence, as_recurrence, unless_changed
from kpops.scalars import generator as random_generator

Rng = int | np.random.Generator | None
_VARIABLES = {"real": ("h",), "complex": ("re", "im")}


class DiagonalRecurrence(ModuleRecurrence):
    """A step whose state Jacobian is diagonal over units, with small blocks for their variables.

    With variables s_v of each unit i (mostly one; real and imaginary part of a complex state),

        s'_v,i = f_v,i(x, s_1,i, s_2,i, ...),

    where f takes the state unit by unit, and is otherwise arbitrary. Register a module with this
    class, or with a subclass that has its own :meth:`forward`: the engine ``scan`` then works for
    the model.

    Parameters
    ----------
    module : nn.Module
        The user's module, whose ``forward(x_t, h)`` returns the next state.
    variables : sequence of str
        Names of the state variables of a unit. The state holds the first variable of all units,
        then the next.

    Raises
    ------
    ValueError
        When linearised, if the state size is no multiple of the variables, or units are coupled.

    Examples
    --------
    A leaky integrator for each input, each with its own time constant:

    >>> import torch, kpops
    >>> class Leaky(torch.nn.Module):
    ...     def __init__(self, size):
    ...         super().__init__()
    ...         self.input_size = self.state_size = size
    ...         self.leak = torch.nn.Parameter(torch.zeros(size))
    ...     def forward(self, x, h):
    ...         return h + torch.sigmoid(self.leak) * (x - h)
    >>> @kpops.models.as_recurrence.register
    ... def _(model: Leaky) -> kpops.models.Recurrence:
    ...     return kpops.models.DiagonalRecurrence(model)
    >>> kpops.linearize(Leaky(3), torch.randn(5, 1000, 3)).engine.name
    'scan'
    """

    module: Any

    def __init__(self, module: nn.Module, variables: Sequence[str] = ("h",)) -> None:
        super().__init__(module)
        self.variables = tuple(variables)

    def unit_coords(self, state_size: int) -> dict[str, np.ndarray]:
        """Variable (such as "re" or "im") of every unit, if there are several."""
        names = np.array(self.variables, dtype=object)  # Zarr has no fixed-width strings yet
        n_variables = len(names)
        if state_size % n_variables:
            raise ValueError(
                f"the state of {type(self.module).__name__} has {state_size} units, which are not "
                f"{n_variables} variables {self.variables} of as many units each"
            )
        if n_variables == 1:
            return {}
        return {"variable": np.repeat(names, state_size // n_variables)}


class DiagonalSSM(nn.Module):
    r"""A diagonal state-space layer of decaying or rotating modes (S4D, S5, LRU).

    - ``form="real"``: ``h' = a h + B x`` with ``a = exp(-exp(log_rate))``;
    - ``form="complex"``: ``z' = a exp(i phase) z + B x`` with complex B, on the real and imaginary
      parts of z.

    Parameters
    ----------
    input_size : int
        Number of input features.
    n_modes : int
        Number of modes. The state has n_modes variables, or, all real parts first, 2 n_modes.
    form : {"complex", "real"}
        See above.
    radius : (float, float)
        Range of ``|a|`` at the start, above 0 and below 1.
    rng : int, Generator or None
        Seed or source of the weights. They are drawn in float64 and rounded.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    The decay, stable at every value, and its start are those of the linear recurrent unit (LRU,
    Orvieto et al. 2023, arXiv 2303.06349): \|a\|^2 uniform in the ring, and B scaled by
    (1 - \|a\|^2)^(1/2), so that the state has about unit variance under white inputs. Unlike there,
    this scale is part of B and no separate parameter, and the parameter is the phase, which starts
    uniform in [0, pi], not its logarithm. S4D and S5 (arXiv 2206.11893, 2208.04933) discretise a
    continuous system by steps dt: under a zero-order hold a = exp(dt lambda), and B becomes
    (a - 1) B / lambda. They are the same recurrence under other parameters. K is over those of
    this class.

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(kpops.models.DiagonalSSM(3, 8, rng=0), torch.randn(2, 1000, 3))
    >>> lin.P
    <P (trial: 2, time: 1000, unit: 16), float32 on cpu>
    >>> lin.engine.name
    'scan'
    """

    def __init__(
        self,
        input_size: int,
        n_modes: int,
        *,
        form: str = "complex",
        radius: tuple[float, float] = (0.5, 0.99),
        rng: Rng = None,
    ) -> None:
        super().__init__()
        check_sizes(input_size=input_size, n_modes=n_modes)
        if form not in _VARIABLES:
            raise ValueError(f"form={form!r}: choose 'complex' or 'real'")
        if not 0 < radius[0] <= radius[1] < 1:
            raise ValueError(f"radius={radius}: pass a rising pair above 0 and below 1")
        self.input_size = input_size
        self.n_modes = n_modes
        self.form = form
        self.state_size = n_modes * len(_VARIABLES[form])
        generator = random_generator(rng)
        squared = generator.uniform(radius[0] ** 2, radius[1] ** 2, n_modes)
        self.log_rate = _parameter(np.log(-np.log(squared) / 2))
        if form == "complex":
            self.phase = _parameter(generator.uniform(0, np.pi, n_modes))
        weight = generator.standard_normal((self.state_size, input_size))
        scale = np.sqrt((1 - squared) / (input_size * len(_VARIABLES[form])))
        self.weight = _parameter(weight * np.tile(scale, len(_VARIABLES[form]))[:, None])

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state; (row, input), (row, state) -> (row, state)."""
        decay = torch.exp(-torch.exp(self.log_rate))
        drive = F.linear(x, self.weight)
        if self.form == "real":
            return decay * h + drive
        re, im = h.chunk(2, dim=-1)
        cos, sin = decay * torch.cos(self.phase), decay * torch.sin(self.phase)
        return torch.cat([cos * re - sin * im, sin * re + cos * im], dim=-1) + drive

    def extra_repr(self) -> str:
        """Return the options, for the repr."""
        return f"{self.input_size}, {self.n_modes}, form={self.form!r}"


class SelectiveSSM(nn.Module):
    """A selective state-space layer, whose decay and drive depend on the input (Mamba).

    Each channel c of the input has N states n,

        h'_cn = exp(-delta_c exp(log_rate_cn)) h_cn + delta_c B_n(x) x_c,
        delta = softplus(W x + b),    B(x) = V x.

    Parameters
    ----------
    input_size : int
        Number of channels. Sizes that are not positive raise a ValueError.
    n_states : int
        States N of each channel; the state has input_size * N variables, channel by channel.
    rng
        As for :class:`DiagonalSSM`.

    Notes
    -----
    The recurrence S6 of Gu and Dao (2023, arXiv 2312.00752, algorithm 2), with a full W instead of
    one of low rank. As in their code, a zero-order hold discretises the decay, and Euler's step
    ``delta B`` the drive, for which equation 4 of the paper has the hold too. Its output
    sum_n C_n(x) h_cn also depends on x and is not included. As there, rates start at 1..N and step
    sizes log-uniformly in [0.001, 0.1].

    Examples
    --------
    >>> import torch, kpops
    >>> lin = kpops.linearize(kpops.models.SelectiveSSM(3, 4, rng=0), torch.randn(2, 50, 3))
    >>> lin.states.channel.values
    array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    """

    def __init__(self, input_size: int, n_states: int, *, rng: Rng = None) -> None:
        super().__init__()
        check_sizes(input_size=input_size, n_states=n_states)
        self.input_size = input_size
        self.n_states = n_states
        self.state_size = input_size * n_states
        generator = random_generator(rng)
        bound = 1 / math.sqrt(input_size)
        step = np.exp(generator.uniform(np.log(1e-3), np.log(1e-1), input_size))
        self.log_rate = _parameter(np.tile(np.log(np.arange(1, n_states + 1)), (input_size, 1)))
        self.step_weight = _parameter(generator.uniform(-bound, bound, (input_size, input_size)))
        self.step_bias = _parameter(np.log(np.expm1(step)))  # softplus gives the step back
        self.drive_weight = _parameter(generator.uniform(-bound, bound, (n_states, input_size)))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state; (row, channel), (row, channel * state) -> the same."""
        delta = F.softplus(F.linear(x, self.step_weight, self.step_bias))[..., None]
        decay = torch.exp(-delta * torch.exp(self.log_rate))
        drive = delta * x[..., None] * F.linear(x, self.drive_weight)[..., None, :]
        return (decay * h.unflatten(-1, decay.shape[-2:]) + drive).flatten(-2)

    def extra_repr(self) -> str:
        """Return the options, for the repr."""
        return f"{self.input_size}, {self.n_states}"


class LinearTimeVarying(nn.Module):
    """A dense linear layer whose matrix varies with the input: ``h' = A(x) h + B x``.

    ``A(x) = A_0 + sum_k x_k A_k``, so that A[t] follows the inputs; with features that are one-hot
    in time, every step has its own matrix.

    Parameters
    ----------
    input_size, state_size : int
        Number of input features and of state variables; other than positive ones raise a
        ValueError.
    rng
        As for :class:`DiagonalSSM`.

    Notes
    -----
    The bilinear system of control theory. A_0 starts normal with a spectral radius of about 0.9;
    under unit inputs the A_k add about half of that. Units are coupled, so the engine ``scan``
    does not apply.

    Examples
    --------
    >>> import torch, kpops
    >>> kpops.linearize(kpops.models.LinearTimeVarying(3, 4, rng=0), torch.randn(2, 5, 3)).P
    <P (trial: 2, time: 5, unit: 4), float32 on cpu>
    """

    def __init__(self, input_size: int, state_size: int, *, rng: Rng = None) -> None:
        super().__init__()
        check_sizes(input_size=input_size, state_size=state_size)
        self.input_size = input_size
        self.state_size = state_size
        generator = random_generator(rng)
        shape = (input_size, state_size, state_size)
        modulation = generator.standard_normal(shape) / math.sqrt(input_size * state_size)
        self.recurrent = _parameter(0.9 * generator.standard_normal(shape[1:]) / shape[1] ** 0.5)
        self.modulation = _parameter(0.45 * modulation)
        self.weight = _parameter(generator.standard_normal(shape[:2]).T / math.sqrt(input_size))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state; (row, input), (row, state) -> (row, state)."""
        modulated = torch.einsum("...k,kij,...j->...i", x, self.modulation, h)
        return F.linear(h, self.recurrent) + modulated + F.linear(x, self.weight)

    def extra_repr(self) -> str:
        """Return the options, for the repr."""
        return f"{self.input_size}, {self.state_size}"


class _SelectiveRecurrence(DiagonalRecurrence):
    """The structure of a SelectiveSSM."""

    def unit_coords(self, state_size: int) -> dict[str, np.ndarray]:
        n_states = self.module.n_states
        return {"channel": np.repeat(np.arange(state_size // n_states), n_states)}


as_recurrence.register(
    DiagonalSSM,
    unless_changed(DiagonalSSM, lambda model: DiagonalRecurrence(model, _VARIABLES[model.form])),
)
as_recurrence.register(SelectiveSSM, unless_changed(SelectiveSSM, _SelectiveRecurrence))


def _parameter(values: np.ndarray) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.get_default_dtype()))
