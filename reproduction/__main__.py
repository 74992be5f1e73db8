"""Command line: ``python -m reproduction`` measures networks; ``examples/claims.py`` draws them."""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from reproduction import measure, results


def main(arguments: list[str] | None = None) -> None:
    """Measure the trained networks."""
    parser = argparse.ArgumentParser(prog="python -m reproduction", description=__doc__)
    parser.add_argument("names", nargs="*", help="beginnings of the names of networks")
    parser.add_argument("--again", action="store_true", help="also measure those that have results")
    parser.add_argument("--workers", type=int, help="number of processes; default: this one")
    given = parser.parse_args(arguments)
    planned = list(measure.plan())
    results.write_plan(results.FOLDER, {entry.name: entry.configuration for entry in planned})
    entries = [e for e in planned if e.name.startswith(tuple(given.names) or "")]
    if given.workers is None:
        measure.run(entries, again=given.again)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.workers, mp_context=spawn) as executor:
        measure.run(entries, again=given.again, executor=executor)


if __name__ == "__main__":
    main()
