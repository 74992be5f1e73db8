"""Cells that are affine maps followed by elementwise gates.

RNN, GRU, LSTM, leaky and piecewise-linear cells share one form. With the state of a layer made of
variables s_w (one for most cells; h and c for an LSTM), features phi of the state, and as many
affine maps as the cell has gates,

    from_h = W phi(s) + b,      from_x = U x + c,      s'_v = gates_v(from_x, from_h, s),

where ``gates`` acts on each unit alone. Hence every derivative of a step is the weights themselves
between diagonal matrices, which is all that the engine ``gated`` needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kpops.models.recurrence import Recurrence

Tensors = tuple[Tensor, ...]


class Affine(NamedTuple):
    """Where a layer keeps its affine maps: dotted attribute names of the module, or None.

    Attributes
    ----------
    recurrent : str or None
        W, shape (gates * hidden, hidden): the stacked recurrent maps. None: the state enters only
        through the gates, unit by unit.
    input : str, optional
        U, shape (gates * hidden, feature): the stacked input maps. None: the layer takes no input.
    recurrent_bias, input_bias : str, optional
        b and c, shape (gates * hidden,).
    """

    recurrent: str | None
    input: str | None = None
    recurrent_bias: str | None = None
    input_bias: str | None = None


class Formula(NamedTuple):
    """What the gates of a known cell are, for code that does not call :meth:`gates`.

    `cell` is ``"GRU"``, ``"LSTM"``, or ``"RATE"`` or ``"CURRENT"``, the forms of a LeakyCell; an
    RNN is a leaky cell with alpha = 1.
    """

    cell: str
    activation: str = "tanh"
    alpha: float = 1.0


class GatedRecurrence(Recurrence):
    """A stack of layers, each of affine maps followed by elementwise gates.

    Subclass it, implement :meth:`gates` (and :meth:`features`, if the recurrent maps do not take
    the first variable as it is), and register the subclass with :func:`as_recurrence`: the engine
    ``gated`` then works for the cell.

    Parameters
    ----------
    module : nn.Module
        The user's module, which keeps the weights.
    layers : sequence of Affine
        The affine maps of each layer, starting with the one that takes the input x. The first
        variable of a layer is the input of the next.
    variables : sequence of str
        Names of the state variables of a unit.
    hidden_size : int, optional
        Number of units of a layer; needed where the first layer has no recurrent maps.
    time_major : bool
        Whether the module reads inputs as ``(time, trial, feature)``.

    Raises
    ------
    ValueError
        If a layer above the first has no input maps, or the hidden size is unknown.

    Examples
    --------
    A linear RNN with two weights:

    >>> import torch, kpops
    >>> class LinearRNN(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.W = torch.nn.Linear(4, 4, bias=False)
    ...         self.U = torch.nn.Linear(3, 4)
    >>> class LinearRecurrence(kpops.models.GatedRecurrence):
    ...     def __init__(self, module):
    ...         maps = kpops.models.Affine("W.weight", input="U.weight", input_bias="U.bias")
    ...         super().__init__(module, [maps])
    ...     def gates(self, from_x, from_h, state):
    ...         return (from_x[0] + from_h[0],)
    >>> lin = kpops.linearize(LinearRecurrence(LinearRNN()), torch.randn(5, 6, 3), engine="gated")
    >>> lin.P
    <P (trial: 5, time: 6, unit: 4), float32 on cpu>
    """

    module: Any
    formula: Formula | None = None  # of cells that kpops knows; a subclass may change the gates

    def __init__(
        self,
        module: nn.Module,
        layers: Sequence[Affine],
        *,
        variables: Sequence[str] = ("h",),
        hidden_size: int | None = None,
        time_major: bool = False,
    ) -> None:
        first = layers[0]
        if any(maps.input is None for maps in layers[1:]):
            raise ValueError("layers[1:] need input maps, which take the layer below")
        if hidden_size is None:
            if first.recurrent is None:
                raise ValueError(
                    "layers[0] has no recurrent maps, which give the size: pass hidden_size="
                )
            hidden_size = attrgetter(first.recurrent)(module).shape[1]
        features = None if first.input is None else attrgetter(first.input)(module).shape[1]
        super().__init__(
            module,
            state_size=hidden_size * len(variables) * len(layers),
            input_size=features,
            time_major=time_major,
        )
        self.hidden_size = hidden_size
        self.layers = tuple(layers)
        self.variables = tuple(variables)

    def gates(self, from_x: Tensors, from_h: Tensors, state: Tensors) -> Tensors:
        """New state variables of a layer, each computed unit by unit.

        `from_x` and `from_h` are the input and the recurrent maps, one for each gate, and empty for
        a layer without; `state` are the state variables. All tensors are (row, hidden).
        """
        raise NotImplementedError

    def features(self, state: Tensors) -> Tensor:
        """What the recurrent maps multiply, unit by unit; the first variable by default."""
        return state[0]

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Next state of every row; (row, feature), (row, unit) -> (row, unit)."""
        return self._jvp_steps(self.from_input(0, x), h)

    def along(self, x: Tensor) -> Callable[[int, Tensor], Tensor]:
        """The step from h at every position t; all input maps are computed at once."""
        kind = type(self)
        if (kind.forward, kind.from_input) != (GatedRecurrence.forward, GatedRecurrence.from_input):
            return super().along(x)
        maps = [gate.unbind(1) for gate in self.from_input(0, x)]
        return lambda t, h: self._jvp_steps(tuple(gate[t] for gate in maps), h)

    def _jvp_steps(self, from_x: Tensors, h: Tensor) -> Tensor:
        """Next state of every row, from the input maps of the first layer."""
        states: list[Tensor] = []
        for layer, state in enumerate(h.chunk(len(self.layers), dim=-1)):
            old = state.chunk(len(self.variables), dim=-1)
            from_x = from_x if layer == 0 else self.from_input(layer, states[-len(old)])
            new = self.gates(from_x, self.from_features(layer, old), old)
            if isinstance(new, Tensor) or len(new) != len(old):
                got = "a tensor" if isinstance(new, Tensor) else f"{len(new)} of them"
                raise ValueError(
                    f"{type(self).__name__}.gates returned {got}, expected a tuple of the new "
                    f"state variables {self.variables}"
                )
            states += new  # the first of which is the next layer's input
        return states[0] if len(states) == 1 else torch.cat(states, dim=-1)

    def from_input(self, layer: int, x: Tensor) -> Tensors:
        """The input maps of a layer, one tensor for each gate."""
        names = self.layers[layer]
        return () if names.input is None else self._maps(names.input, names.input_bias, x)

    def from_features(self, layer: int, state: Tensors) -> Tensors:
        """The recurrent maps of a layer, one tensor for each gate; empty for a layer without."""
        names = self.layers[layer]
        if names.recurrent is None:
            return ()
        return self._maps(names.recurrent, names.recurrent_bias, self.features(state))

    def weight(self, name: str | None) -> Tensor:
        """The current weight of that dotted name; no rows for absent maps."""
        if name is None:
            return next(self.module.parameters()).new_empty(0, self.hidden_size)
        return attrgetter(name)(self.module)

    def _maps(self, weight: str, bias: str | None, u: Tensor) -> Tensors:
        stacked = F.linear(u, self.weight(weight), None if bias is None else self.weight(bias))
        return stacked.split(self.hidden_size, dim=-1)

    def unit_coords(self, state_size: int) -> dict[str, np.ndarray]:
        """Layer (from 0) and variable (such as "h" or "c") of every unit."""
        names = np.array(self.variables, dtype=object)  # Zarr has no fixed-width strings yet
        variables = len(names)
        return {
            "layer": np.repeat(np.arange(len(self.layers)), self.hidden_size * variables),
            "variable": np.tile(np.repeat(names, self.hidden_size), len(self.layers)),
        }
