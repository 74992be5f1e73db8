"""Models that every test of operators runs on, small enough for dense references."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kpops
from kpops.engines import select

TRIALS, STEPS, INPUTS, HIDDEN = 3, 5, 2, 4


class SharedNormCell(nn.Module):
    """A user's cell: layer norm, one weight used twice in a step and known by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.from_input = nn.Linear(INPUTS, HIDDEN)
        self.recurrent = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.again = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.again.weight = self.recurrent.weight
        self.norm = nn.LayerNorm(HIDDEN)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        inner = torch.tanh(self.recurrent(h))
        return torch.tanh(self.norm(self.from_input(x) + self.again(inner)))


class OscillatorCell(nn.Module):
    """A user's gated cell: two variables, features of both, and two maps that enter alike."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.Linear(HIDDEN, 2 * HIDDEN, bias=False)
        self.drive = nn.Linear(INPUTS, HIDDEN)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        y, z = h.chunk(2, -1)
        maps = self.recurrent(torch.tanh(y) + y * z).chunk(2, -1)
        z = 0.8 * z + torch.tanh(maps[0] + maps[1] + self.drive(x)) - 0.3 * y
        return torch.cat([y + 0.5 * z, z], -1)


class OscillatorRecurrence(kpops.models.GatedRecurrence):
    def __init__(self, module: nn.Module) -> None:
        maps = kpops.models.Affine("recurrent.weight", "drive.weight", input_bias="drive.bias")
        super().__init__(module, [maps], variables=("y", "z"))

    def features(self, state):
        return torch.tanh(state[0]) + state[0] * state[1]

    def gates(self, from_x, from_h, state):
        y, z = state
        z = 0.8 * z + torch.tanh(from_h[0] + from_h[1] + from_x[0]) - 0.3 * y
        return y + 0.5 * z, z


@kpops.models.as_recurrence.register
def _(model: OscillatorCell) -> kpops.models.Recurrence:
    return OscillatorRecurrence(model)


def leaky(**options) -> kpops.models.LeakyCell:
    return kpops.models.LeakyCell(INPUTS, HIDDEN, **options)


@dataclass(frozen=True)
class Case:
    """A model, and how its own forward takes one step on (trial, unit) states."""

    name: str
    build: Any
    gated_with_cell: bool = False  # LSTM: the state is (h, c); or another pair
    layers: int = 1
    hidden: int = HIDDEN

    @property
    def state_size(self) -> int:
        return HIDDEN * self.layers * (2 if self.gated_with_cell else 1)

    def model(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        model = self.build().to(dtype)
        with torch.no_grad():  # larger than PyTorch's default, so that nothing is nearly linear
            for parameter in model.parameters():
                parameter.normal_(0, 0.7)
        return model

    def data(self, dtype: torch.dtype = torch.float64, seed: int = 1) -> tuple[Tensor, Tensor]:
        """Inputs (trial, time, feature) and h0 (trial, unit)."""
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(TRIALS, STEPS, INPUTS, generator=generator, dtype=dtype)
        h0 = torch.randn(TRIALS, self.state_size, generator=generator, dtype=dtype)
        return inputs, h0

    def as_module_takes(self, model: nn.Module, array: Any) -> Any:
        """Inputs, mask or targets, if there are any, in the layout of the module."""
        time_first = array is not None and not getattr(model, "batch_first", True)
        return array.transpose(0, 1) if time_first else array

    def own_step(self, model: nn.Module, x: Tensor, h: Tensor) -> Tensor:
        """One step by the module's own forward; x: (trial, feature), h: (trial, unit)."""
        if not isinstance(model, nn.RNNBase | nn.RNNCellBase):
            return model(x, h)
        if isinstance(model, nn.LSTMCell):
            return torch.cat(model(x, tuple(h.chunk(2, -1))), -1)
        if isinstance(model, nn.RNNCellBase):
            return model(x, h)
        sequence = x[:, None] if model.batch_first else x[None]
        parts = h.reshape(len(h), self.layers, -1, HIDDEN).permute(2, 1, 0, 3).contiguous()
        if isinstance(model, nn.LSTM):
            _, (hidden, cell) = model(sequence, (parts[0], parts[1]))
            new = torch.stack([hidden, cell])
        else:
            _, hidden = model(sequence, parts[0])
            new = hidden[None]
        return new.permute(2, 1, 0, 3).reshape(len(h), -1)


CASES = [
    Case("rnn_tanh", lambda: nn.RNN(INPUTS, HIDDEN, batch_first=True)),
    Case("rnn_relu_time_major", lambda: nn.RNN(INPUTS, HIDDEN, nonlinearity="relu")),
    Case("gru", lambda: nn.GRU(INPUTS, HIDDEN, batch_first=True)),
    Case("gru_without_bias", lambda: nn.GRU(INPUTS, HIDDEN, batch_first=True, bias=False)),
    Case("gru_two_layers", lambda: nn.GRU(INPUTS, HIDDEN, num_layers=2), layers=2),
    Case("lstm", lambda: nn.LSTM(INPUTS, HIDDEN, batch_first=True), gated_with_cell=True),
    Case(
        "lstm_two_layers",
        lambda: nn.LSTM(INPUTS, HIDDEN, num_layers=2),
        gated_with_cell=True,
        layers=2,
    ),
    Case("rnn_cell", lambda: nn.RNNCell(INPUTS, HIDDEN)),
    Case("rnn_cell_relu_without_bias", lambda: nn.RNNCell(INPUTS, HIDDEN, False, "relu")),
    Case("gru_cell", lambda: nn.GRUCell(INPUTS, HIDDEN)),
    Case("lstm_cell", lambda: nn.LSTMCell(INPUTS, HIDDEN), gated_with_cell=True),
    Case("leaky_rate", lambda: leaky(alpha=0.3)),
    Case("leaky_current_relu", lambda: leaky(alpha=0.6, activation="relu", form="current")),
    Case("leaky_without_bias", lambda: leaky(alpha=1, bias=False)),
    Case("min_gru", lambda: kpops.models.MinGRUCell(INPUTS, HIDDEN)),
    Case("oscillator", OscillatorCell, gated_with_cell=True),
    Case("shared_norm_cell", SharedNormCell),
]
BY_NAME = {case.name: case for case in CASES}


def slow_but(quick: Iterable[Any], values: Iterable[Any]) -> list[Any]:
    """Values of a parameter, of which the default suite runs only the `quick` ones."""
    return [v if v in quick else pytest.param(v, marks=pytest.mark.slow) for v in values]


def serving(model: nn.Module) -> list[str]:
    """Names of all engines of the registry that serve a model on the CPU."""
    recurrence, cpu = kpops.models.as_recurrence(model), torch.device("cpu")
    return [name for name, e in select.ENGINES.items() if e.refuses(recurrence, cpu) is None]


ENGINES = serving(BY_NAME["gru"].model())
ANY_MODEL = serving(SharedNormCell())
CASES_AND_ENGINES = [(case, engine) for case in CASES for engine in serving(case.model())]


def skip_compiled_elsewhere(engine: str, device: str) -> None:
    """The compiled engine is for the CPU."""
    if engine == "gated_numba" and torch.device(device).type != "cpu":
        pytest.skip("gated_numba is for the CPU")
