"""The two networks of arXiv 2511.10796 and its estimators of a trace, written anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
    from torch import nn

    import kpops

BLOCK = 64
"""Vectors that go through a derivative at once."""


@dataclass(frozen=True)
class Kernel:
    """An NTK and its two factors, on rows of flat vectors.

    Attributes
    ----------
    ntk : TrajectoryOperator
        Of the states or outputs, n x n.
    factor : TrajectoryOperator
        Their derivative by the parameters, n x p.
    """

    ntk: kpops.TrajectoryOperator
    factor: kpops.TrajectoryOperator

    @property
    def shape(self) -> tuple[int, int]:
        """Number of states n, and of parameters p."""
        return self.factor.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the vectors."""
        import torch

        return torch.from_numpy(np.empty(0, self.factor.dtype)).dtype

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """JVPs."""
        return _in_blocks(self.factor.apply, rows, self.factor.domain.shape)

    def reverse(self, rows: torch.Tensor) -> torch.Tensor:
        """VJPs."""
        return _in_blocks(self.factor.apply_adjoint, rows, self.factor.codomain.shape)

    def both(self, rows: torch.Tensor) -> torch.Tensor:
        """Matvecs with the NTK: a VJP and a JVP each."""
        return self.forward(self.reverse(rows))

    def exact_trace(self) -> float:
        """Sum of the squared lengths of all columns, or rows, of the factor, in float64."""
        import torch

        n, p = self.shape
        apply, size = (self.forward, p) if p < n else (self.reverse, n)
        total = 0.0
        for start in range(0, size, BLOCK):
            count = min(BLOCK, size - start)
            rows = torch.zeros(count, size, dtype=self.dtype)
            rows[torch.arange(count), start + torch.arange(count)] = 1
            total += float(apply(rows).double().square().sum())
        return total


def _in_blocks(
    apply: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor, shape: Sequence[int]
) -> torch.Tensor:
    import torch

    parts = [apply(part.reshape(len(part), *shape)).flatten(1) for part in rows.split(BLOCK)]
    return torch.cat(parts)


def gru(seed: int, sizes: Sequence[int]) -> Kernel:
    """States of an untrained GRU for random inputs.

    Parameters
    ----------
    seed : int
        Of the inputs and the network, drawn in the order of the authors' script.
    sizes : sequence of int
        B, T, units. The script passes arrays (B, T, 10) to ``nn.GRU``, which reads the first
        dimension as time: B is the number of steps, and T that of trials.
    """
    import torch
    from torch import nn

    import kpops

    first, second, units = sizes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inputs = torch.randn(first, second, 10)
        network = nn.GRU(10, units)
    lin = kpops.linearize(network, inputs)
    return Kernel(lin.flow, lin.sensitivity)


def mlp(seed: int, sizes: Sequence[int]) -> Kernel:
    """Outputs of an untrained ReLU network, for inputs of 100 random numbers.

    Parameters
    ----------
    seed : int
        As for :func:`gru`.
    sizes : sequence of int
        Trials, linear layers, units.
    """
    import torch
    from torch import nn

    import kpops

    trials, depth, units = sizes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inputs = torch.randn(trials, 100)
        layers: list[nn.Module] = [nn.Linear(100, units)]
        for _ in range(depth - 1):
            layers += [nn.ReLU(), nn.Linear(units, units)]
        network = nn.Sequential(*layers, nn.ReLU())
    lin = kpops.linearize(network, inputs)
    return Kernel(lin.output_ntk, lin.output_sensitivity)


def signs(count: int, size: int, rng: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
    """Random rows of +1 and -1."""
    import torch

    return torch.randint(2, (count, size), generator=rng).to(dtype) * 2 - 1


def one_sided(
    apply: Callable[[torch.Tensor], torch.Tensor],
    size: int,
    products: int,
    rng: torch.Generator,
    dtype: torch.dtype,
) -> float:
    """Trace of A* A from products with A alone: FHutch for JVPs, RHutch for VJPs.

    A sixth of the products go to random orthonormal directions, whose share of the trace is exact;
    the others estimate the rest by vectors of signs that are projected off these directions.
    """
    import torch

    sketched = products // 6
    basis = torch.linalg.qr(signs(sketched, size, rng, dtype).T)[0].T
    rest = signs(products - sketched, size, rng, dtype)
    rest = rest - (rest @ basis.T) @ basis
    squares = apply(torch.cat([basis, rest])).double().square().sum(1)
    return float(squares[:sketched].sum() + squares[sketched:].mean())


def hutch_plus_plus(
    apply: Callable[[torch.Tensor], torch.Tensor],
    size: int,
    matvecs: int,
    rng: torch.Generator,
    dtype: torch.dtype,
) -> float:
    """Hutch++ (Meyer and others 2021) with the authors' split: 2 vectors of a sketch for 5 others.

    Each vector of the sketch takes two matvecs, so that `matvecs` = 2 q + s.
    """
    import torch

    q = max(1, round(2 * matvecs / 9))
    basis = torch.linalg.qr(apply(signs(q, size, rng, dtype)).T)[0].T
    rest = signs(matvecs - 2 * q, size, rng, dtype)
    rest = rest - (rest @ basis.T) @ basis
    within, outside = apply(torch.cat([basis, rest])).double().split([q, len(rest)])
    return float((within * basis).sum() + (outside * rest).sum() / len(rest))


def generator(*key: int) -> torch.Generator:
    """Random numbers of their own for each key."""
    import torch

    number = int(np.random.default_rng(key).integers(2**62))
    return torch.Generator().manual_seed(number)


def legend_below(figure: Figure, columns: int) -> None:
    """Draw one legend for all axes, below them."""
    entries = {}
    for ax in figure.axes:
        handles, labels = ax.get_legend_handles_labels()
        entries.update(dict(zip(labels, handles, strict=True)))
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=columns,
        fontsize=7, frameon=False, handlelength=1.5,
    )  # fmt: skip
