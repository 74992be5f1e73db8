"""Command line: ``python -m reproduction`` measures networks; ``examples/claims.py`` draws them."""

from __future__ import annotations

import argparse

from reproduction import measure


def main(arguments: list[str] | None = None) -> None:
    """Measure the networks that are trained."""
    parser = argparse.ArgumentParser(prog="python -m reproduction", description=__doc__)
    parser.add_argument("names", nargs="*", help="networks, by the beginnings of their names")
    parser.add_argument("--again", action="store_true", help="also what is measured already")
    given = parser.parse_args(arguments)
    measure.run(given.names, again=given.again)


if __name__ == "__main__":
    main()
