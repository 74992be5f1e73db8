"""The problems of all measurements: a model, its inputs, and how much to measure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from benchmarks.timing import Limits
from kpops.tasks import memory_pro

OPERATORS = ("P", "P*", "K", "flow")
FEATURES = 3  # of Memory-Pro: fixation, cos, sin
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


@dataclass(frozen=True)
class Case:
    """A model run on some inputs; everything random is the same in each run."""

    kind: str
    hidden: int
    trials: int = 20
    steps: int = 90
    inputs: str = "memory_pro"
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    layers: int = 1

    @property
    def name(self) -> str:
        return f"{self.kind} {self.hidden}" + (f" x {self.layers}" if self.layers > 1 else "")

    @property
    def gates(self) -> int:
        return GATES[self.kind]

    @property
    def state_size(self) -> int:
        return self.layers * self.hidden * (2 if self.kind == "LSTM" else 1)

    @property
    def rows(self) -> int:
        """Number of (trial, time) pairs."""
        return self.trials * self.steps

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    def module(self) -> nn.RNNBase:
        """An nn.RNN, nn.GRU or nn.LSTM as PyTorch initialises it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = getattr(nn, self.kind)(FEATURES, self.hidden, self.layers, batch_first=True)
        return module.to(dtype=self.dtype, device=self.device)

    def drive(self) -> Tensor:
        """Inputs (trial, time, feature)."""
        shape = (self.trials, self.steps, FEATURES)
        if self.inputs == "noise":
            drive = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        else:
            third = self.steps // 3
            epochs = (third, third, self.steps - 2 * third)
            task = memory_pro(self.trials, angles="even", noise=0, steps=epochs)
            drive = torch.from_numpy(task.inputs.values)
        return drive.to(dtype=self.dtype, device=self.device)

    def block(self, size: int) -> Tensor:
        """Vectors (block, trial, time, unit); a smaller block is the start of a larger one."""
        generator = torch.Generator().manual_seed(2)
        shape = (self.trials, self.steps, self.state_size)
        vectors = [torch.randn(shape, generator=generator, dtype=self.dtype) for _ in range(size)]
        return torch.stack(vectors).to(self.device)


@dataclass(frozen=True)
class Grid:
    """How much is measured."""

    kinds: tuple[str, ...] = ("RNN", "GRU", "LSTM")
    hidden: tuple[int, ...] = (64, 256, 1024)
    blocks: tuple[int, ...] = (1, 4, 16, 64)
    base: Case = Case("GRU", 256)
    """Sets inputs and device for all; growth, memory and the busy machine start from it."""
    limits: Limits = field(default_factory=Limits)
    most_setup_s: float = 60.0
    """Jacobians that take longer than this to make are omitted."""
    spectra: tuple[tuple[str, int], ...] = (("GRU", 256), ("RNN", 64), ("GRU", 64))
    certainty_cases: int = 560
    """Matrices on which the solvers are judged."""
    estimators: tuple[tuple[str, int], ...] = (("RNN", 64), ("GRU", 64))
    estimator_repetitions: tuple[int, int] = (200, 30)
    """Seeds of the estimates for matrices, and for operators of networks."""
    growth_trials: tuple[int, ...] = (10, 20, 40, 80, 160)
    growth_steps: tuple[int, ...] = (50, 100, 200, 400, 800)
    growth_hidden: tuple[int, ...] = (128, 256, 512, 1024)
    growth_blocks: tuple[int, ...] = (1, 16)
    hidden_from: int = 256
    """The slope with H is fitted from this size on: below, overhead hides the arithmetic."""
    large: tuple[tuple[int, int, int], ...] = ((1024, 64, 200), (2048, 1, 5000))
    """(hidden, trials, steps) of the memory measurements with the automatic engine."""
    layer_blocks: tuple[int, ...] = (1, 8)
    """Of stacks and of scans."""
    stacks: tuple[tuple[str, int, int], ...] = (("LSTM", 2, 128), ("GRU", 3, 128), ("RNN", 2, 128))
    """(kind, layers, hidden)"""
    stack_runs: tuple[int, int] = (50, 100)
    """Trials and steps of the stacks."""
    scan_steps: tuple[int, ...] = (100, 1000, 10_000)
    scan_sizes: tuple[int, int] = (10, 64)
    """Trials and units of the state-space layers."""
    exponents: tuple[tuple[int, int], ...] = ((1, 10), (20, 10), (1, 256))
    """(trials, Lyapunov exponents); the largest number is all that the network has."""
    exponent_steps: tuple[int, int] = (10_000, 500)
    """Steps of kpops, and those on which the loop by hand is timed."""
    busy_blocks: tuple[int, ...] = (1, 16)
    import_repetitions: int = 7
    gemm_size: int = 2048
    copy_bytes: int = 2**28

    def cases(self) -> list[Case]:
        return [replace(self.base, kind=k, hidden=h) for k in self.kinds for h in self.hidden]


def quick(base: Case) -> Grid:
    """A grid of under a minute, to check that everything runs; its numbers mean nothing."""
    small = replace(base, hidden=16, trials=4, steps=12)
    return Grid(
        hidden=(16,),
        blocks=(1, 4),
        base=small,
        limits=Limits(at_least=2, enough_s=0.0, at_most=2, few=2, most_s=5.0),
        spectra=(("GRU", 16),),
        certainty_cases=28,
        estimators=(("GRU", 24),),  # too large for its matrix, like those of the full run
        estimator_repetitions=(4, 3),
        growth_trials=(2, 4),
        growth_steps=(6, 12),
        growth_hidden=(8, 16),
        growth_blocks=(1, 4),
        hidden_from=8,
        large=(),
        layer_blocks=(1, 2),
        stacks=(("LSTM", 2, 8), ("GRU", 3, 8), ("RNN", 2, 8)),
        stack_runs=(3, 12),
        scan_steps=(8, 32),
        scan_sizes=(2, 8),
        exponents=((1, 3), (2, 3), (1, 16)),
        exponent_steps=(200, 100),
        busy_blocks=(1,),
        import_repetitions=1,
        gemm_size=256,
        copy_bytes=2**22,
    )
