"""Tables of reStructuredText, with footnotes of their own."""

from __future__ import annotations

import math
import string
import textwrap
from collections.abc import Sequence

DASH = "\N{EN DASH}"


def number(value: float) -> str:
    """Three significant digits, without exponents."""
    if value >= 100:
        return f"{value:,.0f}"
    leading = math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:.{min(2 - leading, 6)}f}"


def scientific(value: float, digits: int = 2) -> str:
    """So many significant digits with an exponent, or 0."""
    text = f"{value:.{digits - 1}e}" if value else "0"
    return text.replace("e-0", "e-").replace("e+0", "e+")


def size(n_bytes: float) -> str:
    """Bytes in MiB or GiB."""
    if abs(n_bytes) >= 2**30:
        return f"{n_bytes / 2**30:.2f} GiB"
    return f"{n_bytes / 2**20:.1f} MiB"


def percent(fraction: float) -> str:
    """Whole percents, or a tenth below one."""
    value = 100 * fraction
    return f"{value:.0f} %" if value >= 1 else f"{value:.1f} %"


class Footnotes:
    """Letters for remarks: the same remark keeps its letter within one table."""

    def __init__(self) -> None:
        self.remarks: list[str] = []

    def mark(self, remark: str) -> str:
        """The raised letter of a remark."""
        if remark not in self.remarks:
            self.remarks.append(remark)
        return rf"\ :sup:`{string.ascii_lowercase[self.remarks.index(remark)]}`"

    def lines(self) -> list[str]:
        """What stands below the table."""
        if not self.remarks:
            return []
        letters = zip(string.ascii_lowercase, self.remarks, strict=False)
        return [*(f"| :sup:`{letter}` {remark}" for letter, remark in letters), ""]


def table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], notes: Footnotes | None = None
) -> list[str]:
    """A list-table whose first column names the rows."""
    lines = [
        f".. list-table:: {title}",
        "   :header-rows: 1",
        "   :stub-columns: 1",
        "",
    ]
    for row in [header, *rows]:
        lines += [f"   {'* -' if i == 0 else '  -'} {cell}" for i, cell in enumerate(row)]
    return [*lines, "", *(notes.lines() if notes else [])]


def heading(text: str, underline: str) -> list[str]:
    return [text, underline * len(text), ""]


def paragraph(text: str, first: str = "") -> list[str]:
    """Lines of a paragraph, or with `first` such as ``"- "`` of an item of a list."""
    return textwrap.wrap(
        text,
        100,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    ) + ([] if first else [""])
