"""How much slower products are while another process keeps one core busy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from benchmarks.cases import Grid
from benchmarks.contenders import build, engines
from benchmarks.timing import median, take_turns

_OPERATORS = ("P", "K", "flow")


@contextmanager
def busy_core() -> Iterator[None]:
    """Run a process that only loops, for as long as the context lasts."""
    code = "print(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()  # it has started
            yield
        finally:
            process.kill()


def measure(grid: Grid, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Median times under the load, relative to those before and after it."""
    case = grid.base
    contenders = [build(name, make, case) for name, make in engines(case).items()]
    q = case.block(max(grid.busy_blocks))
    records = []
    for operator in _OPERATORS:
        for size in grid.busy_blocks:
            say(f"busy core: {operator}, block of {size}")
            acts = {
                c.name: partial(c.products[operator], q[:size])
                for c in contenders
                if operator in c.products
            }
            for act in acts.values():
                act()
            turns = partial(take_turns, acts, case.device, grid.limits)
            before = turns()
            with busy_core():
                loaded = turns()
            after = turns()
            for name in acts:
                quiet = 1e3 * median(before[name] + after[name]) / size
                busy = 1e3 * median(loaded[name]) / size
                records.append(
                    {
                        "contender": name,
                        "operator": operator,
                        "block": size,
                        "quiet_ms_per_vector": quiet,
                        "busy_ms_per_vector": busy,
                        "ratio": busy / quiet,
                    }
                )
    return records
