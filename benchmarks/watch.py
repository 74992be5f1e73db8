"""Fifteen ratios in about a minute: is anything slower than it was?

``python -m benchmarks.watch`` times calls of kpops beside calls that do not use it, in turns, and
compares each ratio with that of ``results/watch.json`` for the same processor. A loss above a
quarter is an error. ``--keep`` writes the ratios instead. The times are those of the processor, on
one thread, so that others at work on the machine change them little.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp

import kpops
from benchmarks import collapse_by_hand, exponents, machine, one_vector
from benchmarks.cases import Case
from benchmarks.stored import StoredJacobians
from benchmarks.timing import Limits, median, take_turns
from kpops.engines.random_vectors import RandomVectors

RESULTS = Path(__file__).parent / "results" / "watch.json"
LOSS = 0.25
LIMITS = Limits(at_least=5, enough_s=0.3, at_most=100, few=2)
LARGE, PLAIN, SMALL = Case("GRU", 256), Case("RNN", 256), Case("GRU", 64, trials=10, steps=50)
MODES, TOLERANCE, PROBES = 10, 1e-5, 32

Pair = tuple[str, Callable[[], Any], Callable[[], Any], float]
"""A name, a call of kpops, another, and how often that is needed to do the same."""


def of_products(case: Case, names: dict[str, tuple[str, int]]) -> Iterator[Pair]:
    """Products with blocks, beside stored Jacobians, one vector at a time."""
    lin, baseline = kpops.linearize(case.module(), case.drive()), StoredJacobians(case)
    for name, (operator, size) in names.items():
        ours = lin.P.H if operator == "P*" else getattr(lin, operator)
        q = case.block(size)
        theirs = partial(baseline.products[operator], q[0].flatten().numpy())
        yield f"{case.name}: {name}", partial(ours.__matmul__, q), theirs, size


def of_spectra(case: Case) -> Iterator[Pair]:
    """Spectra and ranks, beside ARPACK and random vectors."""
    lin, baseline = kpops.linearize(case.module(), case.drive()), StoredJacobians(case)
    n, dtype = lin.flow.shape[0], str(case.dtype).removeprefix("torch.")
    v0 = case.block(1).flatten().numpy()

    def arpack(act: one_vector.Act) -> Any:
        return one_vector.arpack(one_vector.Counted(act, n, dtype), MODES, TOLERANCE, v0)

    def participation() -> Any:
        flow = one_vector.Counted(baseline.flow, n, dtype)
        return one_vector.participation(flow, PROBES, np.random.default_rng(0))

    def squares(q: np.ndarray) -> np.ndarray:
        return baseline.P_adjoint(baseline.P(q))

    tasks: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "spectrum of K": (lambda: kpops.eigvalsh(lin.K), lambda: arpack(baseline.K)),
        "top of P": (lambda: kpops.svds(lin.P, MODES, rng=0), lambda: arpack(squares)),
        "top of flow": (lambda: kpops.eigsh(lin.flow, MODES, rng=0), lambda: arpack(baseline.flow)),
        "participation": (lambda: kpops.effective_rank(lin.flow, rng=0), participation),
        "collapse": (
            partial(kpops.collapse, lin, num_modes=0, rng=0),
            partial(collapse_by_hand.collapse, baseline),
        ),
    }
    for name, (ours, theirs) in tasks.items():
        yield f"{case.name}: {name}", ours, theirs, 1


def of_linearizing(case: Case) -> Iterator[Pair]:
    """Linearization, beside a forward and a backward pass of the module."""
    module, drive = case.module(), case.drive()

    def step() -> None:
        module.zero_grad()
        module(drive)[0].square().sum().backward()

    yield f"{case.name}: linearize", partial(kpops.linearize, case.module(), drive), step, 1


def of_exponents(case: Case) -> Iterator[Pair]:
    """Ten exponents, beside a QR of the Jacobians at every step."""
    module, drive = case.module(), case.drive()
    yield (
        f"{case.name}: exponents",
        partial(kpops.lyapunov_spectrum, module, MODES, inputs=drive, rng=0),
        partial(exponents.by_hand, module, drive[:, : case.steps // 8], MODES, 0),
        8,
    )


def of_sites() -> Iterator[Pair]:
    """The NTK of an MLP, beside a VJP and a JVP for each vector."""
    samples, width, size = 256, 256, 8
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
        net = nn.Sequential(*layers, nn.Linear(width, 10))
    x = RandomVectors(0).normal(1, range(samples * 64), torch.empty(0)).view(samples, 64)
    weights = {name: p.detach() for name, p in net.named_parameters()}
    q = RandomVectors(1).normal(size, range(samples * 10), x).view(size, samples, 10)
    lin = kpops.linearize(net, x)

    def outputs(theta: dict[str, Tensor]) -> Tensor:
        return functional_call(net, theta, (x,))

    pullback = vjp(outputs, weights)[1]

    def by_hand() -> Tensor:
        return jvp(outputs, (weights,), pullback(q[0]))[1]

    yield "MLP 256: NTK, 8", partial(lin.output_ntk.__matmul__, q), by_hand, size


def pairs() -> Iterator[Pair]:
    """All of them; of each network, the matrices of one at a time are in memory."""
    yield from of_products(
        LARGE,
        {
            "P, 16": ("P", 16),
            "P*, 16": ("P*", 16),
            "K, 16": ("K", 16),
            "flow, 16": ("flow", 16),
            "flow, 1": ("flow", 1),
        },
    )
    yield from of_products(PLAIN, {"flow, 16": ("flow", 16)})
    yield from of_products(SMALL, {"flow, 1": ("flow", 1)})
    yield from of_spectra(SMALL)
    yield from of_linearizing(SMALL)
    yield from of_exponents(Case("RNN", 256, 1, 2000, inputs="noise"))
    yield from of_sites()


def measure() -> dict[str, float]:
    """How many times faster kpops is."""
    found = {}
    for name, ours, theirs, times in pairs():
        ours()
        theirs()
        acts = {"kpops": ours, "other": theirs}
        seconds = take_turns(acts, "cpu", LIMITS, time.process_time)
        found[name] = times * median(seconds["other"]) / median(seconds["kpops"])
        print(f"{name:24}{found[name]:9.2f}", flush=True)
        gc.collect()
    return found


def losses(found: dict[str, float], before: dict[str, float]) -> list[str]:
    """What has lost more than a quarter, or is not measured any more."""
    slow = [name for name, ratio in before.items() if found.get(name, 0) < (1 - LOSS) * ratio]
    return [f"{name}: {found.get(name, 0):.2f}, was {before[name]:.2f}" for name in slow]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watch", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="commit these ratios to the file")
    given = parser.parse_args(arguments)
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    torch.set_num_threads(1)
    here, found = str(machine.environment("cpu")["processor"]), measure()
    if given.keep:
        RESULTS.write_text(json.dumps({**known, here: found}, indent=1) + "\n")
    elif here not in known:
        print(f"no ratios of this processor are known: {here}")
    elif lost := losses(found, known[here]):
        sys.exit("\n".join(["slower than it was:", *lost]))


if __name__ == "__main__":
    main()
