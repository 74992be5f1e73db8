"""Command line: ``python -m benchmarks`` measures everything; ``examples/speed.py`` draws it."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from benchmarks import suite
from benchmarks.cases import Grid, quick


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--inputs", choices=("memory_pro", "noise"), default="memory_pro")
    parser.add_argument("--out", type=Path, help="folder for the JSON files")
    parser.add_argument("--quick", action="store_true", help="a tiny grid, to check that it runs")
    parser.add_argument("--parts", nargs="+", choices=suite.PARTS, default=suite.PARTS)
    parser.add_argument("--models", nargs="+", choices=Grid.kinds, help="models of `products`")
    parser.add_argument("--hidden", nargs="+", type=int, help="hidden units in `products`")
    given = parser.parse_args(arguments)
    partial = given.quick or given.models or given.hidden or given.inputs != "memory_pro"
    if given.out is None and partial:
        parser.error("only the full run on Memory-Pro has a default folder: pass --out")
    return given


def main(arguments: list[str] | None = None) -> None:
    given = options(arguments)
    folder = given.out or suite.RESULTS
    base = replace(Grid.base, inputs=given.inputs, device=given.device)
    grid = quick(base) if given.quick else Grid(base=base)
    if given.models:
        grid = replace(grid, kinds=tuple(given.models))
    if given.hidden:
        grid = replace(grid, hidden=tuple(given.hidden))
    print(*suite.run(grid, folder, given.parts), sep="\n")


if __name__ == "__main__":
    main()
