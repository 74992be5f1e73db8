"""Command line: ``python -m reproduction measure`` and ``python -m reproduction page``."""

from __future__ import annotations

import argparse

from reproduction import page, results


def main(arguments: list[str] | None = None) -> None:
    """Measure the networks that are trained, or write the page of the documentation."""
    parser = argparse.ArgumentParser(prog="python -m reproduction", description=__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    measuring = steps.add_parser("measure", help="measure what is trained and not yet measured")
    measuring.add_argument("names", nargs="*", help="networks, by the beginnings of their names")
    measuring.add_argument("--again", action="store_true", help="also what is measured already")
    steps.add_parser("page", help="write docs/reproduction.rst and its figures")
    given = parser.parse_args(arguments)
    if given.step == "page":
        print(page.write(results.FOLDER, page.DOCS))
        return
    from reproduction import measure  # which needs PyTorch; the page does not

    measure.run(given.names, again=given.again)


if __name__ == "__main__":
    main()
