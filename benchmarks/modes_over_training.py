"""The same modes at the next checkpoint: ``python -m benchmarks.modes_over_training``.

Trains a network on Memory-Pro and counts the matvecs of its top modes at 17 checkpoints: each
checkpoint by itself, and from the modes of the one before. Next to them stand the largest residuals
and a floor, the matvecs that even exact start vectors leave: one to scale the operator, those that
compute the residuals, and the certificate, as far as the warm search needed it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import xarray as xr

import kpops
from kpops.linalg import eigenpairs
from kpops.linearization import Linearization

MODES, CHECKPOINTS = 10, 17


class Normalized(torch.nn.Module):
    """A tanh cell with layer normalisation: its K couples all units, so no structure solves it."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.W, self.U = torch.nn.Linear(units, units), torch.nn.Linear(3, units)
        self.norm = torch.nn.LayerNorm(units)
        self.input_size, self.hidden_size = 3, units

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """One step."""
        return torch.tanh(self.norm(self.W(h) + self.U(x)))


class Looped(torch.nn.Module):
    """A network about a cell of that kind."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.recurrent, self.readout = Normalized(units), torch.nn.Linear(units, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs at all steps."""
        h, states = inputs.new_zeros(len(inputs), self.recurrent.hidden_size), []
        for x in inputs.unbind(1):
            h = self.recurrent(x, h)
            states.append(h)
        return self.readout(torch.stack(states, 1))


def _gru(units: int) -> torch.nn.Module:
    return kpops.Network(torch.nn.GRU(3, units), torch.nn.Linear(units, 3))


class Of(NamedTuple):
    """An operator of a linearization, its solver, and the modes from which the next may start."""

    operator: Callable[[Linearization], Any]
    solve: Callable[..., xr.Dataset]
    start: str
    residual_matvecs: int  # of one mode


OPERATORS = {
    "P": Of(lambda lin: lin.P, kpops.svds, "right", 2),
    "K": Of(lambda lin: lin.K, kpops.eigsh, "eigenfunction", 1),
    "flow": Of(lambda lin: lin.flow, kpops.eigsh, "eigenfunction", 1),
}
CELLS: dict[str, tuple[Callable[[int], torch.nn.Module], tuple[str, ...]]] = {
    "gru": (_gru, ("P", "flow")),
    "normalized": (Looped, ("K", "flow")),
}


class Certificates:
    """Matvecs with the space of the solver that certificates have spent since the last look."""

    def __init__(self) -> None:
        self.spent, self._certify = 0, eigenpairs.certify_leading
        eigenpairs.certify_leading = self

    def __call__(self, problem: Any, modes: Any, search: Any, *rest: Any) -> bool:
        """Certify, and count."""
        before = search.spent
        certain = self._certify(problem, modes, search, *rest)
        self.spent += problem.cost * (search.spent - before)
        return certain

    def taken(self) -> int:
        """Those since the last call."""
        spent, self.spent = self.spent, 0
        return spent


def compare(cell: str, units: int, every: int, learning_rate: float) -> None:
    """Train a network, and print a line for each operator."""
    make, names = CELLS[cell]
    torch.manual_seed(0)
    network = make(units)
    task = kpops.tasks.memory_pro(20, angles="even", noise=0)
    certificates = Certificates()
    with tempfile.TemporaryDirectory() as folder:
        kpops.training.train(
            network,
            kpops.tasks.memory_pro(2000, rng=0),
            folder=folder,
            max_steps=(CHECKPOINTS - 1) * every,
            batch_size=100,
            learning_rate=learning_rate,
            checkpoint_every=every,
            rng=0,
        )
        print(f"{cell} of {units} units, {CHECKPOINTS} checkpoints, {every} iterations apart")
        print("operator      alone   after    ratio   floor   residuals            all certified")
        for name in names:
            print(_line(name, network, folder, task.inputs, certificates), flush=True)


def _line(name: str, network: Any, folder: str, inputs: Any, certificates: Certificates) -> str:
    of, floor = OPERATORS[name], 0
    matvecs, residuals, certain = [0, 0], [0.0, 0.0], True
    before: xr.Dataset | None = None
    for _, state in kpops.training.checkpoints(folder):
        network.load_state_dict(state)
        model = network.recurrent if isinstance(network, Looped) else network
        operator = of.operator(kpops.linearize(model, inputs))
        alone = of.solve(operator, MODES, rng=0)
        certificates.taken()
        after = of.solve(operator, MODES, rng=0, v0=None if before is None else before[of.start])
        spent = certificates.taken()
        for i, found in enumerate((alone, after)):
            residuals[i] = max(residuals[i], float(found.residual.max()))
            certain &= bool(found.converged.all())
            if before is not None:
                matvecs[i] += found.num_matvecs
        if before is not None:
            floor += 1 + of.residual_matvecs * MODES + spent
        before = after
    ratio = matvecs[1] / matvecs[0]
    shown = " ".join(f"{r:.1e}" for r in residuals)
    return (
        f"{name:<10}{matvecs[0]:>9}{matvecs[1]:>8}{ratio:>9.2f}{floor:>8}   {shown:<20} {certain}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cell", choices=CELLS, default="gru")
    parser.add_argument("--units", type=int, default=64)
    parser.add_argument("--every", type=int, default=50, help="iterations between checkpoints")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    given = parser.parse_args()
    compare(given.cell, given.units, given.every, given.learning_rate)


if __name__ == "__main__":
    main()
