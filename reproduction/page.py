"""What the page says of rows: one table of all, and a report of each. Without PyTorch."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

from reproduction.row import Row
from reproduction.verdicts import UNKNOWN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH = 96
_COLUMNS = {"claim": 22, "the paper": 34, "here": 34, "verdict": 14}


def table(rows: Iterable[Row]) -> str:
    """A table of rows: the claim, the paper's numbers, ours, the verdict.

    The column *here* has the numbers of the first criterion, how many criteria hold, and the first
    that does not, with its numbers.
    """
    lines = [_line([[name] for name in _COLUMNS]), "  ".join("=" * w for w in _COLUMNS.values())]
    for row in rows:
        cells = [f"{row.title} ({row.paper}, {row.where})", row.says, *_outcome(row)]
        wrapped = [textwrap.wrap(c, w) for c, w in zip(cells, _COLUMNS.values(), strict=True)]
        lines += [_line(wrapped), ""]
    return "\n".join(lines)


def _line(cells: list[list[str]]) -> str:
    height = max(map(len, cells))
    columns = [[*cell, *[""] * (height - len(cell))] for cell in cells]
    padded = [
        [f"{text:{width}}" for text in column]
        for column, width in zip(columns, _COLUMNS.values(), strict=True)
    ]
    return "\n".join("  ".join(parts).rstrip() for parts in zip(*padded, strict=True))


def _outcome(row: Row) -> tuple[str, str]:
    """The column *here*, and the verdict."""
    if not row.path.exists():
        return "", UNKNOWN
    found = row.read()
    checks = row.judge(found)
    held = sum(c.holds for c in checks)
    text = f"{checks[0].text}: {checks[0].found}. {held} of {len(checks)} criteria hold"
    failed = [c for c in checks if not c.holds]
    if failed and failed[0] is not checks[0]:
        text += f"; not: {failed[0].text}: {failed[0].found}"
    return f"{text}.", row.verdict(found)


def show(row: Row) -> Figure | None:
    """Print what the paper says, every criterion with our numbers, and notes; draw the figure."""
    print(_filled("paper: ", f"{row.says} ({row.paper}, {row.where})"))
    if not row.path.exists():
        print("not measured")
        return None
    found = row.read()
    print(f"verdict: {row.verdict(found)}")
    for check in row.judge(found):
        held = f"  {check.passed} of {check.of}  "
        print(_filled(held, f"{check.text}: {check.found}"))
    for note in row.notes(found):
        print(_filled("", note))
    seeds, versions = (json.loads(found.attrs[name]) for name in ("seeds", "versions"))
    made = f"{found.attrs['script']}, {len(seeds)} seeds, torch {versions['torch']}"
    print(_filled("settings: ", f"{found.attrs['settings']} ({made})"))
    return row.draw(found) if row.draw else None


def _filled(label: str, text: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=label, subsequent_indent=" " * len(label))
