"""Command line: ``python -m reproduction measure`` measures rows and says their verdicts."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path

from reproduction import results
from reproduction.registry import ROWS
from reproduction.row import Row, run


def main(arguments: list[str] | None = None) -> None:
    """Measure rows."""
    parser = argparse.ArgumentParser(prog="python -m reproduction", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    rows = commands.add_parser("measure", help="measure rows, and write their files")
    rows.add_argument("--only", nargs="+", metavar="ROW", choices=list(ROWS), help="of these rows")
    rows.add_argument("--quick", action="store_true", help="small versions, which write no file")
    rows.add_argument("--again", action="store_true", help="also measure what has a file")
    rows.add_argument("--workers", type=int, help="processes; default: this one")
    given = parser.parse_args(arguments)
    with _executor(given.workers) as executor:
        for name in given.only or ROWS:
            if given.quick:
                with tempfile.TemporaryDirectory() as folder:
                    os.environ["KPOPS_CACHE"] = folder  # for the networks of the small version
                    _measure_row(ROWS[name], True, True, executor, Path(folder))
            elif given.again or given.only or not ROWS[name].path.exists():
                _measure_row(ROWS[name], False, given.again, executor, results.FOLDER)


def _executor(workers: int | None) -> nullcontext[None] | Executor:
    if workers is None:
        return nullcontext()
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _measure_row(
    row: Row, quick: bool, again: bool, executor: Executor | None, folder: Path
) -> None:
    start = time.perf_counter()
    found = run(row, quick=quick, again=again, executor=executor, folder=folder)
    size = " (quick)" if quick else ""
    print(f"{row.name}{size}: {row.verdict(found)}, {time.perf_counter() - start:.0f} s")
    for check in row.judge(found):
        print(f"  {check.passed} of {check.of}  {check.text}: {check.found}", flush=True)


if __name__ == "__main__":
    main()
