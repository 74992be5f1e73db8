"""A readout as a function of rows, like a step of a recurrence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from kpops.models.recurrence import Recurrence, refuse_cached, stand_in


class RowReadout:
    """``y = C(h)`` on rows of states; `readout` takes the hidden states (row, hidden) of h."""

    def __init__(self, recurrence: Recurrence, readout: Callable[[Tensor], Tensor]) -> None:
        self.recurrence = recurrence
        self.module = readout
        self._stand_in: nn.Module | None = None

    def step(self, parameters: dict[str, Tensor], x: Tensor, h: Tensor) -> Tensor:
        """Outputs (row, output) under `parameters`; others keep their value."""
        # A copy, since the readout may change it in place, as nn.ReLU(inplace=True) does.
        hidden = self.recurrence.output(h).clone()
        if not (parameters and isinstance(self.module, nn.Module)):
            return self.module(hidden)
        refuse_cached(self.module)
        if self._stand_in is None:
            self._stand_in = stand_in(self.module)
        return functional_call(self._stand_in, parameters, (hidden,))

    def renewed(self) -> RowReadout:
        """A readout with the same tensors that sees no call made from here on."""
        module = self.module
        return RowReadout(
            self.recurrence, stand_in(module) if isinstance(module, nn.Module) else module
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stand_in": None}
