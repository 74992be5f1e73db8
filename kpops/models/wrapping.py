"""Models around models: the recurrence of a module that runs another one in its own way."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from kpops.models.recurrence import Recurrence


class Wrapping(Recurrence):
    """A recurrence whose step is that of another one, at another state or input.

    State, outputs and units are those of the inner recurrence.

    Parameters
    ----------
    module : nn.Module
        The user's module, which holds the model of `inner`.
    inner : Recurrence
        Of the model inside.
    """

    module: Any

    def __init__(self, module: nn.Module, inner: Recurrence) -> None:
        super().__init__(
            module,
            state_size=inner.state_size,
            input_size=inner.input_size,
            time_major=inner.time_major,
        )
        self._wrap(inner)

    def _wrap(self, inner: Recurrence) -> None:
        # In a tuple, lest it be registered: functional_call must find each parameter once.
        self._inner = (inner,)
        self.forcing_step = inner.forcing_step

    @property
    def inner(self) -> Recurrence:
        """The recurrence of the model inside."""
        return self._inner[0]

    def prepare_inputs(self, inputs: Tensor) -> Tensor:
        """Inputs as the inner step reads them."""
        return self.inner.prepare_inputs(inputs)

    def times(self, inputs: Tensor) -> np.ndarray | None:
        """Times at which the inner steps end."""
        return self.inner.times(inputs)

    def output(self, h: Tensor) -> Tensor:
        """Part of the state that a readout sees."""
        return self.inner.output(h)

    def initial_state(self, h0: Any, n_trials: int, like: Tensor) -> Tensor:
        """Bring the user's `h0` to shape (trial, unit)."""
        return self.inner.initial_state(h0, n_trials, like)

    def unit_coords(self, state_size: int) -> dict[str, np.ndarray]:
        """Coordinates of the unit dim beside its index."""
        return self.inner.unit_coords(state_size)
