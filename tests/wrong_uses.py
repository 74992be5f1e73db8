"""Wrong uses, and what a user is told.

    python tests/wrong_uses.py        # prints the table: use, seconds, message

The table is ``wrong_uses.txt``: a use, and words that its message has to have, the value and the
remedy. It is tested by ``test_wrong_uses.py``.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import scipy.sparse
import torch
import xarray as xr
from torch import nn, zeros

import kpops

_LIBRARIES = {"np": np, "xr": xr, "scipy": scipy}


class Use(NamedTuple):
    """An expression, the name of the exception, and its words in their order."""

    code: str
    error: str
    words: list[str]


def read_uses() -> list[Use]:
    """The table."""
    lines = Path(__file__).with_suffix(".txt").read_text().splitlines()
    lines = [line.strip() for line in lines if line and not line.startswith("#")]
    pairs = [line.partition(": ") for line in lines[1::2]]
    return [
        Use(code, error, words.split(" ... "))
        for code, (error, _, words) in zip(lines[::2], pairs, strict=True)
    ]


def message_of(code: str) -> tuple[str, str]:
    """Name and text of the exception that the use raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = eval(code, globals() | _LIBRARIES | fixtures())
    except Exception as error:
        return type(error).__name__, str(error)
    return "no error", repr(result)


# What the uses name.


def linearize(model: Any = ..., x: Any = ..., **options: Any) -> Any:
    """The small GRU and its inputs, unless others are given."""
    mine = fixtures()
    model, x = (mine[k] if v is ... else v for k, v in (("gru", model), ("inputs", x)))
    return kpops.linearize(model, x, **options)


def train(**options: Any) -> Any:
    """A training of few steps, unless others are given."""
    few = {"folder": tempfile.mkdtemp(), "batch_size": 5, "max_steps": 2, "rng": 0}
    few |= {"model": network(), "task": fixtures()["task"]}
    return kpops.training.train(**few | options)


def network() -> nn.Module:
    """A network for the task."""
    torch.manual_seed(0)
    return kpops.Network(nn.GRU(3, 4), nn.Linear(4, 3))


def trained() -> str:
    """A folder with the checkpoints of a training."""
    folder = tempfile.mkdtemp()
    train(folder=folder)
    return folder


def folder_with(name: str, content: bytes) -> str:
    """A folder with one file."""
    folder = tempfile.mkdtemp()
    (Path(folder) / name).write_bytes(content)
    return folder


def cut_short(folder: str) -> str:
    """The folder, of whose last checkpoint the rest is missing."""
    last = max(Path(folder).glob("*.pt"))
    last.write_bytes(last.read_bytes()[:200])
    return folder


def at(shape: tuple[int, ...], value: float) -> torch.Tensor:
    """Zeros but for one entry."""
    x = zeros(shape)
    x.view(-1)[3] = value
    return x


class Two(nn.Module):
    """A whole-sequence network, with two candidates for the recurrence."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.GRU(3, 4, batch_first=True), nn.GRU(4, 4, batch_first=True)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.other(self.one(x)[0])[0])


class Net(nn.Module):
    """A whole-sequence network, whose forward is a function of (module, x)."""

    def __init__(self, run):
        super().__init__()
        self.encoder, self.fc, self.run = nn.Linear(3, 3), nn.Linear(4, 2), run
        self.gru = nn.GRU(3, 4, batch_first=True)

    def forward(self, x):
        return self.run(self, x)


class Loop(nn.Module):
    """A whole-sequence network that scales the state between the steps of a cell."""

    def __init__(self):
        super().__init__()
        self.cell, self.fc = nn.GRUCell(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        h, hidden = x.new_zeros(len(x), 4), []
        for x_t in x.unbind(1):
            h = self.cell(x_t, 0.9 * h)
            hidden.append(h)
        return self.fc(torch.stack(hidden, 1))


class Unsized(nn.Module):
    """A step that does not say how large its state is."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(3, 3)

    def forward(self, x, h):
        return torch.tanh(self.lin(h) + x)


class Cell(Unsized):
    """A step made by a function of (module, x, h)."""

    hidden_size = input_size = 3

    def __init__(self, step):
        super().__init__()
        self.step = step

    def forward(self, x, h):
        return self.step(self, x, h)


def cell(step: Any) -> Any:
    """The step, linearised."""
    return linearize(Cell(step))


class Swapped(Cell):
    """The state comes first."""

    def forward(self, h, x):
        return torch.tanh(self.lin(h) + 0.1 * x)


class Buffer(Unsized):
    """A complex buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("b", torch.ones(3) * 1j)


def made_once(m, x, h):
    """A step that keeps what it makes of its weights."""
    if not hasattr(m, "A"):
        m.A = torch.linalg.matrix_exp(m.lin.weight)
    return torch.tanh(h @ m.A + x)


class Loud(torch.autograd.Function):
    """A surrogate gradient, written in the old way."""

    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, g):
        return g


_made: dict[str, Any] = {}


def fixtures() -> dict[str, Any]:
    """What is made once."""
    if not _made:
        mpl.use("agg")
        torch.manual_seed(0)
        gru, time_first = nn.GRU(3, 4, batch_first=True), nn.GRU(3, 4)
        fc = nn.Linear(4, 2)
        inputs = torch.randn(5, 6, 3)
        lin = kpops.linearize(gru, inputs, readout=fc)
        large = nn.GRU(3, 64, batch_first=True)
        _made.update(
            gru=gru,
            time_first=time_first,
            inputs=inputs,
            lin=lin,
            square=kpops.linearize(time_first, zeros(5, 5, 3), readout=fc),
            # whose whole spectrum would take days
            days=kpops.linearize(nn.GRU(3, 100, batch_first=True), torch.randn(10, 100, 3)),
            huge=kpops.linearize(large, zeros(200, 200, 3)),
            task=kpops.tasks.memory_pro(5, steps=(2, 2, 2), rng=0),
            saved=[(7, gru.state_dict())],
            prefixed={f"net.{k}": v for k, v in gru.state_dict().items()},
            modes=kpops.eigsh(lin.flow, 3, rng=0),
        )
    return _made


def main() -> None:
    """Print the table, and what it comes to."""
    uses = read_uses()
    slowest, refused = (0.0, ""), 0
    message_of("kpops.eigsh(lin.flow, 0), trained()")  # imports and compiles
    for use in uses:
        begin = time.perf_counter()
        error, text = message_of(use.code)
        seconds = time.perf_counter() - begin
        slowest = max(slowest, (seconds, use.code))
        refused += error != "no error"
        print(f"{use.code}\n{seconds:8.2f} s  {error}: {text}")
    print(f"{len(uses)} uses, {refused} refused, slowest {slowest[0]:.2f} s: {slowest[1]}")


if __name__ == "__main__":
    main()
