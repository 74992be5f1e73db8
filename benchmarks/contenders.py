"""Contenders: what they are, and the engines of kpops among them."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

import kpops
from benchmarks.cases import OPERATORS, Case
from kpops.engines.memory import free_bytes
from kpops.engines.select import ENGINES
from kpops.linearization import Linearization

Product = Callable[[Tensor], Tensor]

# The engines for the cells measured here: "scan" is for models that couple no two units.
ENGINES_OF_CELLS = [name for name in ENGINES if name != "scan"]

# What PyTorch raises if a derivative, a batching rule or memory is lacking.
UNSUPPORTED = (NotImplementedError, RuntimeError)

# The share of the free memory that a contender may keep; the rest is for blocks of vectors.
_SHARE_TO_KEEP = 0.55


class UnavailableError(Exception):
    """A contender cannot take part; the message says why, in a footnote of a table."""


@dataclass
class Contender:
    """Products of the operators with blocks (block, trial, time, unit).

    Attributes
    ----------
    products : dict of str to callable
        By operator; what is missing is explained in `dashes`.
    one_by_one : bool
        Whether a block is a loop over its vectors, so that larger blocks show nothing new.
    divisible : bool
        Whether a user would split a block into smaller parts where that is faster.
    hidden_only : bool
        Whether it sees only h of an LSTM's state (h, c).
    temporaries : float
        Temporaries for each vector of a block, in units of (row, gate, hidden) arrays.
    """

    name: str
    products: dict[str, Product] = field(default_factory=dict)
    dashes: dict[str, str] = field(default_factory=dict)
    one_by_one: bool = False
    divisible: bool = False
    hidden_only: bool = False
    temporaries: float = 4
    floor: bool = False
    setup_s: float | None = None
    note: str = ""
    linearization: Linearization | None = None


def build(name: str, make: Callable[[], Contender], case: Case) -> Contender:
    """Make a contender and compute each product once; what fails becomes a dash."""
    zero = case.block(1).zero_()
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the other libraries
        try:
            contender = make()
        except UnavailableError as error:
            gc.collect()
            return Contender(name, dashes=dict.fromkeys(OPERATORS, str(error)))
        except UNSUPPORTED as error:
            _excuse(name, error)
            return Contender(name, dashes=dict.fromkeys(OPERATORS, first_sentence(error)))
        for operator, product in list(contender.products.items()):
            try:
                product(zero)
            except UNSUPPORTED as error:
                _excuse(name, error)
                del contender.products[operator]
                contender.dashes[operator] = first_sentence(error)
    if case.device != "cpu":
        torch.cuda.synchronize()
    contender.setup_s = time.perf_counter() - start
    return contender


def _excuse(name: str, error: Exception) -> None:
    """Raise an error of kpops; what PyTorch cannot differentiate only excuses the others."""
    if name.startswith("kpops"):
        raise error


def first_sentence(error: Exception) -> str:
    """Beginning of an error's message, short enough for a footnote."""
    return str(error).strip().splitlines()[0].split(". ")[0][:160]


def require_memory(n_bytes: int, case: Case) -> None:
    """Refuse matrices that leave too little memory for everything else."""
    free = free_bytes(torch.device(case.device))
    if n_bytes > _SHARE_TO_KEEP * free:
        raise UnavailableError("left out: its stored matrices do not fit in memory")


def require_setup_time(flops: float, rate: float, most_s: float) -> None:
    """Refuse a preparation that takes too long at `rate` operations per second."""
    if flops > most_s * rate:
        raise UnavailableError(f"left out: making its matrices would take over {most_s:.0f} s")


def state_jacobian_flops(case: Case) -> float:
    """Operations to make all state Jacobians by reverse mode, row by row."""
    return 2.0 * case.rows * case.state_size * case.gates * case.hidden**2


def engine(case: Case, name: str) -> Contender:
    """One engine of kpops."""
    module, drive = case.module(), case.drive()
    try:
        lin = kpops.linearize(module, drive, engine="autodiff")
        require_memory(lin.memory_estimate().get(name, 0), case)
        if name != lin.engine.name:
            lin = kpops.linearize(module, drive, engine=name)
    except (ValueError, MemoryError) as error:
        raise UnavailableError(first_sentence(error)) from error
    return Contender(
        f"kpops {name}",
        {
            "P": lambda q: lin.P @ q,
            "P*": lambda q: lin.P.H @ q,
            "K": lambda q: lin.K @ q,
            "flow": lambda q: lin.flow @ q,
        },
        linearization=lin,
    )


def engines(case: Case) -> dict[str, Callable[[], Contender]]:
    """Functions that make a contender of each engine."""
    return {f"kpops {name}": partial(engine, case, name) for name in ENGINES_OF_CELLS}
