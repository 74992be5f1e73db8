"""All rows of the page, in its order."""

from __future__ import annotations

from reproduction.row import Row
from reproduction.rows import collapse, initial, state_change

ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        initial.ROW,
        collapse.MEMORY_PRO,
        collapse.FLIP_FLOP,
        collapse.ORDER,
        collapse.EIGENFUNCTIONS,
        state_change.ROW,
    )
}
"""Rows by name."""
