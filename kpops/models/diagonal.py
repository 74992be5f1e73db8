"""Recurrences that couple no two units, whose propagator is a scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from kpops.maturity import experimental
from kpops.models.recurrence import ModuleRecurrence


@experimental
class DiagonalRecurrence(ModuleRecurrence):
    """A step whose state Jacobian is diagonal over units, or in small blocks over their variables.

    With variables s_v of every unit i (one for most; real and imaginary part of a complex state),

        s'_v,i = f_v,i(x, s_1,i, s_2,i, ...),

    where f may depend on the state as it likes, so long as it takes it unit by unit. Register a
    module by it, or subclass it with a :meth:`forward` of your own, and the engine ``scan`` works
    for the model.

    Parameters
    ----------
    module : nn.Module
        The user's module; its ``forward(x_t, h)`` returns the next state.
    variables : sequence of str
        Names of the state variables of a unit. The state holds one variable of all units, then the
        next.

    Raises
    ------
    ValueError
        When linearised, if the state is no whole number of variables, or units are coupled.

    Examples
    --------
    A leaky integrator of every input, with a time constant each:

    >>> import torch, kpops
    >>> from kpops.models import DiagonalRecurrence
    >>> class Leaky(torch.nn.Module):
    ...     def __init__(self, size):
    ...         super().__init__()
    ...         self.input_size = self.state_size = size
    ...         self.leak = torch.nn.Parameter(torch.zeros(size))
    ...     def forward(self, x, h):
    ...         return h + torch.sigmoid(self.leak) * (x - h)
    >>> @kpops.models.as_recurrence.register
    ... def _(model: Leaky) -> kpops.models.Recurrence:
    ...     return DiagonalRecurrence(model)
    >>> kpops.linearize(Leaky(3), torch.randn(5, 1000, 3)).engine.name
    'scan'
    """

    module: Any

    def __init__(self, module: nn.Module, variables: Sequence[str] = ("h",)) -> None:
        super().__init__(module)
        self.variables = tuple(variables)

    def unit_coords(self, state_size: int) -> dict[str, np.ndarray]:
        """Variable (such as "re" or "im") of every unit, where there are several."""
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
