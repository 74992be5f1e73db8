"""What a second thread gains: ``python -m benchmarks.threads``, on a quiet machine.

For each operator and size of block, the time on one thread over that on all that torch is set to
use, in turns. Beside it the same of the largest matrix product in it, one step of P, which is the
most that can be had where threads meet at every step; kpops' threads do not.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

import kpops
from benchmarks.cases import OPERATORS, Case
from benchmarks.timing import Limits, median, take_turns

CASES = tuple(Case(kind, hidden) for kind in ("RNN", "GRU") for hidden in (64, 256))
BLOCKS = (1, 4, 16, 64)


def on_threads(n: int, act: Callable[[], Any]) -> Any:
    """One call on so many threads."""
    torch.set_num_threads(n)
    return act()


def scaling(case: Case, blocks: tuple[int, ...], threads: int, limits: Limits) -> list[dict]:
    """Milliseconds on one thread and on all, for every operator and block, and of a step."""
    lin = kpops.linearize(case.module(), case.drive())
    acts = {"P": lin.P, "P*": lin.P.H, "K": lin.K, "flow": lin.flow}
    records = []
    for size in blocks:
        q = case.block(size)
        rows, weights = q[:, :, 0].flatten(0, 1), lin.engine.layers[0].recurrent_weight.mT
        products = {name: partial(acts[name].__matmul__, q) for name in OPERATORS}
        products["GEMM"] = partial(torch.mm, rows, weights)
        turns = {
            (name, n): partial(on_threads, n, act)
            for name, act in products.items()
            for n in (1, threads)
        }
        for act in turns.values():
            act()
        ms = {key: 1e3 * median(times) for key, times in take_turns(turns, "cpu", limits).items()}
        torch.set_num_threads(threads)
        records += [
            {
                "case": case.name,
                "operator": name,
                "block": size,
                "ms": (ms[name, 1], ms[name, threads]),
            }
            for name in products
        ]
    return records


def show(records: list[dict], threads: int) -> None:
    """Print milliseconds on one thread, and the gain."""
    print(f"{'':10}{'block':>6}" + "".join(f"{name:>16}" for name in (*OPERATORS, "GEMM")))
    rows = {(r["case"], r["block"]): {} for r in records}
    for r in records:
        rows[r["case"], r["block"]][r["operator"]] = r["ms"]
    for (case, block), by_operator in rows.items():
        cells = [f"{one:9.2f} {one / many:5.2f}x" for one, many in by_operator.values()]
        print(f"{case:10}{block:6}" + "".join(f"{cell:>16}" for cell in cells))
    print(f"milliseconds on one thread, and the gain on {threads}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.threads", description=__doc__)
    parser.add_argument("--blocks", nargs="+", type=int, default=BLOCKS)
    given = parser.parse_args()
    threads = torch.get_num_threads()
    limits = replace(Limits(), enough_s=0.2, at_most=100)
    records = [r for case in CASES for r in scaling(case, tuple(given.blocks), threads, limits)]
    show(records, threads)


if __name__ == "__main__":
    main()
