"""A gated engine with other weights than the network's between the diagonals."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kpops.engines.gated.engine import GatedEngine
from kpops.engines.random_vectors import RandomVectors
from kpops.engines.trajectory import Trajectory
from kpops.models.recurrence import Recurrence


class FeedbackEngine(GatedEngine):
    """The engine `gated` whose backward pass uses random weights, as in feedback alignment.

    The diagonals of the gates are those of the trajectory. The weights that carry errors from step
    to step, and from layer to layer, are normal, with the root mean square of those they replace.
    Its P is of no network; its P* is what counts.
    """

    name = "gated, random feedback"

    def __init__(
        self,
        recurrence: Recurrence,
        parameters: dict[str, Tensor],
        trajectory: Trajectory,
        source: RandomVectors,
    ) -> None:
        super().__init__(recurrence, parameters, trajectory, check=False)
        self.feedback = [
            {name: _alike(weight, source) for name, weight in weights.items()}
            for weights in map(self._replaced, range(len(self.layers)))
        ]
        self._install()

    def _replaced(self, index: int) -> dict[str, Tensor]:
        layer = self.layers[index]
        weights = {"recurrent_weight": layer.recurrent_weight}
        if index and layer.input_weight is not None:
            weights["input_weight"] = layer.input_weight
        return weights

    def _install(self) -> None:
        for layer, weights in zip(self.layers, self.feedback, strict=True):
            layer.__dict__.update(weights)  # in place of what is computed once

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._install()


def _alike(weight: Tensor, source: RandomVectors) -> Tensor:
    rms = weight.square().mean().sqrt()
    return rms * source.normal(1, range(weight.numel()), torch.empty_like(weight)).view_as(weight)
