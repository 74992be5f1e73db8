"""Compute one point of a study, or print its state: ``python -m kpops.studies STORE [INDEX]``."""

from __future__ import annotations

import argparse
import sys

from kpops.studies.errors import StudyError
from kpops.studies.study import Study


def main(arguments: list[str] | None = None) -> int:
    """Run one point, or print the state; returns 1 if the point failed."""
    parser = argparse.ArgumentParser(prog="python -m kpops.studies", description=__doc__)
    parser.add_argument("store", help="folder of the study")
    parser.add_argument("index", nargs="?", type=int, help="number of the point, from 0")
    chosen = parser.parse_args(arguments)
    try:
        study = Study(chosen.store)
        if chosen.index is None:
            print(study)
            missing = study.missing
            print(f"missing: {','.join(map(str, missing)) or 'none'}")
            return 0
        study.run_one(chosen.index)
    except (StudyError, ValueError, TypeError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
