"""Strategies: models with inputs and a reference by autograd; symmetric matrices by spectrum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

import kpops
from kpops import models


def cases(percent: int):
    """So many of all the cases that a run draws."""
    from conftest import CASES

    return settings(max_examples=max(1, CASES * percent // 100))


# Models.


class NormedCell(nn.Module):
    """A user's cell: couples its units, uses one weight twice."""

    def __init__(self, n_inputs: int, size: int) -> None:
        super().__init__()
        self.hidden_size = size
        self.drive, self.recurrent = nn.Linear(n_inputs, size), nn.Linear(size, size)
        self.norm = nn.LayerNorm(size)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        inner = torch.tanh(self.recurrent(h) + self.drive(x))
        return torch.tanh(0.5 * h + self.norm(self.recurrent(inner)))


class Field(nn.Module):
    """A vector field with an input."""

    def __init__(self, n_inputs: int, size: int) -> None:
        super().__init__()
        self.net = nn.Linear(size + n_inputs, size)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.net(torch.cat([h, x], -1))) - h


def _layers(kind: type[nn.RNNBase], draw: Any, n: int, s: int) -> nn.Module:
    options = {"nonlinearity": draw(st.sampled_from(["tanh", "relu"]))} if kind is nn.RNN else {}
    options |= {"bias": draw(st.booleans()), "batch_first": draw(st.booleans())}
    return kind(n, s, num_layers=draw(st.integers(1, 3)), **options)


FAMILIES: dict[str, Callable[[Any, int, int], nn.Module]] = {
    "RNN": lambda draw, n, s: _layers(nn.RNN, draw, n, s),
    "GRU": lambda draw, n, s: _layers(nn.GRU, draw, n, s),
    "LSTM": lambda draw, n, s: _layers(nn.LSTM, draw, n, s),
    "RNNCell": lambda draw, n, s: nn.RNNCell(
        n, s, draw(st.booleans()), draw(st.sampled_from(["tanh", "relu"]))
    ),
    "GRUCell": lambda draw, n, s: nn.GRUCell(n, s, draw(st.booleans())),
    "LSTMCell": lambda draw, n, s: nn.LSTMCell(n, s, draw(st.booleans())),
    "LeakyCell": lambda draw, n, s: models.LeakyCell(
        n,
        s,
        alpha=draw(st.sampled_from([0.1, 0.7, 1.0])),
        activation=draw(st.sampled_from(["tanh", "relu"])),
        form=draw(st.sampled_from(["rate", "current"])),
        bias=draw(st.booleans()),
    ),
    "LowRankCell": lambda draw, n, s: models.LowRankCell(
        n, s, draw(st.integers(1, s)), alpha=draw(st.sampled_from([0.3, 1.0]))
    ),
    "PLRNNCell": lambda draw, n, s: models.PLRNNCell(n, s, rectified=draw(st.integers(0, s))),
    "ShallowPLRNNCell": lambda draw, n, s: models.ShallowPLRNNCell(
        n, s, draw(st.integers(1, 4)), clipped=draw(st.booleans())
    ),
    "MinGRUCell": lambda draw, n, s: models.MinGRUCell(n, s, bias=draw(st.booleans())),
    "MGUCell": lambda draw, n, s: models.MGUCell(n, s),
    "DiagonalSSM": lambda draw, n, s: models.DiagonalSSM(
        n, s, form=draw(st.sampled_from(["real", "complex"])), rng=0
    ),
    "SelectiveSSM": lambda draw, n, s: models.SelectiveSSM(n, s, rng=0),
    "NeuralODE": lambda draw, n, s: models.NeuralODE(
        Field(n, s),
        0.2,
        draw(st.sampled_from(["euler", "midpoint", "rk4"])),
        n_substeps=draw(st.integers(1, 2)),
        arguments="xh",
    ),
    "NormedCell": lambda draw, n, s: NormedCell(n, s),
}


@dataclass
class Case:
    """A model, what it is linearised about, and its states by its own forward, with their graph."""

    family: str
    model: nn.Module
    inputs: Tensor  # (trial, time, feature)
    h0: Tensor  # (trial, unit)
    valid: Tensor  # (trial, time), bool
    states: Tensor  # (trial, time, unit)
    kicks: Tensor  # zeros added to every state: d states / d kicks is P

    def linearize(self, **options: Any) -> kpops.Linearization:
        """Linearise as a user would: inputs in the module's own layout."""
        time_first = isinstance(self.model, nn.RNNBase) and not self.model.batch_first
        mask = None if self.valid.all() else labelled(self.valid)
        inputs = self.inputs.transpose(0, 1) if time_first else self.inputs
        return kpops.linearize(self.model, inputs, h0=self.h0, mask=mask, **options)

    def jacobian(self, of: Tensor, variables: list[Tensor]) -> Tensor:
        """A row for each entry of `of`, a column for each entry of the variables."""
        rows = []
        for entry in of.flatten():
            gradients = torch.autograd.grad(
                entry, variables, retain_graph=True, materialize_grads=True
            )
            rows.append(torch.cat([g.reshape(-1) for g in gradients]))
        return torch.stack(rows)


def labelled(tensor: Tensor) -> xr.DataArray:
    """A tensor whose first dims are trial and time, by their names: the sizes may not tell."""
    return xr.DataArray(tensor.numpy(), dims=("trial", "time", "output")[: tensor.ndim])


def own_step(model: nn.Module, x: Tensor, h: Tensor) -> Tensor:
    """One step by the module's own forward, on states (trial, unit) in the order of kpops."""
    if isinstance(model, nn.LSTMCell):
        return torch.cat(model(x, tuple(h.chunk(2, -1))), -1)
    if not isinstance(model, nn.RNNBase):
        return model(x, h)
    parts = h.reshape(len(h), model.num_layers, -1, model.hidden_size).permute(2, 1, 0, 3)
    parts = parts.contiguous()
    sequence = x[:, None] if model.batch_first else x[None]
    lstm = isinstance(model, nn.LSTM)
    _, last = model(sequence, tuple(parts) if lstm else parts[0])
    new = torch.stack(last) if lstm else last[None]
    return new.permute(2, 1, 0, 3).reshape(h.shape)


@st.composite
def linearizable(draw: Any) -> Case:
    """A model of any family in float64 with random weights, inputs, state and lengths of trials."""
    family = draw(st.sampled_from(sorted(FAMILIES)))
    n_inputs, size = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    n_trials, n_steps = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    seed = draw(st.integers(0, 2**31))
    scale = draw(st.sampled_from([0.05, 0.7, 1.5]))
    torch.manual_seed(seed)
    model = FAMILIES[family](draw, n_inputs, size).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, scale)
    for parameter in list(model.parameters())[1:]:
        parameter.requires_grad_(draw(st.booleans()))
    rng = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)  # noqa: E731
    inputs = normal(n_trials, n_steps, n_inputs)
    state_size = models.as_recurrence(model).state_size or size
    h0 = draw(st.sampled_from([0.0, 1.0])) * normal(n_trials, state_size)
    shortest = draw(st.sampled_from([1, n_steps]))
    lengths = draw(st.lists(st.integers(shortest, n_steps), min_size=n_trials, max_size=n_trials))
    kicks = torch.zeros(n_trials, n_steps, h0.shape[1], dtype=h0.dtype, requires_grad=True)
    states, h = [], h0
    for t in range(n_steps):
        h = own_step(model, inputs[:, t], h) + kicks[:, t]
        states.append(h)
    valid = torch.arange(n_steps) < torch.tensor(lengths)[:, None]
    return Case(family, model, inputs, h0, valid, torch.stack(states, 1), kicks)


# Symmetric matrices.

SPECTRA: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "flat": lambda rng, n: np.ones(n),
    "random": lambda rng, n: rng.standard_normal(n),
    "geometric": lambda rng, n: 0.5 ** np.arange(n),
    "steep": lambda rng, n: 10.0 ** -np.arange(n),
    "harmonic": lambda rng, n: 1 / np.arange(1, n + 1),
    "cluster": lambda rng, n: 1 + 1e-4 * rng.standard_normal(n),
    "pairs": lambda rng, n: np.where(np.arange(n) % 2, -1, 1) * (1 + 0.01 * rng.standard_normal(n)),
    "low rank": lambda rng, n: np.where(np.arange(n) < max(1, n // 8), rng.random(n) + 0.5, 0),
    "copies": lambda rng, n: np.repeat(rng.standard_normal(n), 5)[:n],
    "one large": lambda rng, n: np.r_[-50.0, rng.random(n - 1)],
    "one small": lambda rng, n: np.r_[1e-6, np.ones(n - 1)],
    "negative": lambda rng, n: -rng.random(n),
    "zero": lambda rng, n: np.zeros(n),
}


@dataclass
class Symmetric:
    """A symmetric matrix of known eigenvalues."""

    kind: str
    values: np.ndarray  # of falling magnitude
    matrix: np.ndarray


@st.composite
def symmetric(
    draw: Any, kinds: tuple[str, ...] = tuple(SPECTRA), smallest: int = 1, largest: int = 60
) -> Symmetric:
    """A matrix of one of `kinds` of spectra, in a random basis or in that of the axes."""
    kind, n = draw(st.sampled_from(kinds)), draw(st.integers(smallest, largest))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    values = SPECTRA[kind](rng, n)
    values = values[np.argsort(-np.abs(values), kind="stable")]
    basis = np.linalg.qr(rng.standard_normal((n, n)))[0] if draw(st.booleans()) else np.eye(n)
    matrix = basis * values @ basis.T
    return Symmetric(kind, values, (matrix + matrix.T) / 2)
