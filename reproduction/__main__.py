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

import xarray as xr

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
    # Before PyTorch is imported, here or by a worker: of small networks on a busy machine the
    # threads wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    chosen = [ROWS[name] for name in given.only or ROWS]
    if not (given.quick or given.only or given.again):
        chosen = [row for row in chosen if not row.path.exists()]
    with tempfile.TemporaryDirectory() as temporary, _executor(given.workers) as executor:
        folder = results.FOLDER
        if given.quick:
            folder = Path(temporary)
            os.environ["KPOPS_CACHE"] = temporary  # for the networks of the small versions
        _measure(chosen, executor, folder, quick=given.quick, again=given.again)


def _executor(workers: int | None) -> nullcontext[None] | Executor:
    if workers is None:
        return nullcontext()
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _measure(
    rows: list[Row], executor: Executor | None, folder: Path, *, quick: bool, again: bool
) -> None:
    """Measure the file of each row once, and print the verdicts."""
    of_file: dict[str, xr.Dataset] = {}
    for row in rows:
        start = time.perf_counter()
        if row.file not in of_file:
            of_file[row.file] = run(row, quick=quick, again=again, executor=executor, folder=folder)
        found, size = of_file[row.file], " (quick)" if quick else ""
        print(f"{row.name}{size}: {row.verdict(found)}, {time.perf_counter() - start:.0f} s")
        for check in row.judge(found):
            print(f"  {check.passed} of {check.of}  {check.text}: {check.found}", flush=True)


if __name__ == "__main__":
    main()
