"""Command line: ``python -m reproduction`` measures networks; ``examples/claims.py`` draws them."""

from __future__ import annotations

import argparse

from reproduction import measure


def main(arguments: list[str] | None = None) -> None:
    """Measure the trained networks."""
    parser = argparse.ArgumentParser(prog="python -m reproduction", description=__doc__)
    parser.add_argument("names", nargs="*", help="beginnings of the names of networks")
    parser.add_argument("--again", action="store_true", help="also measure those that have results")
    given = parser.parse_args(arguments)
    measure.run(given.names, again=given.again)


if __name__ == "__main__":
    main()
